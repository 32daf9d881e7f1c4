"""The published ports at which a node answers, on an agent."""

from __future__ import annotations

from pathlib import Path

from shellwego.agent.publishing import Ports
from shellwego.agent.state import NodeState
from shellwego.core.publishing import NodePorts, OpenPort, PortEndpoint, Transport
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.engine.memory import MemoryEngine
from tests.agent.agent_world import world

ENDPOINT = PortEndpoint(vm_id="vm_1", ipv4="10.64.0.2", port=5432)
PORT = OpenPort(transport=Transport.TCP, port=20_000, endpoints=(ENDPOINT,))


async def test_ports_are_fetched_where_they_are_new_and_not_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.control.ports_told = NodePorts(version="one", ports=(PORT,))
        await w.control.hint()
        await w.clock.until(lambda: w.engine.published == (PORT,), 5)
        await w.clock.advance(20)
        assert w.control.ports_fetched == 1
        w.control.ports_told = NodePorts(version="two")
        await w.control.hint()
        await w.clock.until(lambda: w.engine.published == (), 5)
        assert w.control.ports_fetched == 2


async def test_a_server_that_tells_of_no_ports_leaves_those_that_are_known(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.control.ports_told = NodePorts(version="one", ports=(PORT,))
        await w.control.hint()
        await w.clock.until(lambda: bool(w.engine.published), 5)
        w.control.ports_told = NodePorts(version="")
        await w.control.hint()
        await w.clock.advance(10)
        assert w.engine.published == (PORT,)


async def test_after_a_restart_ports_are_as_they_were_before_anybody_can_be_asked(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.control.ports_told = NodePorts(version="one", ports=(PORT,))
        await w.control.hint()
        await w.clock.until(lambda: bool(w.engine.published), 5)
    engine = MemoryEngine(VirtualClock())
    await Ports(engine, w.control, NodeState(tmp_path)).restore()
    assert engine.published == (PORT,)
