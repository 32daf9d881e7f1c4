"""Whose turn it is to leave a node, and what the rest waits for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.drain import DrainFacts, VolumeLeft, plan_drain, released
from shellwego.core.evicted import EvictedFacts
from shellwego.core.instances import Desired, Eviction, Instance, OwnerKind, Phase
from shellwego.core.nodes import Backend, DrainOrder, Node, NodeFacts, Scheduling
from shellwego.core.placement import PlacementRequest

GIB = 1 << 30
ORDER = DrainOrder(since=0.0, parallel=2)
SERVING = Instance(
    id="ins_a",
    app_id="app_1",
    process="web",
    slot=0,
    release_id="rel_1",
    content_hash="c",
    generation=0,
    memory_bytes=GIB,
    cpu_milli=100,
    disk_bytes=GIB,
    node_id="node_1",
    phase=Phase.HEALTHY,
    created_at=0.0,
    phase_since=0.0,
)
EVICTED = replace(SERVING, eviction=Eviction.GENTLE)


def node(name: str, memory: int = 8, **fields: object) -> Node:
    facts = NodeFacts(
        hostname=name,
        version="1",
        cpu_milli=8000,
        memory_bytes=memory * GIB,
        disk_bytes=100 * GIB,
        backends=(Backend(name="kvm", status="ready"),),
    )
    made = Node(id=f"node_{name}", name=name, facts=facts, last_heard_at=0.0, created_at=0.0)
    return replace(made, **fields)  # type: ignore[arg-type]


HERE = node("1", scheduling=Scheduling.DRAINING, drain=ORDER)


def facts(*instances: Instance, order: DrainOrder = ORDER, memory: int = 8, **fields: object) -> DrainFacts:
    requests = {
        i.id: PlacementRequest(cpu_milli=100, memory_bytes=i.memory_bytes, disk_bytes=i.disk_bytes) for i in instances
    }
    made = DrainFacts(order=order, instances=instances, requests=requests, nodes=(HERE, node("2", memory)))
    return replace(made, **fields)  # type: ignore[arg-type]


def slots(count: int) -> list[Instance]:
    return [replace(SERVING, id=f"ins_{slot}", slot=slot) for slot in range(count)]


def test_nothing_left_is_the_end() -> None:
    assert plan_drain(facts(), 1.0).done


def test_as_many_go_as_may_move_at_a_time_and_the_rest_waits_for_its_turn() -> None:
    plan = plan_drain(facts(*slots(4)), 1.0)
    assert plan.evict == ("ins_0", "ins_1")
    assert [each.reason for each in plan.waiting if not each.moves] == ["waits for its turn: 2 move at a time"] * 2


def test_what_moves_already_counts() -> None:
    moving = replace(EVICTED, id="ins_x", slot=9)
    plan = plan_drain(facts(moving, *slots(4)), 1.0)
    assert plan.evict == ("ins_0",)


@pytest.mark.parametrize("desired", [Desired.DRAIN, Desired.STOP])
def test_what_drains_or_stops_counts_as_moving(desired: Desired) -> None:
    leaving = [replace(EVICTED, id=f"ins_x{n}", desired=desired) for n in range(2)]
    assert plan_drain(facts(*leaving, *slots(2)), 1.0).evict == ()


def test_no_more_go_than_have_room_elsewhere() -> None:
    plan = plan_drain(facts(*slots(4), order=replace(ORDER, parallel=9), memory=2), 1.0)
    assert plan.evict == ("ins_0", "ins_1")
    assert plan.waiting[0].reason == ("no node fits: 1 is draining, 1 lacks memory (need 1 GiB, best has 0 MiB)")


PENDING = replace(SERVING, id="ins_n", node_id="", phase=Phase.PENDING)


def test_one_that_cannot_go_on_holds_up_no_other() -> None:
    """What that is: see the tests of `core.evicted`."""
    failed = replace(PENDING, phase=Phase.FAILED, created_at=5.0)
    other = replace(SERVING, id="ins_other", app_id="app_2")
    one_at_a_time = facts(EVICTED, other, order=replace(ORDER, parallel=1))
    held_up = replace(one_at_a_time, evicted=EvictedFacts(relatives={"app_1": [failed]}))
    assert (plan_drain(one_at_a_time, 9.0).evict, plan_drain(held_up, 9.0).evict) == ((), ("ins_other",))


@pytest.mark.parametrize(("moving", "evicted"), [(True, ()), (False, ("ins_other",))])
def test_one_whose_volume_waits_for_something_holds_up_no_other(moving: bool, evicted: tuple[str, ...]) -> None:
    volume = VolumeLeft(volume_id="vol_1", name="data", instance_id=SERVING.id, moving=moving)
    other = replace(SERVING, id="ins_other", app_id="app_2")
    seen = facts(SERVING, other, order=replace(ORDER, parallel=1), volumes=(volume,))
    assert plan_drain(seen, 9.0).evict == evicted


def test_a_one_off_run_is_waited_for_and_holds_up_nothing() -> None:
    run = replace(SERVING, id="ins_run", owner=OwnerKind.RUN)
    plan = plan_drain(facts(run, *slots(2)), 1.0)
    assert plan.evict == ("ins_0", "ins_1")
    assert "one-off" in plan.waiting[0].reason


@pytest.mark.parametrize(("force", "stopped"), [(False, ()), (True, ("ins_0", "ins_run"))])
def test_after_the_deadline_what_is_left_is_told_and_by_force_stopped(force: bool, stopped: tuple[str, ...]) -> None:
    run = replace(SERVING, id="ins_run", owner=OwnerKind.RUN, app_id="app_2")
    order = DrainOrder(since=0.0, deadline=10.0, force=force)
    for now, late in ((9.9, False), (10.0, True)):
        plan = plan_drain(facts(*slots(1), run, order=order), now)
        assert (plan.overdue, plan.stop) == (late, stopped if late else ())


def test_who_was_forced_out_is_not_forced_again() -> None:
    order = DrainOrder(since=0.0, deadline=10.0, force=True)
    forced = replace(EVICTED, eviction=Eviction.FORCED)
    assert plan_drain(facts(forced, replace(EVICTED, id="ins_d", desired=Desired.DRAIN), order=order), 20.0).stop == ()


@pytest.mark.parametrize(
    ("relatives", "stay", "unneeded"),
    [
        ([], ["ins_a"], []),
        ([PENDING], ["ins_a"], ["ins_n"]),
        ([replace(PENDING, phase=Phase.STARTING)], [], []),
        ([replace(PENDING, eviction=Eviction.GENTLE)], ["ins_a"], []),
    ],
)
def test_who_has_not_begun_to_move_may_stay(relatives: list[Instance], stay: list[str], unneeded: list[str]) -> None:
    assert released([EVICTED, *slots(1)], {"app_1": relatives}) == (stay, unneeded)
    assert released([replace(EVICTED, desired=Desired.DRAIN)], {"app_1": relatives}) == ([], [])


def test_who_makes_room_for_another_goes_whatever_becomes_of_the_drain() -> None:
    preempted = replace(EVICTED, eviction=Eviction.FORCED, makes_room_for="ins_other")
    assert released([preempted], {"app_1": [PENDING]}) == ([], [])
