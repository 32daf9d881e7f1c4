"""A host that joined listens on a real NATS server by its own pass, until it is put out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shellwego.boot import nodedir
from shellwego.boot.hintroad import HintRoad, enter_nats
from shellwego.boot.joincall import Address
from shellwego.control.loops.buskeys import Shutter
from shellwego.control.nodeadmin import remove_node
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control, Unit
from shellwego.core.joins import MemberKind
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.bus.nats import open_nats
from shellwego.drivers.busaccess.nats import NatsBusAccess
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.uplink.tls import UplinkChannel
from shellwego.wire import subjects
from tests.boot.test_boot_join import Server, open_port
from tests.contract.host_rig import eventually
from tests.contract.nats_server import NatsServer, running_nats
from tests.contract.node_port import listening, port_of

SLOW_HOST_S = 20.0


@pytest.fixture
async def platform() -> AsyncIterator[tuple[NatsServer, Server]]:
    clock = SystemClock()
    with running_nats() as nats:
        bus, access = await open_nats(nats.site()), NatsBusAccess(nats.authority, clock)
        control, listener = Control(MemoryStore(clock), bus, clock), listening()
        sealer = Sealer(control, MemoryKms())
        port = await open_port(control, listener, access, sealer)
        tasks = [asyncio.create_task(part) for part in (port.run(), Shutter(control, access).run())]
        yield nats, Server(control, port, Address("127.0.0.1", port_of(listener)), sealer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bus.close()


async def heard(hints: MemoryBus, subject: str, said: asyncio.Event) -> None:
    async with hints.subscribe(subject) as own:
        async for _ in own:
            said.set()


@pytest.mark.real
async def test_a_node_hears_the_bus_by_its_own_pass_until_it_is_removed(
    platform: tuple[NatsServer, Server], tmp_path: Path
) -> None:
    _, server = platform
    member = await server.become(tmp_path / "node", await server.token())
    joined = nodedir.load(tmp_path / "node", MemberKind.NODE)
    channel = UplinkChannel(lambda: member.servers, lambda: joined.credentials)
    hints, said = MemoryBus(), asyncio.Event()
    road = HintRoad(member.id, hints, SystemClock(), enter_nats)
    mine = subjects.assignments(member.id)
    tasks = [asyncio.create_task(part) for part in (road.keep(channel), heard(hints, mine, said))]
    try:
        await eventually(lambda: road.road == "bus", "it is on the bus", SLOW_HOST_S)
        said.clear()
        await server.control.bus.publish(mine)
        async with asyncio.timeout(SLOW_HOST_S):
            await said.wait()

        def remove(unit: Unit) -> None:
            node = unit.tx.nodes.get(member.id)
            assert node is not None
            remove_node(unit, node)

        await server.control.commit(remove)
        await eventually(lambda: road.road == "link", "it is cut off", SLOW_HOST_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await channel.close()
