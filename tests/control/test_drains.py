"""Nodes that are emptied: everything moves, nothing is missing meanwhile, and what cannot move is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from shellwego.control import scheduling
from shellwego.control.drains import drain_plan
from shellwego.control.runs import RunWish, create_run
from shellwego.control.scheduling import DrainWish
from shellwego.core.apps import Process
from shellwego.core.deployments import DeploymentState
from shellwego.core.drain import DrainPlan
from shellwego.core.errors import InvalidError
from shellwego.core.images import ImageState
from shellwego.core.instances import Eviction, Instance, OwnerKind, Phase
from shellwego.core.nodes import NodeHealth, Scheduling
from shellwego.ports.store import eq
from tests.control.rollout_world import GIB, FakeNode, World, node_row

Wait = Callable[[], bool]


def plan(world: World, node: FakeNode) -> DrainPlan:
    found = world.peek(lambda tx: drain_plan(tx, node_row(world, node)))
    assert found is not None, "it is not being emptied"
    return found


def reasons(world: World, node: FakeNode) -> list[str]:
    return [waiting.reason for waiting in plan(world, node).waiting]


async def drain(world: World, node: FakeNode, **wish: object) -> None:
    await world.control.commit(lambda unit: scheduling.drain(unit, node_row(world, node), DrainWish(**wish)))  # type: ignore[arg-type]


async def uncordon(world: World, node: FakeNode) -> None:
    await world.control.commit(lambda unit: scheduling.uncordon(unit, node_row(world, node)))


def is_drained(world: World, node: FakeNode) -> Wait:
    return lambda: node_row(world, node).scheduling is Scheduling.DRAINED


def events(world: World, type_: str) -> list[dict[str, str]]:
    return [dict(event.data) for event in world.peek(lambda tx: tx.events.select(eq("type", type_)))]


class Watch:
    """The fewest that serve while the test goes on."""

    def __init__(self, world: World) -> None:
        self.least = len(world.serving())
        self._world = world

    def until(self, condition: Wait) -> Wait:
        def check() -> bool:
            self.least = min(self.least, len(self._world.serving()))
            return condition()

        return check


async def spread(world: World, count: int, *names: str, **numbers: object) -> list[FakeNode]:
    """So many instances over these nodes."""
    nodes = [await world.node(name) for name in names]
    await world.change_app(counts={"web": count})
    done = await world.finished(await world.deploy("hello:v1", **numbers))  # type: ignore[arg-type]
    assert done.state is DeploymentState.SUCCEEDED
    return nodes


async def test_all_that_a_node_runs_moves_and_none_is_missing_meanwhile(world: World) -> None:
    one, two, three = await spread(world, 6, "one", "two", "three")
    assert one.running() == 2
    watch = Watch(world)
    await drain(world, one)
    await world.clock.until(watch.until(is_drained(world, one)), 60)
    assert (watch.least, one.running(), two.running() + three.running()) == (6, 0, 6)
    assert node_row(world, one).drain is None
    assert sorted(i.slot for i in world.live()) == list(range(6))
    assert events(world, "node.drained") == [{"name": "one"}]


async def test_requests_reach_those_that_come_before_those_that_go_are_stopped(world: World) -> None:
    edge = await world.edge()
    one, two = await spread(world, 1, "one", "two")
    first = one if one.running() else two
    (old,) = world.serving()
    await world.clock.until(lambda: edge.endpoints() == {old.id}, 5)
    await drain(world, first)
    await world.clock.until(is_drained(world, first), 60)
    (new,) = world.serving()
    seen = [{e.instance_id for route in table.routes for e in route.endpoints} for table in edge.tables]
    began = next(n for n, endpoints in enumerate(seen) if old.id in endpoints)
    assert all(endpoints for endpoints in seen[began:]), "there was a table without anybody"
    assert seen[-1] == {new.id}


async def test_so_many_move_at_a_time(world: World) -> None:
    """Those that drain are on their way, too: here it takes each of them long."""
    edge = await world.edge()
    one, _, _ = await spread(world, 12, "one", "two", "three")
    edge.open_sessions = {i.id: 1 for i in world.serving()}
    await drain(world, one, parallel=2)
    most = 0
    for _ in range(15):
        await world.clock.advance(1)
        most = max(most, sum(i.evicted for i in world.live()))
    assert most == 2
    edge.open_sessions = {}
    await world.clock.until(is_drained(world, one), 60)


async def test_the_only_node_is_not_emptied_and_that_is_told(world: World) -> None:
    (one,) = await spread(world, 2, "one")
    before = {i.id for i in world.serving()}
    await drain(world, one)
    await world.clock.advance(30)
    assert {i.id for i in world.live()} == before
    assert reasons(world, one) == ["no node fits: 1 is draining"] * 2
    assert node_row(world, one).scheduling is Scheduling.DRAINING
    await world.node("two")
    await world.clock.until(is_drained(world, one), 60)
    assert len(world.serving()) == 2


async def test_what_fits_nowhere_else_stays_and_serves_and_the_filters_say_why(world: World) -> None:
    one = await world.node("one")
    await world.finished(await world.deploy("hello:v1", process=Process(memory_bytes=2 * GIB)))
    await world.node("two", memory_bytes=GIB)
    await drain(world, one)
    await world.clock.advance(10)
    assert len(world.serving()) == 1
    assert reasons(world, one) == ["no node fits: 1 is draining, 1 lacks memory (need 2 GiB, best has 1 GiB)"]


async def test_at_the_deadline_what_is_left_is_told_once_and_goes_on_serving(world: World) -> None:
    (one,) = await spread(world, 2, "one")
    await drain(world, one, deadline_s=5.0)
    await world.clock.advance(20)
    (told,) = events(world, "node.drain_overdue")
    assert (told["left"], told["waits"]) == ("2", "2: no node fits: 1 is draining")
    assert plan(world, one).overdue
    assert len(world.serving()) == 2


async def test_by_force_what_is_left_at_the_deadline_is_stopped(world: World) -> None:
    (one,) = await spread(world, 2, "one")
    await drain(world, one, deadline_s=5.0, force=True)
    await world.clock.advance(4)
    assert len(world.serving()) == 2
    await world.clock.until(is_drained(world, one), 60)
    assert one.running() == 0
    assert [i.phase for i in world.live()] == [Phase.PENDING] * 2, "they wait for a node"
    await world.node("two")
    await world.clock.until(lambda: len(world.serving()) == 2, 30)


async def test_an_uncordon_ends_it_and_what_has_begun_to_move_still_moves(world: World) -> None:
    one, two = await spread(world, 8, "one", "two")
    two.sick.add("sha256:hello:v1")  # what comes there is not healthy yet
    here = {i.id for i in world.serving() if i.node_id == one.node_id}
    await drain(world, one)
    await world.clock.until(lambda: sum(i.evicted for i in world.live()) == 4, 10)
    await world.clock.until(lambda: len(world.live()) == 10, 10)
    await uncordon(world, one)
    two.sick.clear()
    await world.clock.until(lambda: not any(i.evicted for i in world.live()) and len(world.live()) == 8, 60)
    await world.clock.advance(30)
    kept = here & {i.id for i in world.live()}
    assert len(kept) == 2, "a surge of two had begun"
    assert sorted(i.slot for i in world.live()) == list(range(8))
    assert node_row(world, one).scheduling is Scheduling.OPEN


async def test_an_uncordon_takes_back_what_waits_for_a_node(world: World) -> None:
    one, two = await spread(world, 2, "one", "two")
    here, there = (one, two) if one.running() == 1 else (two, one)
    assert (here.running(), there.running()) == (1, 1)
    await drain(world, here)
    await world.control.commit(lambda unit: scheduling.cordon(unit, node_row(world, there)))
    (moves,) = [i for i in world.live() if i.node_id == here.node_id]
    await world.control.commit(lambda unit: unit.tx.instances.update(replace(moves, eviction=Eviction.GENTLE)))
    await world.change_app()
    await world.clock.until(lambda: len(world.live()) == 3, 10)
    assert reasons(world, here) == ["another one cannot be placed: no node fits: 1 is cordoned, 1 is draining"]
    await uncordon(world, here)
    await world.clock.advance(5)
    assert {i.id for i in world.live()} == {i.id for i in world.serving()}
    assert moves.id in {i.id for i in world.live()}


async def test_a_node_that_dies_while_it_is_emptied_is_drained_and_its_instances_run_elsewhere(world: World) -> None:
    one, two = await spread(world, 2, "one", "two")
    two.sick.add("sha256:hello:v1")
    await drain(world, one)
    one.silent = True
    await world.clock.until(lambda: node_row(world, one).health is NodeHealth.DOWN, 10)
    two.sick.clear()
    await world.clock.until(is_drained(world, one), 10)
    await world.clock.until(lambda: len(world.serving()) == 2, 30)
    assert {i.node_id for i in world.live()} == {two.node_id}
    one.silent = False
    await world.clock.until(lambda: node_row(world, one).health is NodeHealth.READY, 10)
    await world.clock.until(lambda: one.vms == {}, 10)
    assert node_row(world, one).scheduling is Scheduling.DRAINED


async def test_two_nodes_are_emptied_at_once(world: World) -> None:
    one, two, three = await spread(world, 6, "one", "two", "three")
    watch = Watch(world)
    await drain(world, one)
    await drain(world, two)
    await world.clock.until(watch.until(lambda: is_drained(world, one)() and is_drained(world, two)()), 90)
    assert (watch.least, three.running()) == (6, 6)


async def test_a_deploy_goes_on_during_a_drain_and_nothing_new_comes_to_the_node(world: World) -> None:
    one, two, three = await spread(world, 6, "one", "two", "three")
    watch = Watch(world)
    await drain(world, one)
    deployment = await world.deploy("hello:v2")
    await world.clock.until(watch.until(lambda: world.deployment(deployment).finished_at is not None), 90)
    assert world.deployment(deployment).state is DeploymentState.SUCCEEDED
    await world.clock.until(watch.until(is_drained(world, one)), 60)
    assert watch.least == 6
    assert two.images_running() + three.images_running() == ["sha256:hello:v2"] * 6


async def test_a_deploy_that_still_fetches_its_image_holds_up_no_drain(world: World) -> None:
    one, *_ = await spread(world, 3, "one", "two", "three")
    await world.deploy("hello:v2", state=ImageState.FETCHING)
    watch = Watch(world)
    await drain(world, one)
    await world.clock.until(watch.until(is_drained(world, one)), 30)
    assert watch.least == 3


@pytest.mark.parametrize("count", [1, 9])
async def test_the_app_is_scaled_during_a_drain(world: World, count: int) -> None:
    one, two, three = await spread(world, 6, "one", "two", "three")
    watch = Watch(world)
    await drain(world, one)
    await world.change_app(counts={"web": count})
    await world.clock.until(watch.until(is_drained(world, one)), 60)
    await world.clock.until(lambda: len(world.live()) == len(world.serving()) == count, 60)
    assert watch.least >= min(count, 6)
    assert two.running() + three.running() == count


async def test_a_one_off_run_is_waited_for(world: World) -> None:
    one, two = await spread(world, 2, "one", "two")
    one.commands_end = two.commands_end = None
    run = await world.ask(lambda unit, app: create_run(unit, app, RunWish(command=("migrate",))))
    await world.clock.until(lambda: found(world, run).phase is Phase.HEALTHY, 10)
    at = one if found(world, run).node_id == one.node_id else two
    await drain(world, at)
    await world.clock.advance(20)
    assert reasons(world, at) == ["is a one-off run that has not ended"]
    (vm,) = [vm for vm in at.vms.values() if vm.instance_id == run.id]
    at.end(vm.vm_id, 0)
    await world.clock.until(is_drained(world, at), 10)


async def test_by_force_a_one_off_run_is_stopped(world: World) -> None:
    one, two = await spread(world, 2, "one", "two")
    one.commands_end = two.commands_end = None
    run = await world.ask(lambda unit, app: create_run(unit, app, RunWish(command=("migrate",))))
    await world.clock.until(lambda: found(world, run).phase is Phase.HEALTHY, 10)
    at = one if found(world, run).node_id == one.node_id else two
    await drain(world, at, deadline_s=3.0, force=True)
    await world.clock.until(is_drained(world, at), 30)
    assert found(world, run).phase is Phase.STOPPED


def found(world: World, instance: Instance) -> Instance:
    seen = world.peek(lambda tx: tx.instances.get(instance.id))
    assert seen is not None
    assert seen.owner is OwnerKind.RUN
    return seen


async def test_what_cannot_start_elsewhere_holds_up_no_other(world: World) -> None:
    one, two = await spread(world, 4, "one", "two")
    two.boots_fail = True
    await drain(world, one, parallel=1)
    await world.clock.until(lambda: any("failed" in reason for reason in reasons(world, one)), 30)
    assert len(world.serving()) == 4
    await world.clock.until(lambda: sum(i.evicted for i in world.live()) == 2, 10)
    two.boots_fail = False
    await world.clock.until(is_drained(world, one), 200)
    assert len(world.serving()) == 4


async def test_asked_again_it_changes_how(world: World) -> None:
    (one,) = await spread(world, 1, "one")
    await drain(world, one, deadline_s=100.0)
    begun = node_row(world, one).drain
    await world.clock.advance(7)
    await drain(world, one, deadline_s=100.0, force=True, parallel=3)
    order = node_row(world, one).drain
    assert order is not None
    assert begun is not None
    assert (order.since, order.force, order.parallel) == (begun.since, True, 3)
    assert order.deadline == pytest.approx((begun.deadline or 0) + 7, abs=0.5)
    assert len(events(world, "node.draining")) == 1


async def test_an_empty_node_is_drained_at_once_and_stays_so(world: World) -> None:
    one = await world.node("one")
    await drain(world, one)
    await world.clock.until(is_drained(world, one), 3)
    await drain(world, one)
    assert node_row(world, one).scheduling is Scheduling.DRAINED


@pytest.mark.parametrize(
    ("wish", "fields"),
    [
        ({"deadline_s": -1.0}, {"deadline"}),
        ({"deadline_s": 1e9, "parallel": 0}, {"deadline", "parallel"}),
        ({"parallel": 1001}, {"parallel"}),
        ({"force": True}, {"force"}),
    ],
)
async def test_a_wish_out_of_bounds_is_refused_by_field(
    world: World, wish: dict[str, object], fields: set[str]
) -> None:
    one = await world.node("one")
    with pytest.raises(InvalidError) as refused:
        await drain(world, one, **wish)
    assert {fault.field for fault in refused.value.errors} == fields
    assert node_row(world, one).scheduling is Scheduling.OPEN


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.9, 1.6])
async def test_a_platform_that_is_restarted_in_the_middle_goes_on_with_the_drain(world: World, moment: float) -> None:
    one, two, three = await spread(world, 6, "one", "two", "three")
    watch = Watch(world)
    await drain(world, one, parallel=1)
    for _ in range(3):
        await world.clock.advance(moment)
        await world.restart_loops()
    await world.clock.until(watch.until(is_drained(world, one)), 90)
    await world.clock.advance(5)
    assert (watch.least, len(world.live()), two.running() + three.running()) == (6, 6, 6)
