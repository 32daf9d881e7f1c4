"""What is told of a platform that was left in peace: who rightly serves on where it has to leave, and who does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from shellwego.core.apps import Release
from shellwego.core.instances import Eviction, Instance, Phase
from shellwego.core.nodes import Node, NodeFacts, Scheduling
from tests.core.app_builder import NOW, app, instance, release
from tests.sim.settled import MOST_S, QUIET_S, Patience, _apps, _drains, steps
from tests.sim.timeline import HostClock
from tests.sim.world import World

ROOM = 4
STABLE = release(1)
"""Of which two are wanted; each takes three of the four that a node has."""


class Rows:
    """A world as far as its rows go."""

    def __init__(
        self,
        *instances: Instance,
        sick: frozenset[str] = frozenset(),
        stable: Release = STABLE,
        flapping_since: float | None = None,
    ) -> None:
        shop = app(counts={"web": 2}, stable_release_id=stable.id)
        nodes = (
            node("a", scheduling=Scheduling.DRAINING),
            node("b", flapping_since=flapping_since),
            node("c", scheduling=Scheduling.CORDONED),
        )
        self._rows: Mapping[str, dict[str, Any]] = {
            "apps": {shop.id: shop},
            "releases": {each.id: each for each in (STABLE, stable)},
            "instances": {each.id: each for each in instances},
            "nodes": {each.id: each for each in nodes},
            "volumes": {},
            "deployments": {},
        }
        self.sick, self.exits = sick, frozenset[str]()
        self.store_clock = cast(HostClock, Rows)

    @staticmethod
    def now() -> float:
        return NOW + 30.0

    def rows(self, table: str) -> dict[str, Any]:
        return self._rows[table]


def node(name: str, **changes: Any) -> Node:
    facts = NodeFacts(hostname=name, version="1", cpu_milli=8, memory_bytes=ROOM, disk_bytes=8, backends=())
    return replace(Node(id=f"node_{name}", name=name, facts=facts, last_heard_at=NOW, created_at=NOW), **changes)


def row(id_: str, slot: int, node: str, of: Release = STABLE, memory: int = 3, **changes: Any) -> Instance:
    phase = Phase.HEALTHY if node else Phase.PENDING
    place = f"node_{node}" if node else ""
    return instance(of, slot, **{"id": id_, "phase": phase, "node_id": place, "memory_bytes": memory, **changes})


def faults(*instances: Instance, **world: Any) -> list[str]:
    seen = cast(World, Rows(*instances, **world))
    return [*_apps(seen), *_drains(seen)]


LEAVING = row("leaving", 0, "a", eviction=Eviction.GENTLE)
CAME = row("came", 0, "b")
WAITING = row("waiting", 1, "")
NOT_LEFT = "leaving has not left its node"


def test_one_whose_place_nobody_can_take_serves_on() -> None:
    assert faults(LEAVING, replace(WAITING, slot=0), row("two", 1, "b")) == []


def test_one_whose_slot_is_filled_serves_on_for_another_slot_whose_instance_waits_for_room() -> None:
    assert faults(LEAVING, CAME, WAITING) == []


def test_nobody_serves_on_once_enough_serve_without_it() -> None:
    found = faults(LEAVING, CAME, row("two", 1, "c"))
    assert NOT_LEFT in found
    assert "shop: 3 of 2 web are there" in found


def test_nobody_serves_on_where_there_is_room_for_the_one_that_waits() -> None:
    found = faults(LEAVING, CAME, replace(WAITING, memory_bytes=1))
    assert NOT_LEFT in found


def test_nobody_has_room_on_a_node_that_goes_down_again_and_again() -> None:
    assert faults(LEAVING, CAME, replace(WAITING, memory_bytes=1), flapping_since=NOW) == []


def test_where_as_many_are_there_as_may_be_one_that_waits_keeps_those_too_for_whom_nobody_could_come_yet() -> None:
    other = row("other", 1, "a", eviction=Eviction.GENTLE)
    assert faults(LEAVING, other, replace(WAITING, slot=0, memory_bytes=ROOM + 1)) == []
    assert {NOT_LEFT, "other has not left its node"} <= set(faults(LEAVING, other, replace(WAITING, slot=0)))


def test_one_that_waits_keeps_one_and_no_more() -> None:
    found = faults(LEAVING, row("second", 0, "a", eviction=Eviction.GENTLE), CAME, WAITING)
    assert "second has not left its node" in found


def test_one_for_whose_slot_nobody_was_to_come_has_been_forgotten() -> None:
    assert NOT_LEFT in faults(LEAVING, replace(WAITING, memory_bytes=ROOM + 1))


def test_nobody_serves_on_that_is_to_go_by_force() -> None:
    forced = replace(LEAVING, eviction=Eviction.FORCED)
    assert NOT_LEFT in faults(forced, CAME, WAITING)


def test_two_in_one_slot_are_one_too_few() -> None:
    assert "shop: 2 of 2 web are there" in faults(row("one", 0, "b"), row("two", 0, "c"))


@pytest.mark.parametrize("serves", [True, False])
def test_of_a_release_whose_image_never_serves_nobody_takes_the_place(serves: bool) -> None:
    fresh = release(2)
    came = [row(f"came{slot}", slot, "b", fresh, 1, phase=Phase.STARTING) for slot in range(2)]
    both = [LEAVING, replace(LEAVING, id="other", slot=1)]
    found = faults(*both, *came, stable=fresh, sick=frozenset() if serves else frozenset({fresh.image_digest}))
    assert (NOT_LEFT in found) is serves
    assert bool(found) is serves


def test_who_stands_still_is_waited_for_no_longer_than_the_quiet_lasts() -> None:
    patience = Patience(100.0)
    assert patience.lasts(100.0, {"one"})
    assert patience.lasts(99.9 + QUIET_S, {"one"})
    assert not patience.lasts(100.0 + QUIET_S, {"one"})


def test_each_step_is_waited_for_anew() -> None:
    patience = Patience(100.0)
    assert patience.lasts(120.0, {"one"})
    assert patience.lasts(119.9 + QUIET_S, {"two"}), "the first is done still, although its row is gone"
    assert patience.lasts(149.8 + QUIET_S, {"one", "two"})
    assert not patience.lasts(149.9 + QUIET_S, {"one", "two"})


def test_who_always_does_something_new_is_not_waited_for_without_end() -> None:
    patience = Patience(0.0)
    looks = (float(second) for second in range(1000))
    assert next(now for now in looks if not patience.lasts(now, {str(now)})) == MOST_S


def test_a_dead_node_is_found_out_before_anything_need_happen() -> None:
    patience = Patience(100.0, 60.0)
    assert patience.lasts(100.0, {"one"})
    assert patience.lasts(159.9 + QUIET_S, {"one"})
    assert not patience.lasts(160.0 + QUIET_S, {"one"})


@pytest.mark.parametrize("phase", list(Phase))
def test_an_instance_that_goes_on_has_not_come_to_where_it_stays(phase: Phase) -> None:
    there = instance(STABLE, phase=phase)
    reached = steps(cast(World, Rows(there)))
    assert bool(reached) is (phase in {Phase.HEALTHY, Phase.ASLEEP, Phase.STOPPED})
