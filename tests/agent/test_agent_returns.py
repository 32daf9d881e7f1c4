"""An agent that was cut off, judged dead and comes back: what it held runs elsewhere now, so it stops it, and nothing of it
is ever believed or adopted again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shellwego.control.nodeadmin import remove_node
from shellwego.core.instances import Phase
from shellwego.core.nodes import Node, NodeHealth
from shellwego.core.vms import VmPhase
from shellwego.drivers.uplink.memory import LinkState
from shellwego.ports.store import eq
from tests.agent.agent_host import AgentHost
from tests.control.rollout_world import World


class Host(AgentHost):
    """A node, with what the platform and its engine say of it."""

    @property
    def row(self) -> Node:
        (found,) = self.world.peek(lambda tx: tx.nodes.select(eq("name", self.name)))
        return found

    async def running(self) -> set[str]:
        """The instances whose VMs run here."""
        return {view.instance_id for view in await self.engine.observe() if view.phase is VmPhase.RUNNING}


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[tuple[Host, Host]]:
    """Two nodes; the first runs the app's only instance."""
    world = World()
    await world.begin()
    pair = [Host(world, name, tmp_path / name) for name in ("one", "two")]
    for host in pair:
        host.start()
    await world.clock.advance(1)
    await world.finished(await world.deploy("hello:v1"))
    first, other = pair if await pair[0].running() else reversed(pair)
    yield first, other
    for host in pair:
        await host.kill()
    await world.end()
    for host in pair:
        await host.engine.close(keep_vms=False)


async def cut_off(host: Host) -> None:
    host.link.state = LinkState.CUT
    await host.world.clock.until(lambda: host.row.health is NodeHealth.DOWN, 15)


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_was_lost_with_a_node_is_stopped_there_when_it_returns(
    hosts: tuple[Host, Host], restarted: bool
) -> None:
    dead, other = hosts
    world = dead.world
    (lost,) = world.serving()
    await cut_off(dead)
    await world.clock.until(lambda: any(i.id != lost.id for i in world.serving()), 15)
    assert await dead.running() == {lost.id}, "its VM runs on, out of anybody's reach"
    if restarted:
        await dead.kill()
        dead.start()
    dead.link.state = LinkState.UP
    await world.clock.until(lambda: dead.row.health is NodeHealth.READY, 15)
    await world.clock.advance(15)
    assert await dead.running() == set()
    (new,) = world.live()
    assert await other.running() == {new.id}
    assert [i.phase for i in world.instances() if i.id == lost.id] == [Phase.LOST]
    assert dead.row.epoch == 2


async def test_what_it_says_of_the_time_before_is_not_believed(hosts: tuple[Host, Host]) -> None:
    """Only its answers are lost: its reports arrive, and bear the epoch of before."""
    dead, _ = hosts
    world = dead.world
    (lost,) = world.serving()
    await cut_off(dead)
    dead.link.state = LinkState.ANSWERS_LOST
    await world.clock.advance(10)
    assert dead.row.health is NodeHealth.DOWN
    assert [i.phase for i in world.instances() if i.id == lost.id] == [Phase.LOST]


async def test_a_node_that_was_removed_meanwhile_comes_back_as_a_new_one_with_nothing(
    hosts: tuple[Host, Host],
) -> None:
    dead, other = hosts
    world = dead.world
    (lost,) = world.serving()
    await cut_off(dead)
    removed = dead.row.id
    await world.control.commit(lambda unit: remove_node(unit, dead.row))
    await world.clock.until(lambda: any(i.id != lost.id for i in world.serving()), 15)
    dead.link.state = LinkState.UP
    await world.clock.advance(20)
    assert dead.row.id != removed
    assert await dead.running() == set()
    (new,) = world.live()
    assert await other.running() == {new.id}
