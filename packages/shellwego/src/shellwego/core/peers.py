"""Which nodes have a route to each other, so that edges on any of them reach the VMs of all. Pure.

Subnets and addresses. A node that joined has the subnet that it was given then; the first host of a platform states its
own. A subnet belongs to one node, and a stated one gives way to a given one. The address by which a node is reached is
something that only the node itself can know. Nothing is gained by a lie about it: the liar is not reached, and the
address that he claims stays its owner's as well. Why a node is not reached, or must not be, is reported: it serves all
the same, only not through edges on other nodes.

WireGuard. Nodes that are reached by WireGuard send nothing in clear, so there is no route between them and nodes that
are reached in another way. Their keys are exchanged in generations, each of which has two halves; the *step* counts
halves (`plasmavmc.host.rotation` has the theory). All nodes are told the same step, by the store's clock. Whoever asks
for new keys makes four halves pass quickly, in which both keys of each node are replaced: every second half ends a
generation, and the key that nobody uses is replaced in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from shellwego.core.addresses import node_network
from shellwego.core.nodes import Node, NodeHealth, Underlay
from shellwego.core.subnets import POOL

DAY_S = 86_400.0
ROTATION_STEPS, ROTATION_STEP_S = 4, 180.0
"""Halves that pass in an exchange which somebody asked for; and how long each lasts, in which all nodes hear of it and shake
hands."""
_NAMED = 3
"""So many nodes are named in one text."""
_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
"""The last letter holds four bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerNode:
    """Another node: its VMs' subnet, and the address of its host."""

    subnet: str
    address: str
    private: str = ""
    """Its VMs' part of the private network, a /64; empty: there is none."""
    underlay: Underlay = Underlay.PLAIN
    keys: tuple[str, ...] = ()
    """Of WireGuard, its two public keys in base64."""
    port: int = 0
    """Of WireGuard, the first of its two UDP ports."""


@dataclass(frozen=True, slots=True)
class Rotations:
    """Exchanges of keys that somebody asked for."""

    count: int = 0
    last_at: float = -math.inf
    """When the last one began."""

    @property
    def over_at(self) -> float:
        """When the last one is over, and time goes on as always."""
        return self.last_at + ROTATION_STEPS * ROTATION_STEP_S


NO_ROTATIONS = Rotations()


def key_step(now: float, generation_s: float, rotations: Rotations = NO_ROTATIONS) -> int:
    """How far the exchange of keys is, where each generation of them lasts so long. It never goes back as time passes."""
    steps, at = ROTATION_STEPS * rotations.count, now
    if now < rotations.over_at:
        at = rotations.last_at
        steps += 1 - ROTATION_STEPS + max(0, int((now - at) / ROTATION_STEP_S))
    return max(0, int(at * 2 / generation_s)) + steps


def keys_since(before: Sequence[str], since: Sequence[float], told: Sequence[str], now: float) -> tuple[float, ...]:
    """Since when a node has the keys that it tells, where before it had told those."""
    known = dict(zip(before, since, strict=False))
    return tuple(known.get(key, now) for key in told)


def is_public_key(text: str) -> bool:
    """Whether a text is a key of 32 bytes in the one form that it is written in."""
    return _KEY.fullmatch(text) is not None


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


def peers_by_node(nodes: Iterable[Node], prefix: str = "") -> dict[str, PeerNode]:
    """By id: the nodes that can be reached from others, on a platform of this private prefix."""
    reached = _sorted_out(nodes)[0]
    if not prefix:
        return reached
    return {id_: replace(each, private=node_network(prefix, each.subnet)) for id_, each in reached.items()}


def peers_of(node_id: str, book: Mapping[str, PeerNode]) -> tuple[PeerNode, ...]:
    """Which of all that can be reached a node is told of. One that encrypts hears of all, so that it keeps in what it would
    send in clear; the others hear of each other."""
    own = book.get(node_id)
    if own is None:
        return ()
    all_others = (peer for id_, peer in book.items() if id_ != node_id)
    return tuple(each for each in all_others if _encrypts(own.underlay) or not _encrypts(each.underlay))


def without_keys_of_others(node_id: str, told: Sequence[str], nodes: Iterable[Node]) -> tuple[str, ...]:
    """The public keys that a node tells, or none where another one has told one of them: it had it first, since all hear
    of a key from its owner."""
    held = {key for node in nodes if node.id != node_id for key in node.facts.tunnel_keys}
    return () if held.intersection(told) else tuple(told)


def unreached(nodes: Sequence[Node]) -> dict[str, str]:
    """By id: why no other node has a way to the VMs of a node, or may have none, and the remedy, as `what — remedy`. Of
    those that are up, on a platform that hosts have joined."""
    if not any(node.subnet for node in nodes) or len(nodes) < 2:
        return {}
    found, faults = _sorted_out(nodes)
    up = [node for node in nodes if node.health is not NodeHealth.DOWN]
    faults = _apart([node for node in up if node.id in found]) | faults
    return {node.id: faults[node.id] for node in up if node.id in faults}


def _apart(nodes: Sequence[Node]) -> dict[str, str]:
    """What is told where some nodes encrypt and some do not, of all of them."""
    told = {}
    for node in nodes:
        encrypts = _encrypts(node.facts.underlay)
        others = [other.name for other in nodes if _encrypts(other.facts.underlay) != encrypts]
        if others:
            named = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
            one, other = ("it", "they do not") if encrypts else ("they", "it does not")
            told[node.id] = (
                f"there is no way between its VMs and those of {named}: {one} would encrypt (wireguard), and {other}"
                f" — Give all nodes the same: --underlay wireguard"
            )
    return told


def _encrypts(underlay: Underlay) -> bool:
    return underlay is Underlay.WIREGUARD


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
        found[node.id] = PeerNode(
            subnet=subnet,
            address=address,
            underlay=node.facts.underlay,
            keys=node.facts.tunnel_keys,
            port=node.facts.tunnel_port,
        )
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
    if _encrypts(node.facts.underlay) and not node.facts.tunnel_keys:
        return "it tells no public keys of its own for WireGuard — See its log."
    return ""
