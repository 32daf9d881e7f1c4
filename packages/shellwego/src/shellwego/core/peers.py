"""Which nodes have a way to each other, so that edges on any of them reach the VMs of all. Pure.

A node's subnet is what it was given when it joined; that of a platform's first host is what it says itself. By which address
it is reached, only the node can know, and who lies about that is not reached himself: the address that he claims stays its
owner's as well. A subnet is one node's; that of a host which only says so gives way to one that was given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from shellwego.core.nodes import Node
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
    found: dict[str, PeerNode] = {}
    subnets: set[str] = set()
    for node in sorted(nodes, key=lambda node: (not node.subnet, node.created_at, node.id)):
        subnet, address = subnet_of(node), node.facts.address
        if not subnet or not address or subnet in subnets:
            continue
        subnets.add(subnet)
        found[node.id] = PeerNode(subnet=subnet, address=address)
    return found
