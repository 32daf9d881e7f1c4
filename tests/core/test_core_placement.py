"""Where instances go, and in which words they cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.nodes import Backend, Node, NodeFacts, NodeHealth, Scheduling
from shellwego.core.placement import NodeUsage, Placement, PlacementRequest, Refusal, place

GIB = 1 << 30
REQUEST = PlacementRequest(app_id="app", process="web", cpu_milli=1000, memory_bytes=2 * GIB, disk_bytes=GIB)
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


def refusal(*nodes: Node, request: PlacementRequest = REQUEST, usage: dict[str, NodeUsage] | None = None) -> Refusal:
    outcome = place(request, nodes, usage or {})
    assert isinstance(outcome, Refusal)
    return outcome


def test_instances_of_a_process_are_spread() -> None:
    usage = {"node_a": NodeUsage().plus(REQUEST)}
    assert place(REQUEST, [node("a", 64), node("b")], usage) == Placement("node_b")


def test_among_equals_the_emptiest_node_is_taken() -> None:
    other = replace(REQUEST, app_id="other")
    usage = {"node_a": NodeUsage().plus(other)}
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
