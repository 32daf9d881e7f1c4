"""P7: placements a second on one core, from an empty fleet to a million instances, beside the loop over all nodes."""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from bench.measure import Result, percentile
from shellwego.core.fleet import Fleet, Peers
from shellwego.core.nodes import Backend, Node, NodeFacts
from shellwego.core.placement import Placement, PlacementRequest
from shellwego.core.placement_rules import PlacementRules, Spread
from tests.core import placement_spec

NODES = int(os.environ.get("BENCH_NODES", "10000"))
INSTANCES = int(os.environ.get("BENCH_INSTANCES", "1000000"))
COMPARED = int(os.environ.get("BENCH_COMPARED", "200"))
"""Placements that the loop makes, too, spread over the run; one of its own costs as much as thousands of ours."""
STRETCHES = 10
GIB, MIB = 1 << 30, 1 << 20
KVM = Backend(name="kvm", status="ready")
FIRECRACKER = Backend(name="firecracker", status="ready", max_memory_bytes=64 * GIB)


def nodes(count: int) -> list[Node]:
    """Three regions with three zones each, three sizes, five racks, two kinds of disk."""
    made = []
    for number in range(count):
        size = (64, 72, 96)[number % 3]
        facts = NodeFacts(
            hostname=f"host{number}",
            version="1",
            cpu_milli=size * 250,
            memory_bytes=size * GIB,
            disk_bytes=4000 * GIB,
            disk_free_bytes=3000 * GIB + number * MIB,
            backends=(KVM, FIRECRACKER) if number % 2 else (KVM,),
        )
        made.append(
            Node(
                id=f"node_{number:05}",
                name=f"node{number:05}",
                region=("eu", "us", "ap")[number // 3 % 3],
                zone=f"zone{number // 9 % 3}",
                labels={"disk": "ssd" if number % 4 else "hdd", "rack": f"r{number % 5}"},
                facts=facts,
                last_heard_at=0.0,
                created_at=0.0,
            )
        )
    return made


def apps(source: random.Random) -> Iterator[tuple[int, PlacementRequest]]:
    """How many instances each app has, and what one needs: few large ones, many small ones, some with conditions."""
    while True:
        rules = PlacementRules(
            region=source.choice(("", "", "", "eu", "us")),
            require=source.choice(({}, {}, {}, {"disk": "ssd"})),
            spread=source.choices((Spread.ZONE, Spread.NODE, Spread.NONE), (8, 1, 1))[0],
        )
        yield (
            source.choices((3, 20, 100, 1000), (60, 25, 13, 2))[0],
            PlacementRequest(
                cpu_milli=source.choice((250, 500, 1000)),
                memory_bytes=source.choices((256, 512, 1024, 4096), (50, 30, 15, 5))[0] * MIB,
                disk_bytes=4 * GIB,
                backend=source.choices((None, "firecracker"), (9, 1))[0],
                rules=rules,
            ),
        )


def wishes(source: random.Random) -> Iterator[tuple[PlacementRequest, Peers]]:
    """One request for each instance, with the counts of its process, which are the caller's to keep."""
    for count, request in apps(source):
        peers = Peers()
        for _ in range(count):
            yield request, peers


@dataclass(slots=True)
class Run:
    """A fleet that is filled; the seconds of each placement, of each refusal, and those of the loop."""

    fleet: Fleet
    known: list[Node]
    took: list[float] = field(default_factory=list)
    loop_took: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)

    def fill(self, count: int, compare_every: int) -> None:
        """Place so many, and compare each so many-th with the loop's choice."""
        for number, (request, peers) in enumerate(islice(wishes(random.Random(7)), count)):
            compared = self._by_loop(request, peers) if number % compare_every == 0 else None
            began = time.thread_time()
            outcome = self.fleet.place(request, peers)
            if isinstance(outcome, Placement):
                self.fleet.take(outcome.node_id, request, peers)
            (self.took if isinstance(outcome, Placement) else self.refusals).append(time.thread_time() - began)
            if compared is not None and compared != outcome:
                raise RuntimeError(f"placement {number}: {outcome}, the loop says {compared}")

    def _by_loop(self, request: PlacementRequest, peers: Peers) -> object:
        usage = {node.id: self.fleet.used(node.id) for node in self.known}
        began = time.thread_time()
        outcome = placement_spec.place(request, self.known, usage, peers.by_node)
        self.loop_took.append(time.thread_time() - began)
        return outcome

    def over(self) -> list[str]:
        """Nodes with more memory promised than they have."""
        return [n.name for n in self.known if self.fleet.used(n.id).memory_bytes > n.facts.memory_bytes]


def _rate(took: list[float]) -> str:
    return f"{len(took) / sum(took):,.0f} a second" if took else "none"


def run() -> list[Result]:
    known = nodes(NODES)
    filled = Run(Fleet(known), known)
    gc.collect()
    gc.freeze()
    filled.fill(INSTANCES, max(1, INSTANCES // COMPARED))
    if filled.over():
        raise RuntimeError(f"over capacity: {filled.over()[:5]}")
    rate = len(filled.took) / sum(filled.took)
    tail = percentile(filled.took, 0.99) * 1000
    size = len(filled.took) // STRETCHES
    stretches = [size / sum(filled.took[at * size : (at + 1) * size]) for at in range(STRETCHES)]
    flat = min(stretches) / stretches[0]
    loop = len(filled.loop_took) / sum(filled.loop_took)
    used = sum(filled.fleet.used(node.id).memory_bytes for node in known) / sum(n.facts.memory_bytes for n in known)
    return [
        Result(
            "P7",
            f"placement, {NODES} nodes, {INSTANCES} instances; the loop over all nodes chooses the same",
            f"{rate:,.0f}/s, p99 {tail:.2f} ms, slowest tenth {flat:.2f}× the first",
            "≥ 10,000/s on one core, p99 ≤ 2 ms, flat",
            rate >= 10_000 and tail <= 2 and flat >= 0.5,
            (
                f"by tenths of the run: {', '.join(f'{each:,.0f}' for each in stretches)} a second",
                f"the loop: {loop:.1f}/s, {rate / loop:,.0f}× slower; {len(filled.loop_took)} choices compared, all equal",
                f"slowest {max(filled.took) * 1000:.1f} ms, median {percentile(filled.took, 0.5) * 1e6:.0f} µs",
                f"{len(filled.refusals)} refused as their part of the fleet was full: {_rate(filled.refusals)}",
                f"{used:.0%} of the memory promised at the end, no node over capacity",
            ),
        )
    ]
