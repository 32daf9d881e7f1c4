"""The streams' contract over a link that the node dialled, through real TLS on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.streams.dial import WebSocketDialler
from shellwego.drivers.streams.dialled import DialledListener
from tests.contract.node_port import Port, Rig
from tests.contract.streams_contract import Joined, StreamsContract


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.close()


async def linked(port: Port, peer_id: str) -> None:
    """Return when the node or edge has a link to this server."""
    async with asyncio.timeout(10):
        while not port.streams.linked(peer_id):  # noqa: ASYNC110 - it is told nowhere
            await asyncio.sleep(0.005)


class TestDialledStreams(StreamsContract):
    deadline_s = 30.0

    @pytest.fixture
    async def joined(self, rig: Rig) -> Joined:
        port = rig.port()
        wire = rig.wire(port)

        class Nodes:
            """Each node that serves has a key of its own."""

            async def serve(self, node_id: str, handler: object) -> None:
                credentials = rig.identities.node(node_id, node_id)
                listener = DialledListener([wire.url], WebSocketDialler(lambda: credentials), MemoryBus())
                await listener.serve(node_id, handler)  # type: ignore[arg-type]

        async def cut(_node_id: str) -> None:
            wire.cut()

        async def reached(node_id: str) -> None:
            await linked(port, node_id)

        return Joined(port.streams, Nodes(), cut, reached)
