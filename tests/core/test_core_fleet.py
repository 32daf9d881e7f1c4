"""The index over many nodes: the same choice, and the same words, as a loop over all of them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from shellwego.core.fleet import Fleet
from shellwego.core.nodes import Backend, Node, NodeFacts, NodeHealth, Scheduling
from shellwego.core.placement import NOTHING, Home, NodeUsage, Placement, PlacementRequest, Refusal, objection
from shellwego.core.placement_rules import PlacementRules, Spread
from tests.core import placement_spec

MIB = 1 << 20
KVM = Backend(name="kvm", status="ready")
HOST = (("program", "p"),)
BACKENDS = (
    (KVM,),
    (replace(KVM, max_memory_bytes=600 * MIB),),
    (replace(KVM, max_vcpus=1), Backend(name="firecracker", status="probing")),
    (Backend(name="kvm", status="failed", reason="no /dev/kvm"),),
    (Backend(name="wasm", status="ready", isolation="wasm-sandbox"),),
    (replace(KVM, suspend=True, snapshot_host=HOST),),
    (replace(KVM, volumes=True), Backend(name="firecracker", status="ready", max_vcpus=1)),
)

few_labels = st.dictionaries(st.sampled_from(["disk", "gpu", "taint/gpu"]), st.sampled_from(["a", "b"]), max_size=2)
facts = st.builds(
    NodeFacts,
    hostname=st.just("host"),
    version=st.just("1"),
    cpu_milli=st.sampled_from([1000, 4000]),
    memory_bytes=st.sampled_from([512 * MIB, 1024 * MIB, 2000 * MIB, 0]),
    disk_bytes=st.sampled_from([1000 * MIB, 4000 * MIB]),
    disk_free_bytes=st.sampled_from([None, 100 * MIB, 900 * MIB]),
    backends=st.sampled_from([BACKENDS[0], *BACKENDS]),
    images=st.sampled_from([(), (), ("sha256:a",), ("sha256:a", "sha256:b")]),
)


@st.composite
def fleets(draw: st.DrawFn) -> list[Node]:
    names = draw(st.lists(st.integers(0, 99), unique=True, max_size=14))
    often = st.sampled_from
    return [
        Node(
            id=f"node_{99 - name:02}",
            name=f"n{name:02}",
            region=draw(often(["eu", "eu", "us"])),
            zone=draw(often(["one", "two", "three"])),
            labels=draw(few_labels),
            facts=draw(facts),
            health=draw(often([NodeHealth.READY] * 5 + [NodeHealth.SUSPECT])),
            scheduling=draw(often([Scheduling.OPEN] * 5 + [Scheduling.CORDONED])),
            flapping_since=draw(often([None, None, 1.0])),
            last_heard_at=0.0,
            created_at=0.0,
        )
        for name in names
    ]


rules = st.builds(
    PlacementRules,
    region=st.sampled_from(["", "", "eu"]),
    zone=st.sampled_from(["", "", "one"]),
    require=st.one_of(st.just({}), st.just({}), few_labels),
    tolerate=st.sampled_from([{}, {}, {"gpu": "a"}]),
    spread=st.sampled_from(Spread),
)
requests = st.builds(
    PlacementRequest,
    cpu_milli=st.sampled_from([50, 1000, 3000]),
    memory_bytes=st.sampled_from([1, 64 * MIB, 500 * MIB, 700 * MIB]),
    disk_bytes=st.sampled_from([1, 64 * MIB, 800 * MIB]),
    vcpus=st.sampled_from([1, 2]),
    backend=st.sampled_from([None, None, "kvm", "wasm"]),
    rules=rules,
    image=st.sampled_from(["", "sha256:a", "sha256:b", "sha256:c"]),
    memory=st.sampled_from([None, None, None, ("kvm", HOST), ("kvm", (("program", "q"),))]),
    volumes=st.sampled_from([False, False, True]),
    home=st.sampled_from([None, None, None, *(Home(f"node_{number}", "data") for number in (99, 98, 97, 50))]),
)


class Replayed:
    """The index beside the loop, fed with the same."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.usage: dict[str, NodeUsage] = {}
        self.peers: Counter[str] = Counter()
        self.fleet = Fleet(nodes)

    def place(self, request: PlacementRequest) -> Placement | Refusal:
        peers = self.fleet.peers(self.peers)
        outcome = self.fleet.place(request, peers)
        assert outcome == placement_spec.place(request, self.nodes.values(), self.usage, self.peers)
        if isinstance(outcome, Placement):
            node_id = outcome.node_id
            assert self.fleet.fits(node_id, request)
            assert objection(request, self.nodes[node_id], self.usage.get(node_id, NOTHING), choice=False) is None
            self.usage[node_id] = self.usage.get(node_id, NOTHING).plus(request)
            self.peers[node_id] += 1
            self.fleet.take(node_id, request, peers)
            assert peers == self.fleet.peers(self.peers)
        return outcome

    def change(self, node: Node) -> None:
        """The node of this place in the order becomes another, or is gone and comes back with nothing on it."""
        self.nodes[node.id] = node
        self.usage.pop(node.id, None)
        self.fleet.put(node, NOTHING)

    def forget(self, node: Node) -> None:
        self.nodes.pop(node.id, None)
        self.fleet.remove(node.id)


@settings(max_examples=150, deadline=None)
@given(nodes=fleets(), steps=st.lists(st.one_of(requests, fleets()), max_size=25))
def test_the_index_chooses_and_refuses_as_the_loop_over_all_nodes(
    nodes: list[Node], steps: list[PlacementRequest | list[Node]]
) -> None:
    both = Replayed(nodes)
    for step in steps:
        if isinstance(step, PlacementRequest):
            both.place(step)
            continue
        for node in step[:2]:
            both.change(node)
        for node in step[2:3]:
            both.forget(node)


@settings(max_examples=40, deadline=None)
@given(nodes=fleets(), request=requests, spread=st.sampled_from(Spread))
def test_nothing_is_placed_beyond_capacity_and_the_fleet_is_used_up(
    nodes: list[Node], request: PlacementRequest, spread: Spread
) -> None:
    request = replace(request, memory_bytes=64 * MIB, cpu_milli=1000, rules=replace(request.rules, spread=spread))
    both = Replayed(nodes)
    while isinstance(both.place(request), Placement):
        pass
    for node in nodes:
        used = both.fleet.used(node.id)
        assert used.memory_bytes <= node.facts.memory_bytes
        assert used == both.usage.get(node.id, NOTHING)
        assert not both.fleet.fits(node.id, request)


@settings(max_examples=60, deadline=None)
@given(nodes=fleets(), request=requests)
def test_a_refusal_counts_every_node_once_and_does_not_depend_on_their_order(
    nodes: list[Node], request: PlacementRequest
) -> None:
    outcome = Fleet(nodes).place(request)
    assert outcome == Fleet(list(reversed(nodes))).place(request)
    if isinstance(outcome, Refusal) and nodes:
        told = re.sub(r"\([^)]*\)", "", outcome.reason.removeprefix("no node fits: "))
        assert sum(int(part.split()[0]) for part in told.split(", ")) == len(nodes)


def many(count: int, *, cpu: int = 64_000) -> list[Node]:
    told = NodeFacts(
        hostname="h", version="1", cpu_milli=cpu, memory_bytes=1024 * MIB, disk_bytes=1 << 40, backends=(KVM,)
    )
    return [
        Node(id=f"node_{n:05}", name=f"n{n:05}", facts=told, last_heard_at=0.0, created_at=0.0) for n in range(count)
    ]


def test_lanes_of_many_nodes_are_split_and_emptied_again() -> None:
    nodes = many(700)
    both = Replayed(nodes)
    request = PlacementRequest(cpu_milli=50, memory_bytes=100 * MIB, disk_bytes=1)
    for _ in range(3):
        assert isinstance(both.place(request), Placement)
    for node in nodes:
        both.forget(node)
    assert both.place(request) == Refusal("no node fits: no node has joined yet")
    for node in nodes[:3]:
        both.change(node)
    assert both.place(request) == Placement("node_00000")


def test_nodes_that_are_full_in_cpu_only_are_stepped_over() -> None:
    nodes = many(600, cpu=1000)
    busy = {node.id: NodeUsage(cpu_milli=16_000) for node in nodes[:-1]}
    request = PlacementRequest(cpu_milli=1000, memory_bytes=MIB, disk_bytes=1)
    fleet = Fleet(nodes, busy)
    assert fleet.place(request) == Placement(nodes[-1].id)
    fleet.put(nodes[5], NOTHING)
    assert fleet.place(request) == Placement(nodes[5].id)


@st.composite
def alike(draw: st.DrawFn) -> list[tuple[Node, NodeUsage, int]]:
    """Nodes of which many are equal but for their images, with what is on them and how many peers."""
    often = st.sampled_from
    found = []
    for each in many(draw(st.integers(2, 12))):
        size, images = draw(often([100, 100, 200])), draw(often([(), (), (), ("sha256:a",)]))
        told = replace(each.facts, memory_bytes=size * MIB, images=images)
        used = NodeUsage(memory_bytes=size // draw(often([2, 2, 4])) * MIB, cpu_milli=draw(often([0, 0, 0, 1_024_000])))
        zone = draw(often(["one", "one", "two"]))
        found.append((replace(each, facts=told, zone=zone), used, draw(often([0, 0, 0, 1]))))
    return found


@settings(max_examples=120, deadline=None)
@given(among=alike(), spread=st.sampled_from(Spread), gone=st.integers(0, 3))
def test_of_nodes_that_are_equal_one_that_has_the_image_is_taken(
    among: list[tuple[Node, NodeUsage, int]], spread: Spread, gone: int
) -> None:
    both = Replayed([node for node, _, _ in among])
    both.peers = Counter({node.id: count for node, _, count in among if count})
    for node, used, _ in among:
        both.usage[node.id] = used
        both.fleet.put(node, used)
    rules = PlacementRules(spread=spread)
    request = PlacementRequest(cpu_milli=50, memory_bytes=10 * MIB, disk_bytes=1, rules=rules, image="sha256:a")
    for _ in range(3):
        both.place(request)
    for node, _, _ in among[:gone]:
        both.peers.pop(node.id, None)
        both.forget(node)
        both.change(replace(node, facts=replace(node.facts, images=())))
    both.place(request)


def test_an_emptier_node_comes_before_one_that_has_the_image() -> None:
    empty, holding = many(2)
    holding = replace(holding, facts=replace(holding.facts, images=("sha256:a",)))
    request = PlacementRequest(cpu_milli=50, memory_bytes=MIB, disk_bytes=1, image="sha256:a")
    fleet = Fleet([empty, holding], {holding.id: NodeUsage(memory_bytes=1)})
    assert fleet.place(request) == Placement(empty.id)
    fleet.take(empty.id, request)
    assert fleet.place(request) == Placement(holding.id)


def test_kinds_of_requests_that_are_long_unused_are_forgotten() -> None:
    nodes = [replace(node, labels={"rack": node.name}) for node in many(80)]
    both = Replayed(nodes)
    for node in (*nodes, *nodes[:3]):
        request = PlacementRequest(
            cpu_milli=50, memory_bytes=MIB, disk_bytes=1, rules=PlacementRules(require={"rack": node.name})
        )
        assert both.place(request) == Placement(node.id)


def test_a_node_that_flaps_is_taken_as_soon_and_as_long_as_there_is_no_other() -> None:
    steady, flapping = many(2)
    both = Replayed([steady, replace(flapping, flapping_since=1.0)])
    request = PlacementRequest(cpu_milli=50, memory_bytes=MIB, disk_bytes=1, rules=PlacementRules(spread=Spread.NONE))
    for health, taken in ((NodeHealth.READY, steady), (NodeHealth.DOWN, flapping), (NodeHealth.READY, steady)):
        both.change(replace(steady, health=health))
        assert both.place(request) == Placement(taken.id)


def test_requests_of_different_sizes_are_kept_apart_where_a_backend_has_a_limit() -> None:
    small, large = many(2)
    limited = replace(small.facts, backends=(replace(KVM, max_memory_bytes=64 * MIB, max_vcpus=2),))
    both = Replayed([replace(small, facts=limited), large])
    request = PlacementRequest(
        cpu_milli=50, memory_bytes=64 * MIB, disk_bytes=1, rules=PlacementRules(spread=Spread.NONE)
    )
    assert both.place(request) == Placement(small.id)
    assert both.place(replace(request, memory_bytes=65 * MIB)) == Placement(large.id)
    assert both.place(replace(request, vcpus=3)) == Placement(large.id)
