"""The names that guests of a node may ask for, on an agent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shellwego.agent.names import Names
from shellwego.agent.state import NodeState
from shellwego.core.names import NetworkNames, NodeNames
from shellwego.core.openings import Opening
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.engine.memory import MemoryEngine
from tests.agent.agent_world import workload, world

NETWORK = NetworkNames(network_id="net_1", hosts={"shop": ("10.64.0.2",)})


async def test_names_are_fetched_where_they_are_new_and_not_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.control.names_told = NodeNames(version="one", networks=(NETWORK,))
        await w.control.hint()
        await w.clock.until(lambda: w.engine.names == {"net_1": NETWORK}, 5)
        await w.clock.advance(20)
        assert w.control.names_fetched == 1
        w.control.names_told = NodeNames(version="two", networks=(replace(NETWORK, hosts={}),))
        await w.control.hint()
        await w.clock.until(lambda: w.engine.names["net_1"].hosts == {}, 5)
        assert w.control.names_fetched == 2


async def test_a_server_that_tells_of_no_names_leaves_those_that_are_known(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.control.names_told = NodeNames(version="one", networks=(NETWORK,))
        await w.control.hint()
        await w.clock.until(lambda: bool(w.engine.names), 5)
        w.control.names_told = NodeNames(version="")
        await w.control.hint()
        await w.clock.advance(10)
        assert w.engine.names == {"net_1": NETWORK}


KNOWN = replace(NETWORK, identities={"app_web": ("fd12::1",), "app_job": ("fd12::2",)})


async def test_of_other_nodes_vms_those_are_known_that_a_group_of_something_here_names(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.control.names_told = NodeNames(version="one", networks=(KNOWN,))
        await w.control.hint()
        await w.clock.until(lambda: bool(w.engine.names), 5)
        assert w.engine.known == {}
        await w.control.assign("ins_1", replace(workload(), ingress=(Opening(identity="app_web"), Opening())))
        await w.clock.until(lambda: w.engine.known == {"app_web": ("fd12::1",)}, 5)
        assert w.control.names_fetched == 1, "all of them are known already"
        w.control.names_told = NodeNames(version="two", networks=(NETWORK,))
        await w.control.hint()
        await w.clock.until(lambda: w.engine.known == {}, 5)


async def test_an_agent_that_starts_while_no_server_is_there_knows_whom_it_knew(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.control.names_told = NodeNames(version="one", networks=(KNOWN,))
        await w.control.assign("ins_1", replace(workload(), ingress=(Opening(identity="app_web"),)))
        await w.clock.until(lambda: w.engine.known == {"app_web": ("fd12::1",)}, 5)
    engine = MemoryEngine(VirtualClock())
    await Names(engine, w.control, NodeState(tmp_path)).restore()
    assert engine.known == {"app_web": ("fd12::1",)}
