"""Subnets of nodes: each has its own part of one pool, so that an address says which node a VM is on."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network

from shellwego.core.errors import ConflictError

POOL = IPv4Network("10.64.0.0/10")
PREFIX = 20


def is_subnet(text: str) -> bool:
    """Whether it is one of the pool's parts, in its one spelling."""
    try:
        network = IPv4Network(text)
    except ValueError:
        return False
    return network.prefixlen == PREFIX and network.subnet_of(POOL) and str(network) == text


def free_subnet(taken: Iterable[str]) -> str:
    """The first part of the pool that is not taken.

    Raises:
        ConflictError: there is none.
    """
    held = set(taken)
    for subnet in POOL.subnets(new_prefix=PREFIX):
        if str(subnet) not in held:
            return str(subnet)
    raise ConflictError(
        "no-subnet", f"each /{PREFIX} of {POOL} is some node's", resolution="Remove nodes that are gone."
    )
