"""What placement means: a loop over all nodes. `core.fleet` must choose, and refuse, as this does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from shellwego.core.nodes import Node
from shellwego.core.placement import (
    NOTHING,
    NodeUsage,
    Placement,
    PlacementRequest,
    Rank,
    Refusal,
    objection,
    rank,
    refusal,
)


def place(
    request: PlacementRequest, nodes: Iterable[Node], usage: Mapping[str, NodeUsage], peers: Mapping[str, int]
) -> Placement | Refusal:
    """The node of the smallest rank among those without an objection; `peers` counts the same process by node."""
    known = list(nodes)
    in_zone: Counter[tuple[str, str]] = Counter()
    for node in known:
        in_zone[node.region, node.zone] += peers.get(node.id, 0)
    choice = any(node.dependable for node in known)
    judged = [(node, objection(request, node, usage.get(node.id, NOTHING), choice=choice)) for node in known]
    fitting = [node for node, fault in judged if fault is None]
    if not fitting:
        return refusal((fault, 1) for _, fault in judged if fault is not None)

    def order(node: Node) -> Rank:
        zone = in_zone[node.region, node.zone]
        return rank(request, node, usage.get(node.id, NOTHING), peers.get(node.id, 0), zone)

    return Placement(min(fitting, key=order).id)
