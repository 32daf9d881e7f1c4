"""Which nodes have a way to each other, so that edges on any of them reach the VMs of all. Pure.

A node's subnet is what it was given when it joined; that of a platform's first host is what it says itself. By which address
it is reached, only the node can know, and who lies about that is not reached himself: the address that he claims stays its
owner's as well. A subnet is one node's; that of a host which only says so gives way to one that was given. Why a node is not
reached, or may not be, is told: it serves all the same, only not through edges elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from shellwego.core.nodes import Node, NodeHealth
from shellwego.core.subnets import POOL


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerNode:
    """Another node: its VMs' subnet, and the address of its host."""

    subnet: str
    address: str


def is_host_address(text: str) -> bool:
    """Whether another host could be reached by it."""
    try:
        address = IPv4Address(text)
    except ValueError:
        return False
    special = address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
    return not special and address not in POOL


def subnet_of(node: Node) -> str:
    """Where the addresses of its VMs are; empty where that is not known."""
    return node.subnet or node.facts.subnet


def peers_by_node(nodes: Iterable[Node]) -> dict[str, PeerNode]:
    """By id: the nodes that can be reached from others."""
    return _sorted_out(nodes)[0]


def unreached(nodes: Sequence[Node]) -> dict[str, str]:
    """By id: why no other node has a way to the VMs of a node, or may have none, and the remedy, as `what — remedy`. Of
    those that are up, on a platform that hosts have joined."""
    if not any(node.subnet for node in nodes) or len(nodes) < 2:
        return {}
    faults = _sorted_out(nodes)[1]
    return {node.id: faults[node.id] for node in nodes if node.id in faults and node.health is not NodeHealth.DOWN}


def _sorted_out(nodes: Iterable[Node]) -> tuple[dict[str, PeerNode], dict[str, str]]:
    """Those with a way to them; and why the others have none, or these may have none after all."""
    found: dict[str, PeerNode] = {}
    faults: dict[str, str] = {}
    holders: dict[str, Node] = {}
    telling: dict[str, list[Node]] = {}
    for node in sorted(nodes, key=lambda node: (not node.subnet, node.created_at, node.id)):
        subnet, address = subnet_of(node), node.facts.address
        if fault := _fault(node, holders):
            faults[node.id] = f"no other node reaches its VMs: {fault}"
            continue
        holders[subnet] = node
        telling.setdefault(address, []).append(node)
        found[node.id] = PeerNode(subnet=subnet, address=address)
    for each in telling.values():
        faults |= _shared(each) if len(each) > 1 else {}
    return found, faults


def _shared(nodes: Sequence[Node]) -> dict[str, str]:
    """What is told of nodes that tell the same address, which is that of one of them at most: nobody knows whose."""
    told = {}
    for node in nodes:
        others = ", ".join(other.name for other in nodes if other is not node)
        told[node.id] = (
            f"other nodes may not reach its VMs: it tells the address {node.facts.address}, as {others} does"
            f" — Give each its own, there: --address IP; or, if one is gone: swg nodes rm"
        )
    return told


def _fault(node: Node, holders: Mapping[str, Node]) -> str:
    """`holders`: by subnet."""
    subnet = subnet_of(node)
    if not subnet:
        return "it does not tell where their addresses are — See its log."
    if not node.facts.address:
        return "it tells no address by which other hosts reach it — Give one there: --address IP"
    if (other := holders.get(subnet)) is not None:
        return f"their subnet {subnet} is that of node {other.name} — Remove one of the two, and join it anew."
    return ""
