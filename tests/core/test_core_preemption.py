"""Who has to make room: the cheapest set on one node, by strict order of priority."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shellwego.core.nodes import Backend, Node, NodeFacts, NodeHealth, Scheduling
from shellwego.core.placement import NOTHING, NodeUsage, Placement, PlacementRequest, objection
from shellwego.core.placement_rules import PlacementRules, Spread
from shellwego.core.preemption import (
    GAP,
    MOST_EVICTED,
    MOST_NODES,
    Candidate,
    Preemption,
    Reserved,
    Victim,
    evictable,
    freed,
    plan_preemption,
    reserved,
    shortlist,
)
from tests.core import placement_spec, preemption_spec

MIB = 1 << 20
KVM = Backend(name="kvm", status="ready")


def node(name: str, memory: int = 4, cpu: int = 4000, **changes: object) -> Node:
    facts = NodeFacts(
        hostname=name,
        version="1",
        cpu_milli=cpu,
        memory_bytes=memory * MIB,
        disk_bytes=100 * MIB,
        backends=(KVM,),
        cpu_overcommit=1,
    )
    made = Node(id=f"node_{name}", name=name, facts=facts, last_heard_at=0.0, created_at=0.0)
    return replace(made, **changes)  # type: ignore[arg-type]


def asks(memory: int = 1, cpu: int = 100, spread: Spread = Spread.ZONE) -> PlacementRequest:
    rules = PlacementRules(spread=spread)
    return PlacementRequest(cpu_milli=cpu, memory_bytes=memory * MIB, disk_bytes=MIB, rules=rules)


def victim(name: str, priority: int, memory: int = 1, *, app: str = "", serves: bool = True) -> Victim:
    return Victim(
        instance_id=name,
        app_id=app or f"app_{name}",
        process="web",
        priority=priority,
        cpu_milli=100,
        memory_bytes=memory * MIB,
        disk_bytes=MIB,
        serves=serves,
    )


def full(where: Node, *victims: Victim, beside: int = 0) -> Candidate:
    used = replace(freed(victims), memory_bytes=where.facts.memory_bytes)
    return Candidate(node=where, used=used, victims=victims, beside=beside)


def names(found: Preemption | None) -> list[str]:
    return sorted(each.instance_id for each in found.victims) if found else []


MANY = Counter({f"app_{name}": 9 for name in "abcdefgh"} | {"app_shared": 9})


def test_only_what_is_clearly_lower_has_to_go() -> None:
    on = full(node("one"), victim("a", 50), victim("b", 41))
    assert names(plan_preemption(asks(), 51, [on], MANY)) == ["b"]
    assert plan_preemption(asks(), 50, [on], MANY) is None


def test_the_fewest_go_then_the_lowest() -> None:
    many = full(node("a"), victim("a", 0), victim("b", 0))
    one_large = full(node("b"), victim("c", 40, 2), victim("d", 30, 2))
    assert names(plan_preemption(asks(2), 80, [many, one_large], MANY)) == ["d"]
    assert names(plan_preemption(asks(2), 45, [many, one_large], MANY)) == ["d"]
    assert names(plan_preemption(asks(2), 35, [many, one_large], MANY)) == ["a", "b"]


def test_one_of_several_beside_one_another_goes_before_one_alone() -> None:
    on = full(node("one"), victim("a", 40), victim("b", 40, app="app_shared"), victim("c", 40, app="app_shared"))
    assert names(plan_preemption(asks(), 50, [on], MANY)) == ["b"]


def test_of_equal_sets_the_one_on_the_better_place_goes() -> None:
    beside = full(node("a"), victim("a", 40), beside=1)
    apart = full(node("b"), victim("b", 40))
    assert names(plan_preemption(asks(), 50, [beside, apart], MANY)) == ["b"]


def test_the_last_that_serves_of_an_app_goes_only_where_nothing_else_helps() -> None:
    last, other = victim("a", 0), victim("b", 30)
    serving = {"app_a": 1, "app_b": 2}
    assert names(plan_preemption(asks(), 50, [full(node("one"), last, other)], serving)) == ["b"]
    assert names(plan_preemption(asks(), 50, [full(node("one"), last)], serving)) == ["a"]
    assert names(plan_preemption(asks(), 50, [full(node("one"), replace(last, serves=False), other)], serving)) == ["a"]


def test_two_of_an_app_of_which_two_serve_are_its_last() -> None:
    pair = (victim("a", 0, app="app_shared"), victim("b", 0, app="app_shared"))
    others = (victim("c", 30), victim("d", 30))
    serving = {"app_shared": 2, "app_c": 2, "app_d": 2}
    found = plan_preemption(asks(2), 50, [full(node("one"), *pair, *others)], serving)
    assert names(found) == ["a", "c"]


def test_what_eviction_cannot_mend_evicts_nobody() -> None:
    small = full(node("small", cpu=50), victim("a", 0))
    no_disk = node("disk")
    no_disk = replace(no_disk, facts=replace(no_disk.facts, disk_free_bytes=0))
    for candidate in (small, full(no_disk, victim("b", 0))):
        assert plan_preemption(asks(), 100, [candidate], MANY) is None


def test_no_more_than_so_many_go_for_one() -> None:
    tiny = [victim(f"v{n:02}", 0, app="app_shared") for n in range(20)]
    where = node("one", 20)
    assert len(names(plan_preemption(asks(MOST_EVICTED), 50, [full(where, *tiny)], {"app_shared": 30}))) == MOST_EVICTED
    assert plan_preemption(asks(MOST_EVICTED + 1), 50, [full(where, *tiny)], {"app_shared": 30}) is None


def test_a_hard_choice_ends_soon_with_a_set_that_makes_room() -> None:
    """Sizes with which nothing can be left out by a bound: all sets would be 10^8."""
    sizes = [3 + n % 7 for n in range(60)]
    crowd = [victim(f"v{n:02}", n % 40, size, app="app_shared") for n, size in enumerate(sizes)]
    candidate = full(node("one", sum(sizes)), *crowd)
    found = plan_preemption(asks(61), 50, [candidate], {"app_shared": 99})
    assert found is None or freed(found.victims).memory_bytes >= 61 * MIB


def test_the_shortlist_holds_the_nodes_that_lack_least() -> None:
    nodes = [node(f"n{n:02}", 10) for n in range(MOST_NODES + 4)]
    usage = {each.id: NodeUsage(memory_bytes=(10 + n) * MIB) for n, each in enumerate(nodes)}
    may_go = {each.id: NodeUsage(memory_bytes=99 * MIB) for each in nodes}
    assert shortlist(asks(), nodes[::-1], usage, may_go) == nodes[:MOST_NODES]


@pytest.mark.parametrize(
    "change",
    [{"health": NodeHealth.SUSPECT}, {"scheduling": Scheduling.CORDONED}, {"labels": {"taint/gpu": "yes"}}],
)
def test_a_node_that_is_no_place_is_not_on_it(change: dict[str, object]) -> None:
    where = node("one", **change)
    assert shortlist(asks(), [where], {}, {where.id: NodeUsage(memory_bytes=9 * MIB)}) == []


def test_a_node_without_enough_to_evict_is_not_on_it() -> None:
    where = node("one", 4)
    used = {where.id: NodeUsage(memory_bytes=4 * MIB)}
    assert shortlist(asks(2), [where], used, {where.id: NodeUsage(memory_bytes=MIB)}) == []
    assert shortlist(asks(2), [where], used, {where.id: NodeUsage(memory_bytes=2 * MIB)}) == [where]


class TestReservation:
    FULL = NodeUsage(memory_bytes=4 * MIB)
    TWO = NodeUsage(memory_bytes=2 * MIB, instances=2)

    def test_it_is_placed_as_soon_as_there_is_room(self) -> None:
        assert reserved(asks(), node("one"), NodeUsage(memory_bytes=3 * MIB), self.TWO) == Placement("node_one")

    def test_it_waits_while_others_leave(self) -> None:
        words = "room is made on one: 2 of lower priority leave it"
        assert reserved(asks(), node("one"), self.FULL, self.TWO) == Reserved("node_one", words)

    def test_it_waits_for_a_node_that_is_suspect(self) -> None:
        found = reserved(asks(), node("one", health=NodeHealth.SUSPECT), NOTHING, self.TWO)
        assert isinstance(found, Reserved)

    @pytest.mark.parametrize("change", [{"health": NodeHealth.DOWN}, {"scheduling": Scheduling.CORDONED}])
    def test_it_lapses_with_its_node(self, change: dict[str, object]) -> None:
        assert reserved(asks(), node("one", **change), NOTHING, self.TWO) is None

    @pytest.mark.parametrize("leaving", [NOTHING, NodeUsage(memory_bytes=MIB, instances=1)])
    def test_it_lapses_where_what_leaves_makes_no_room(self, leaving: NodeUsage) -> None:
        assert reserved(asks(2), node("one"), self.FULL, leaving) is None


priorities = st.sampled_from([0, 20, 30, 40, 45, 50])


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for number in range(draw(st.integers(1, 3))):
        victims = tuple(
            replace(
                victim(f"v{number}{at}", draw(priorities), draw(st.integers(1, 3)), serves=draw(st.booleans())),
                app_id=draw(st.sampled_from(["app_a", "app_b", "app_c"])),
                cpu_milli=draw(st.sampled_from([100, 100, 600])),
            )
            for at in range(draw(st.integers(0, 5)))
        )
        total = sum(each.memory_bytes for each in victims) // MIB + draw(st.integers(0, 1))
        where = node(f"n{number}", total, cpu=draw(st.sampled_from([1000, 3000])))
        used = freed(victims)
        found.append(Candidate(node=where, used=used, victims=victims, beside=draw(st.integers(0, 1))))
    return found


@settings(max_examples=150, deadline=None)
@given(
    among=candidates(),
    request=st.builds(asks, st.integers(1, 5), st.sampled_from([100, 900]), st.sampled_from(Spread)),
    priority=st.sampled_from([30, 50, 55, 100]),
    serving=st.fixed_dictionaries({}, optional={app: st.integers(1, 3) for app in ("app_a", "app_b", "app_c")}),
)
def test_the_choice_is_that_of_a_look_at_all_sets(
    among: list[Candidate], request: PlacementRequest, priority: int, serving: dict[str, int]
) -> None:
    among = [
        each
        for each in among
        if objection(request, each.node, each.used, choice=False) is not None  # there is no room
    ]
    found = plan_preemption(request, priority, among, serving)
    meant = preemption_spec.preempt(request, priority, among, serving)
    assert (found and (found.node, found.victims)) == meant
    if found:
        assert all(each.priority <= priority - GAP for each in found.victims)
        used = next(each.used for each in among if each.node == found.node)
        for spared in found.victims:
            rest = freed(each for each in found.victims if each is not spared)
            assert objection(request, found.node, used.without(rest), choice=False), "one less would do"


@dataclass
class Crowd:
    """Apps on nodes that are too small for them; what is evicted waits again."""

    nodes: list[Node]
    placed: dict[str, tuple[Node, Victim]] = field(default_factory=dict)
    waiting: list[Victim] = field(default_factory=list)
    evictions: list[tuple[int, int]] = field(default_factory=list)

    def usage(self) -> dict[str, NodeUsage]:
        return {each.id: freed(v for where, v in self.placed.values() if where is each) for each in self.nodes}

    def step(self) -> bool:
        """Whether anything changed: each that waits is placed, or makes room for itself."""
        changed = False
        for each in sorted(self.waiting, key=lambda v: v.instance_id):
            request = asks(each.memory_bytes // MIB)
            outcome = placement_spec.place(request, self.nodes, self.usage(), {})
            if isinstance(outcome, Placement):
                where = next(n for n in self.nodes if n.id == outcome.node_id)
            elif (found := plan_preemption(request, each.priority, self.candidates(), self.serving())) is not None:
                where = found.node
                self.evict(each, found.victims)
            else:
                continue
            self.waiting.remove(each)
            self.placed[each.instance_id] = where, each
            changed = True
        return changed

    def evict(self, by: Victim, victims: Sequence[Victim]) -> None:
        for gone in victims:
            self.evictions.append((by.priority, gone.priority))
            del self.placed[gone.instance_id]
            self.waiting.append(gone)

    def candidates(self) -> list[Candidate]:
        here = {n.id: tuple(v for where, v in self.placed.values() if where is n) for n in self.nodes}
        return [Candidate(node=n, used=freed(here[n.id]), victims=here[n.id]) for n in self.nodes]

    def serving(self) -> Mapping[str, int]:
        return Counter(v.app_id for _, v in self.placed.values())


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    crowd=st.lists(st.tuples(st.sampled_from(range(0, 101, 5)), st.integers(1, 3)), min_size=1, max_size=14),
)
def test_evictions_end_and_none_evicts_what_could_evict_it(sizes: list[int], crowd: list[tuple[int, int]]) -> None:
    world = Crowd([node(f"n{at}", size, cpu=64_000) for at, size in enumerate(sizes)])
    world.waiting = [victim(f"v{at:02}", priority, size) for at, (priority, size) in enumerate(crowd)]
    steps = 0
    while world.step():
        steps += 1
        assert steps <= 50 * len(crowd)
    assert all(lower <= higher - GAP for higher, lower in world.evictions)
    for each in world.nodes:
        assert world.usage()[each.id].memory_bytes <= each.facts.memory_bytes
    for left in world.waiting:
        assert not evictable((v for _, v in world.placed.values()), left.priority) or not plan_preemption(
            asks(left.memory_bytes // MIB), left.priority, world.candidates(), world.serving()
        )
