"""Addresses of the private network, which say whose they are. Pure.

An IPv6 address holds the platform's /48, the node (the place of its subnet in the pool), the project's network number and
the VM's IPv4 address, in this order (docs/design/trust-boundaries.md). Nodes make them; here it is known what they must be.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from shellwego.core.subnets import POOL, PREFIX

MAX_NUMBER = 2**32 - 1
_ULA = 0xFD << 120
_GLOBAL_ID_BITS = 40


def global_id_from(seed: str) -> int:
    """Forty bits for a platform's prefix, of something that was never used before (RFC 4193, section 3.2.2)."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[: _GLOBAL_ID_BITS // 8])


@lru_cache(maxsize=16)  # a process has to do with one platform, and asks for each node's assignments
def prefix_of(global_id: int) -> str:
    """A platform's /48."""
    return str(IPv6Network((_ULA | global_id << 80, 48)))


def node_network(prefix: str, subnet: str) -> str:
    """The /64 of the node that has this subnet."""
    node = (int(IPv4Network(subnet).network_address) - int(POOL.network_address)) >> (32 - PREFIX)
    return str(IPv6Network((int(IPv6Network(prefix).network_address) | node << 64, 64)))


def private_address(prefix: str, subnet: str, number: int, ipv4: str) -> str:
    """The address of a VM of network `number` on that node."""
    node = int(IPv6Network(node_network(prefix, subnet)).network_address)
    return str(IPv6Address(node | number << 32 | int(IPv4Address(ipv4))))
