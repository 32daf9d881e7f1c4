"""Where instances go, and in which words they cannot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shellwego.core.fleet import Fleet
from shellwego.core.nodes import Backend, DrainOrder, Node, NodeFacts, NodeHealth, Scheduling
from shellwego.core.placement import Home, NodeUsage, Placement, PlacementRequest, Refusal
from shellwego.core.placement_rules import PlacementRules, Spread

GIB = 1 << 30
REQUEST = PlacementRequest(cpu_milli=1000, memory_bytes=2 * GIB, disk_bytes=GIB)
KVM = Backend(name="kvm", status="ready")


def node(name: str, memory: float = 8, *, backends: tuple[Backend, ...] = (KVM,), **changes: object) -> Node:
    facts = NodeFacts(
        hostname=name,
        version="1",
        cpu_milli=4000,
        memory_bytes=int(memory * GIB),
        disk_bytes=100 * GIB,
        backends=backends,
    )
    made = Node(id=f"node_{name}", name=name, facts=facts, last_heard_at=0.0, created_at=0.0)
    return replace(made, **changes)  # type: ignore[arg-type]


def place(
    request: PlacementRequest, nodes: Iterable[Node], usage: dict[str, NodeUsage] | None = None, **peers: int
) -> Placement | Refusal:
    fleet = Fleet(nodes, usage)
    return fleet.place(request, fleet.peers(peers))


def refusal(*nodes: Node, request: PlacementRequest = REQUEST, usage: dict[str, NodeUsage] | None = None) -> Refusal:
    outcome = place(request, nodes, usage or {})
    assert isinstance(outcome, Refusal)
    return outcome


HOME = Home("node_a", "data")


@pytest.mark.parametrize("scheduling", [Scheduling.CORDONED, Scheduling.DRAINING])
def test_who_was_stopped_for_a_move_that_did_not_take_its_volume_away_comes_back_to_it(scheduling: Scheduling) -> None:
    there, comes = node("a", scheduling=scheduling), replace(REQUEST, home=HOME)
    why = f"no node fits: 1 holds the volume data and is {scheduling.value}"
    assert refusal(there, request=comes).reason == why
    returns = replace(REQUEST, home=replace(HOME, returns=True))
    assert place(returns, [there]) == Placement("node_a")
    stopped = replace(there, drain=DrainOrder(since=0.0, deadline=1.0, force=True, overdue=True))
    assert refusal(stopped, request=returns).reason == why
    drained = refusal(replace(there, scheduling=Scheduling.DRAINED), request=returns)
    assert drained.reason == "no node fits: 1 holds the volume data and is drained"


def test_instances_of_a_process_are_spread() -> None:
    usage = {"node_a": NodeUsage().plus(REQUEST)}
    assert place(REQUEST, [node("a", 64), node("b")], usage, node_a=1) == Placement("node_b")
    assert place(REQUEST, [node("a", 64), node("b")], usage, node_a=2, node_b=1) == Placement("node_b")


def test_instances_of_a_process_are_spread_over_zones_before_nodes() -> None:
    nodes = [node("a", zone="one"), node("b", zone="one"), node("c", zone="two")]
    used = {"node_c": NodeUsage(memory_bytes=5 * GIB)}
    assert place(REQUEST, nodes, used, node_a=1) == Placement("node_c")
    over_nodes = replace(REQUEST, rules=PlacementRules(spread=Spread.NODE))
    assert place(over_nodes, nodes, used, node_a=1) == Placement("node_b")


def test_a_zone_that_is_full_does_not_hold_up_what_fits_elsewhere() -> None:
    nodes = [node("a", zone="one"), node("c", 1, zone="two")]
    assert place(REQUEST, nodes, node_a=1) == Placement("node_a")


def test_zones_of_equal_name_in_two_regions_are_two() -> None:
    nodes = [node("a", region="eu", zone="1"), node("b", region="eu", zone="1"), node("c", region="us", zone="1")]
    assert place(REQUEST, nodes, node_a=1) == Placement("node_c")


def test_without_spread_the_fullest_node_with_room_is_taken() -> None:
    nodes = [node("a"), node("b"), node("c")]
    used = {"node_a": NodeUsage(memory_bytes=7 * GIB), "node_b": NodeUsage(memory_bytes=5 * GIB)}
    packed = replace(REQUEST, rules=PlacementRules(spread=Spread.NONE))
    assert place(packed, nodes, used, node_b=3) == Placement("node_b")


def test_region_zone_and_labels_must_be_met() -> None:
    nodes = [
        node("a", region="us"),
        node("b", region="eu", zone="two"),
        node("c", region="eu", zone="one", labels={"disk": "hdd"}),
        node("d", region="eu", zone="one", labels={"disk": "ssd", "gpu": "yes"}),
    ]
    rules = PlacementRules(region="eu", zone="one", require={"disk": "ssd"})
    assert place(replace(REQUEST, rules=rules), nodes) == Placement("node_d")
    outcome = refusal(*nodes[:3], request=replace(REQUEST, rules=rules))
    told = "1 lacks the label disk=ssd, 1 is not in the region eu, 1 is not in the zone one"
    assert outcome.reason == f"no node fits: {told}"


def test_a_taint_keeps_away_whatever_does_not_tolerate_it() -> None:
    nodes = [node("a", labels={"taint/gpu": "yes"}), node("b", 1, labels={"gpu": "yes"})]
    told = "no node fits: 1 lacks memory (need 2 GiB, best has 1 GiB), 1 has the taint gpu=yes"
    assert refusal(*nodes).reason == told
    assert refusal(*nodes, request=replace(REQUEST, rules=PlacementRules(tolerate={"gpu": "no"}))).reason == told
    assert place(replace(REQUEST, rules=PlacementRules(tolerate={"gpu": "yes"})), nodes) == Placement("node_a")


def test_what_flaps_gets_nothing_new_unless_there_is_nothing_else() -> None:
    flapping, steady = node("a", flapping_since=1.0), node("b", 1)
    told = "no node fits: 1 goes down again and again, 1 lacks memory (need 2 GiB, best has 1 GiB)"
    assert refusal(flapping, steady).reason == told
    assert place(REQUEST, [flapping]) == Placement("node_a")
    assert place(REQUEST, [flapping, replace(steady, health=NodeHealth.DOWN)]) == Placement("node_a")


def test_a_label_of_another_value_is_told_once_for_all_nodes() -> None:
    request = replace(REQUEST, rules=PlacementRules(require={"disk": "ssd"}))
    outcome = refusal(node("a"), node("b", labels={"disk": "hdd"}), request=request)
    assert outcome.reason == "no node fits: 2 lack the label disk=ssd"


def test_among_equals_the_emptiest_node_is_taken() -> None:
    usage = {"node_a": NodeUsage().plus(REQUEST)}
    assert place(REQUEST, [node("a"), node("b")], usage) == Placement("node_b")
    assert place(REQUEST, [node("a", 64), node("b", 3)], usage) == Placement("node_a")


def test_a_disk_that_is_full_now_is_no_place_and_is_one_again_when_it_has_room() -> None:
    full = node("a")
    full = replace(full, facts=replace(full.facts, disk_free_bytes=GIB // 2))
    assert refusal(full).reason == "no node fits: 1 lacks disk (need 1 GiB, best has 512 MiB)"
    assert place(REQUEST, [replace(full, facts=replace(full.facts, disk_free_bytes=GIB))], {}) == Placement("node_a")


def test_equal_nodes_are_told_apart_by_name() -> None:
    assert place(REQUEST, [node("b"), node("a")], {}) == Placement("node_a")


def test_a_refusal_counts_the_reasons_and_names_the_nearest_miss() -> None:
    nodes = (node("a", 1), node("b", 1.2), node("c", 0.5), node("d", scheduling=Scheduling.DRAINING))
    assert refusal(*nodes).reason == "no node fits: 3 lack memory (need 2 GiB, best has 1.2 GiB), 1 is draining"


def test_what_is_placed_is_taken_off() -> None:
    usage = {"node_a": NodeUsage(memory_bytes=7 * GIB)}
    assert refusal(node("a"), usage=usage).reason == "no node fits: 1 lacks memory (need 2 GiB, best has 1 GiB)"


def test_memory_is_never_promised_twice_but_cpu_is_shared() -> None:
    used = NodeUsage(cpu_milli=10_000)
    assert place(REQUEST, [node("a")], {"node_a": used}) == Placement("node_a")
    full = NodeUsage(cpu_milli=64_000)
    assert "lacks CPU" in refusal(node("a"), usage={"node_a": full}).reason


def test_cpu_and_disk_are_promised_as_often_as_the_node_says() -> None:
    careful = replace(node("a").facts, cpu_overcommit=1, disk_overcommit=2)
    used = {"node_a": NodeUsage(cpu_milli=3500, disk_bytes=200 * GIB)}
    assert "lacks CPU (need 1 CPU, best has 0.5 CPU)" in refusal(node("a", facts=careful), usage=used).reason
    small = replace(REQUEST, cpu_milli=500)
    assert "lacks disk" in refusal(node("a", facts=careful), usage=used, request=small).reason
    generous = replace(careful, cpu_overcommit=2, disk_overcommit=3)
    assert place(REQUEST, [node("a", facts=generous)], used) == Placement("node_a")


def test_one_instance_must_fit_into_what_the_node_has() -> None:
    big = replace(REQUEST, cpu_milli=5000)
    assert refusal(node("a"), request=big).reason == "no node fits: 1 lacks CPU (need 5 CPU, best has 4 CPU)"


def test_a_backend_that_still_probes_is_waited_for() -> None:
    outcome = refusal(node("a", backends=(Backend(name="kvm", status="probing"),)))
    assert outcome.reason == "no node fits: 1 is still probing (backend kvm)"


def test_a_ready_backend_beside_a_probing_one_is_taken() -> None:
    backends = (Backend(name="firecracker", status="probing"), KVM)
    assert place(REQUEST, [node("a", backends=backends)], {}) == Placement("node_a")
    wished = replace(REQUEST, backend="firecracker")
    assert "still probing" in refusal(node("a", backends=backends), request=wished).reason


def test_a_failed_probe_is_told_with_its_reason() -> None:
    broken = Backend(name="kvm", status="failed", reason="the guest sent no heart-beat")
    outcome = refusal(node("a", backends=(broken,)))
    assert outcome.reason == "no node fits: 1 has no usable backend (kvm: the guest sent no heart-beat)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"health": NodeHealth.SUSPECT}, "1 is suspect"),
        ({"health": NodeHealth.DOWN}, "1 is down"),
        ({"scheduling": Scheduling.CORDONED}, "1 is cordoned"),
        ({"backends": ()}, "1 lacks any backend"),
        ({"backends": (replace(KVM, max_memory_bytes=GIB),)}, "1 offers no backend for a VM of this size"),
    ],
)
def test_each_filter_has_its_words(changes: dict[str, object], words: str) -> None:
    assert refusal(node("a", **changes)).reason == f"no node fits: {words}"  # type: ignore[arg-type]


def test_a_backend_that_nobody_has_is_named() -> None:
    wished = replace(REQUEST, backend="firecracker")
    assert refusal(node("a"), node("b"), request=wished).reason == "no node fits: 2 lack the backend firecracker"


def test_without_nodes_the_first_is_waited_for() -> None:
    assert refusal() == Refusal("no node fits: no node has joined yet")


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 16), min_size=1, max_size=5),
    requests=st.lists(st.integers(1, 4), max_size=30),
)
def test_memory_is_never_over_committed_and_nothing_that_fits_is_refused(sizes: list[int], requests: list[int]) -> None:
    nodes = [node(f"n{place}", size) for place, size in enumerate(sizes)]
    usage: dict[str, NodeUsage] = {}
    for size in requests:
        request = replace(REQUEST, memory_bytes=size * GIB)
        free = [n.facts.memory_bytes - usage.get(n.id, NodeUsage()).memory_bytes for n in nodes]
        outcome = place(request, nodes, usage)
        assert outcome == place(request, list(reversed(nodes)), usage)
        assert isinstance(outcome, Placement) == (max(free) >= request.memory_bytes)
        if isinstance(outcome, Placement):
            usage[outcome.node_id] = usage.get(outcome.node_id, NodeUsage()).plus(request)
    for n in nodes:
        assert usage.get(n.id, NodeUsage()).memory_bytes <= n.facts.memory_bytes


def test_a_backend_for_modules_is_no_place_for_who_does_not_name_it() -> None:
    wasm = Backend(name="wasm", status="ready", isolation="wasm-sandbox")
    probing = node("a", backends=(Backend(name="kvm", status="probing"), wasm))
    assert refusal(probing).reason == "no node fits: 1 is still probing (backend kvm)"
    assert place(replace(REQUEST, backend="wasm"), [probing], {}) == Placement("node_a")


HOST = (("processor", "x"), ("program", "p"))
SLEEPY = replace(KVM, suspend=True, snapshot_host=HOST)


def test_a_memory_goes_to_a_host_like_the_one_that_it_comes_from() -> None:
    request = replace(REQUEST, memory=("kvm", HOST))
    newer = replace(SLEEPY, snapshot_host=(("processor", "x"), ("program", "q")))
    nodes = [node("a", 64, backends=(newer,)), node("b", backends=(SLEEPY,)), node("c", 64)]
    assert place(request, nodes) == Placement("node_b")
    assert refusal(nodes[0], nodes[2], request=request).reason == (
        "no node fits: 1 is unlike the one that the memory comes from (program), 1 cannot take the memory"
    )
    assert place(REQUEST, nodes) == Placement("node_a")


def test_a_memory_that_nobody_knows_the_host_of_goes_nowhere() -> None:
    request = replace(REQUEST, memory=("", ()))
    found = refusal(node("a", backends=(SLEEPY,)), node("b"), request=request)
    assert found.reason == "no node fits: 2 cannot take the memory"


def test_a_host_whose_backend_failed_takes_no_memory() -> None:
    other = replace(KVM, name="other")
    failed = node("a", backends=(replace(SLEEPY, status="failed"), other))
    assert "cannot take" in refusal(failed, request=replace(REQUEST, memory=("kvm", HOST))).reason
