"""A node that is emptied: what sleeps on it goes on with its memory elsewhere, or begins anew, and is never two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.control import sleep
from shellwego.control.nodes import accept
from shellwego.control.unit import Unit
from shellwego.core.assignments import NodeReport
from shellwego.core.errors import ConflictError, NotFoundError, UnavailableError
from shellwego.core.instances import Desired, Observed, Phase, Sleep
from shellwego.core.vms import VmPhase
from tests.agent.move_world import FILE, SECRET, Hosts


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Hosts]:
    made = Hosts(tmp_path)
    await made.open("new")
    yield made
    await made.close()


async def test_what_sleeps_goes_on_with_its_memory_on_another_node(hosts: Hosts) -> None:
    await hosts.drain()
    await hosts.settles()
    (moved,) = hosts.world.live()
    assert (moved.id != hosts.id, moved.node_id, moved.phase) == (True, hosts.new.id, Phase.ASLEEP)
    assert (moved.memory_of, moved.sleep, moved.slot) == ("", Sleep.ASLEEP, 0)
    assert hosts.old.views == []
    (vm,) = hosts.new.engine._vms.values()
    assert (vm.view.phase, vm.files) == (VmPhase.ASLEEP, {FILE: SECRET})
    assert [data["from"] for data in hosts.told("instance.memory_moved")] == [hosts.id]
    await hosts.ask(sleep.resume, moved.id)
    await hosts.clock.until(lambda: hosts.edge.endpoints() == {moved.id}, 60)
    assert hosts.new.runs_with_memory()
    assert hosts.instance(moved.id).observed.attempt == 1
    assert hosts.new.views[0].address


async def test_the_memory_is_never_nowhere_and_never_awake_on_its_way(hosts: Hosts) -> None:
    await hosts.drain()
    await hosts.watched(6)
    assert hosts.drained()


async def test_what_is_awake_is_replaced_as_ever(hosts: Hosts) -> None:
    await hosts.ask(sleep.resume, hosts.id)
    await hosts.clock.until(lambda: hosts.edge.endpoints() == {hosts.id}, 60)
    await hosts.drain()
    await hosts.settles()
    assert not hosts.new.has_memory()
    assert not hosts.told("instance.memory_moved")
    assert not hosts.told("instance.memory_left")


# Where it cannot go along


async def begins_anew(hosts: Hosts, why: str) -> None:
    await hosts.drain()
    await hosts.settles()
    (anew,) = hosts.world.live()
    assert (anew.phase, anew.sleep, anew.memory_of) == (Phase.HEALTHY, Sleep.AWAKE, "")
    assert hosts.edge.endpoints() == {anew.id}
    assert not any(host.has_memory() for host in hosts.all)
    [left] = hosts.told("instance.memory_left")
    assert left["from"] == hosts.id
    assert why in left["reason"]


async def test_a_host_that_is_not_alike_gets_one_that_begins_anew_and_says_what_differs(hosts: Hosts) -> None:
    hosts.new.engine.snapshot_host = (("program", "newer"),)
    await hosts.clock.until(lambda: "newer" in str(hosts.row(hosts.new).facts), 60)
    await begins_anew(hosts, "1 is unlike the one that the memory comes from (program)")


async def test_a_node_that_does_not_tell_what_it_is_gets_no_memory(hosts: Hosts) -> None:
    hosts.new.engine.snapshot_host = ()
    await hosts.clock.until(lambda: not hosts.row(hosts.new).facts.backends[0].snapshot_host, 60)
    await begins_anew(hosts, "1 cannot take the memory")


async def test_of_two_nodes_it_goes_to_the_one_that_is_alike(hosts: Hosts) -> None:
    hosts.new.engine.snapshot_host = (("program", "newer"),)
    alike = await hosts.join("alike")
    await hosts.clock.until(lambda: "newer" in str(hosts.row(hosts.new).facts), 60)
    await hosts.drain()
    await hosts.settles()
    assert alike.has_memory()


async def test_an_agent_without_a_way_to_memories_begins_anew(hosts: Hosts) -> None:
    await hosts.new.kill()
    hosts.new.fetches = False
    hosts.new.start()
    await begins_anew(hosts, "no way to the memory")


async def test_a_memory_that_is_damaged_on_its_way_is_not_gone_on_with(hosts: Hosts) -> None:
    hosts.new.engine.import_memory = _damaged  # type: ignore[method-assign]
    await begins_anew(hosts, "damaged")


async def _damaged(*_: object) -> None:
    raise ConflictError("snapshot-damaged", "the memory that was sent is damaged")


async def test_a_source_that_cannot_be_reached_is_tried_a_few_times_and_then_given_up(hosts: Hosts) -> None:
    await hosts.old.kill()
    await hosts.drain()
    await hosts.clock.until(lambda: bool(hosts.told("instance.memory_left")), 60)
    hosts.old.start()
    await hosts.settles()
    assert hosts.world.live()[0].phase is Phase.HEALTHY


async def test_a_source_that_is_away_for_a_moment_loses_nothing(hosts: Hosts) -> None:
    await hosts.old.kill()
    await hosts.drain()
    await hosts.clock.advance(2)
    hosts.old.start()
    await hosts.settles()
    assert hosts.new.has_memory()


async def test_a_node_that_dies_on_the_way_costs_nothing_and_a_third_takes_it(hosts: Hosts) -> None:
    await hosts.drain()
    await hosts.clock.until(lambda: hosts.successor() is not None and bool(hosts.successor().node_id), 60)  # type: ignore[union-attr]
    await hosts.new.kill()
    third = await hosts.join("third")
    await hosts.settles()
    (moved,) = hosts.world.live()
    assert (moved.node_id, moved.phase, third.has_memory()) == (third.id, Phase.ASLEEP, True)
    hosts.new.start()
    await hosts.clock.until(lambda: hosts.new.views == [], 60)


# Who wakes it meanwhile


async def test_nobody_can_wake_it_on_its_way_and_then_it_can_be_woken_where_it_is(hosts: Hosts) -> None:
    await hosts.drain()
    await hosts.clock.until(lambda: hosts.successor() is not None, 60)
    waiting = hosts.successor()
    assert waiting is not None
    for id_ in (hosts.id, waiting.id):
        with pytest.raises(ConflictError) as refused:
            await hosts.ask(sleep.resume, id_)
        assert refused.value.code == "memory-moving"
        assert waiting.id in refused.value.resolution
    await hosts.settles()
    await hosts.ask(sleep.resume, waiting.id)
    await hosts.clock.until(hosts.new.runs_with_memory, 60)


@pytest.mark.parametrize("moment", [0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2])
async def test_whenever_somebody_wants_it_awake_one_memory_runs_and_no_second(hosts: Hosts, moment: float) -> None:
    await hosts.drain()
    await hosts.clock.advance(moment)
    for _ in range(300):
        for id_ in [i.id for i in hosts.world.live()]:
            with suppress(ConflictError):
                await hosts.ask(sleep.resume, id_)
        await hosts.clock.advance(0.02)
        assert sum(host.runs_with_memory() for host in hosts.all) <= 1
    await hosts.settles()


async def test_a_copy_of_one_that_was_woken_all_the_same_is_not_its_successor(hosts: Hosts) -> None:
    """A server of the version before knows nothing of memories on their way, and wakes what it is told to."""
    waiting = await on_its_way(hosts)

    def woken_and_reported(unit: Unit) -> None:
        unit.tx.instances.update(replace(hosts.instance(), sleep=Sleep.AWAKE))
        copy = {waiting: Observed(phase=Phase.ASLEEP, attempt=1)}
        node = hosts.row(hosts.new)
        accept(unit, NodeReport(node_id=node.id, epoch=node.epoch, sequence=1000, facts=node.facts, instances=copy))

    await hosts.world.control.commit(woken_and_reported)
    assert hosts.instance(waiting).desired is Desired.STOP
    assert hosts.instance().desired is Desired.SERVE
    assert not hosts.told("instance.memory_moved")


async def test_a_drain_that_is_called_off_before_it_found_a_place_changes_nothing(hosts: Hosts) -> None:
    await hosts.drain()
    await hosts.world.change_app(stopped=True)
    await hosts.clock.until(lambda: not hosts.world.live(), 60)
    await hosts.clock.until(lambda: not hosts.old.views and not hosts.new.views, 60)


# Crashes


Crash = Callable[[Hosts], object]


async def _old_agent(hosts: Hosts) -> None:
    await hosts.old.kill()
    await hosts.clock.advance(0.5)
    hosts.old.start()


async def _new_agent(hosts: Hosts) -> None:
    await hosts.new.kill()
    await hosts.clock.advance(0.5)
    hosts.new.start()


async def _server(hosts: Hosts) -> None:
    await hosts.world.restart_loops()
    await hosts.streams.cut(hosts.old.id)


async def _links(hosts: Hosts) -> None:
    await hosts.streams.cut(hosts.old.id)


MOMENTS = [0.0, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.3]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("crash", [_old_agent, _new_agent, _server, _links])
async def test_whoever_dies_at_whatever_step_there_is_one_owner_and_nothing_left(
    hosts: Hosts, crash: Crash, moment: float
) -> None:
    await hosts.drain()
    await hosts.clock.advance(moment)
    await crash(hosts)  # type: ignore[misc]
    await hosts.watched(2)
    await hosts.settles()
    (owner,) = hosts.world.live()
    assert (owner.node_id, owner.phase) == (hosts.new.id, Phase.ASLEEP)
    assert hosts.old.views == []
    assert [view.phase for view in hosts.new.views] == [VmPhase.ASLEEP]
    assert hosts.new.has_memory()


# Who may have it


async def fetch(hosts: Hosts, node_id: str, instance_id: str) -> bytes:
    async with aclosing(hosts.memories.memory(node_id, instance_id)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def on_its_way(hosts: Hosts) -> str:
    """The instance that waits for the memory, on a node that does not fetch it."""
    await hosts.new.kill()
    await hosts.drain()
    await hosts.clock.until(lambda: hosts.successor() is not None and bool(hosts.successor().node_id), 30)  # type: ignore[union-attr]
    waiting = hosts.successor()
    assert waiting is not None
    return waiting.id


async def test_only_the_node_that_is_to_have_it_gets_it_and_that_is_audited(hosts: Hosts) -> None:
    waiting = await on_its_way(hosts)
    for node_id, instance_id in (
        (hosts.old.id, waiting),
        ("node_none", waiting),
        (hosts.new.id, hosts.id),
        (hosts.new.id, "ins_none"),
    ):
        with pytest.raises(NotFoundError) as refused:
            await hosts.clock.run(fetch(hosts, node_id, instance_id))
        assert refused.value.code == "instance-not-found"
    assert not hosts.world.peek(lambda tx: tx.audit.select())
    assert SECRET in await hosts.clock.run(fetch(hosts, hosts.new.id, waiting))
    [record] = hosts.world.peek(lambda tx: tx.audit.select())
    assert (record.actor, record.action, record.resource) == (hosts.new.id, "instances:move-memory", hosts.id)


async def test_nobody_gets_it_once_it_has_arrived_or_is_awake(hosts: Hosts) -> None:
    waiting = await on_its_way(hosts)
    hosts.new.start()
    await hosts.settles()
    with pytest.raises(NotFoundError):
        await hosts.clock.run(fetch(hosts, hosts.new.id, waiting))


async def test_one_stream_of_it_at_a_time(hosts: Hosts) -> None:
    waiting = await on_its_way(hosts)
    async with aclosing(hosts.memories.memory(hosts.new.id, waiting)) as first:
        await anext(first)
        with pytest.raises(UnavailableError) as refused:
            await hosts.clock.run(fetch(hosts, hosts.new.id, waiting))
        assert refused.value.code == "memory-busy"
    assert SECRET in await hosts.clock.run(fetch(hosts, hosts.new.id, waiting))


async def test_a_memory_that_breaks_off_is_told_as_that(hosts: Hosts) -> None:
    waiting = await on_its_way(hosts)
    async with aclosing(hosts.memories.memory(hosts.new.id, waiting)) as chunks:
        await anext(chunks)
        await hosts.streams.cut(hosts.old.id)
        with pytest.raises(UnavailableError):
            async for _ in chunks:
                pass


async def test_what_is_to_stop_gets_no_memory(hosts: Hosts) -> None:
    waiting = await on_its_way(hosts)
    await hosts.world.change_app(stopped=True)
    await hosts.clock.until(lambda: hosts.instance(waiting).desired is not Desired.SERVE, 60)
    assert hosts.instance(waiting).desired is Desired.STOP
    with pytest.raises(NotFoundError):
        await hosts.clock.run(fetch(hosts, hosts.new.id, waiting))
