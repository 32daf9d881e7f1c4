"""The streams' contract over a link that the node dialled, through real TLS on loopback."""

from __future__ import annotations

import pytest

from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.streams.dial import WebSocketDialler
from shellwego.drivers.streams.dialled import DialledListener
from tests.contract.node_port import Rig
from tests.contract.streams_contract import Joined, StreamsContract


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
                listener = DialledListener(lambda: [wire.url], WebSocketDialler(lambda: credentials), MemoryBus())
                await listener.serve(node_id, handler)  # type: ignore[arg-type]

        async def cut(_node_id: str) -> None:
            wire.cut()

        async def reached(node_id: str) -> None:
            await port.linked(node_id)

        return Joined(port.streams, Nodes(), cut, reached)
