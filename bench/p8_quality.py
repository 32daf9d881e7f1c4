"""P8: how many nodes packing uses, against the fewest that any packing could."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace

from bench.measure import Result
from bench.p7_placement import GIB, KVM, MIB
from shellwego.core.fleet import Fleet
from shellwego.core.nodes import CPU_OVERCOMMIT, DISK_OVERCOMMIT, Node, NodeFacts
from shellwego.core.placement import Placement, PlacementRequest
from shellwego.core.placement_rules import PlacementRules, Spread

INSTANCES = int(os.environ.get("BENCH_PACKED", "50000"))
GOAL = 1.02
PACKED = PlacementRequest(cpu_milli=500, memory_bytes=GIB, disk_bytes=4 * GIB, rules=PlacementRules(spread=Spread.NONE))
FACTS = NodeFacts(
    hostname="host", version="1", cpu_milli=32_000, memory_bytes=64 * GIB, disk_bytes=2000 * GIB, backends=(KVM,)
)

Sizes = Callable[[random.Random], PlacementRequest]


def usual(source: random.Random) -> PlacementRequest:
    """The sizes people choose."""
    memory = source.choices((256, 512, 1024, 2048, 4096, 8192), (30, 25, 20, 12, 8, 5))[0] * MIB
    return replace(PACKED, memory_bytes=memory, cpu_milli=source.choice((250, 500, 1000, 2000)))


def odd(source: random.Random) -> PlacementRequest:
    """Any size up to a third of a node."""
    return replace(PACKED, memory_bytes=source.randint(128, 21_000) * MIB)


def busy(source: random.Random) -> PlacementRequest:
    """CPU runs out before memory."""
    return replace(PACKED, memory_bytes=source.randint(64, 512) * MIB, cpu_milli=source.randint(1000, 4000))


def fewest(requests: list[PlacementRequest]) -> int:
    """No packing uses fewer nodes: what is wanted of one resource, over what a node has of it."""
    amounts = (
        (sum(r.memory_bytes for r in requests), FACTS.memory_bytes),
        (sum(r.cpu_milli for r in requests), FACTS.cpu_milli * CPU_OVERCOMMIT),
        (sum(r.disk_bytes for r in requests), FACTS.disk_bytes * DISK_OVERCOMMIT),
    )
    return max(-(-wanted // has) for wanted, has in amounts)


def packed(sizes: Sizes) -> tuple[int, int]:
    """Nodes used, in the order in which the instances came, and the fewest possible."""
    source = random.Random(11)
    requests = [sizes(source) for _ in range(INSTANCES)]
    bound = fewest(requests)
    nodes = [
        Node(id=f"node_{n:05}", name=f"n{n:05}", facts=FACTS, last_heard_at=0.0, created_at=0.0)
        for n in range(bound * 2)
    ]
    fleet = Fleet(nodes)
    for request in requests:
        outcome = fleet.place(request)
        if not isinstance(outcome, Placement):
            raise RuntimeError(outcome.reason)
        fleet.take(outcome.node_id, request)
    usage = [fleet.used(node.id) for node in nodes]
    if any(
        used.memory_bytes > FACTS.memory_bytes
        or used.cpu_milli > FACTS.cpu_milli * CPU_OVERCOMMIT
        or used.disk_bytes > FACTS.disk_bytes * DISK_OVERCOMMIT
        for used in usage
    ):
        raise RuntimeError("a node is over capacity")
    return sum(used.instances > 0 for used in usage), bound


def run() -> list[Result]:
    """Instances of each mix, one after the other, none known before it comes."""
    found = {sizes.__name__: packed(sizes) for sizes in (usual, odd, busy)}
    worst = max(used / bound for used, bound in found.values())
    return [
        Result(
            "P8",
            f"nodes used by packing {INSTANCES} instances as they come, against the fewest possible",
            f"{worst:.3f}× in the worst of {len(found)} mixes; no node over capacity",
            f"≤ {GOAL}×; never over capacity",
            worst <= GOAL,
            tuple(
                f"{name}: {used} nodes, at least {bound}: {used / bound:.4f}×" for name, (used, bound) in found.items()
            ),
        )
    ]
