"""Private IPv6 addresses, which say whose they are. Pure.

    48 bits platform · 16 bits node · 32 bits network number · 32 bits the VM's IPv4 address

Theory. The first 48 bits are a unique local prefix with a random global id, one for a whole platform (RFC 4193, 3.1).
The node's 16 bits are the place of its subnet in the pool from which all nodes have theirs. So its /64 follows from
that subnet, and is routed as a whole. The number of a network is never given again.

So two VMs may talk if their addresses have the same platform and network number. That is one masked look-up on any
node. It needs no table of which VM is where, and cannot be out of date: where an IPv4 address is given to a VM of
another network later, its IPv6 address has that network's number. All of this rests on a VM not being able to send as
another, which its tap sees to.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from plasmavmc.host.configuration import POOL

GATEWAY = IPv6Address("fe80::1")
"""What every host speaks as to its own guests."""
PREFIX_LENGTH, NODE_LENGTH = 48, 64
MAX_NUMBER = 2**32 - 1
NETWORK_MASK = IPv6Address("ffff:ffff:ffff:0:ffff:ffff::")
"""What two addresses of one network share: platform and number."""
NODE_MASK = IPv6Address("ff00:0:0:ffff::")
"""What addresses of one node share, whichever platform's they are: that they are local, and the node."""
HOSTS = IPv6Network("fe80::73:7767:0:0/96")
"""Link-local addresses of nodes towards each other: with the IPv4 address that a node has there."""
_LOCAL = IPv6Network("fd00::/8")
_VXLAN_BITS = 24
_REMEMBERED = 8192
"""Addresses whose parts are known: those of a host are asked for again at each change of its rules."""
_NODE_BITS, _NUMBER_BITS = 64, 32
_SMALLEST_NODE_BITS = 12
"""Of an IPv4 address, those that do not tell the node: a node's subnet is a /20."""


def prefix_from(seed: str) -> IPv6Network:
    """A platform's /48 with a global id made of something that nobody else has (RFC 4193, section 3.2.2, with SHA-256)."""
    global_id = hashlib.sha256(f"private network {seed}".encode()).digest()[:5]
    return IPv6Network((b"\xfd" + global_id + bytes(10), PREFIX_LENGTH))


def is_prefix(network: IPv6Network) -> bool:
    """Whether it can be a platform's: a /48 of the locally assigned half of RFC 4193."""
    return network.prefixlen == PREFIX_LENGTH and network.subnet_of(_LOCAL)


def node_network(prefix: IPv6Network, subnet: IPv4Network) -> IPv6Network:
    """The /64 of the node whose VMs have their IPv4 addresses from `subnet`."""
    node = (int(subnet.network_address) - int(POOL.network_address)) >> _SMALLEST_NODE_BITS
    return IPv6Network((int(prefix.network_address) | node << _NODE_BITS, NODE_LENGTH))


def node_mark(subnet: IPv4Network) -> IPv6Address:
    """What the addresses of the node of `subnet` have under `NODE_MASK`."""
    return IPv6Address(int(_LOCAL.network_address) | int(node_network(_LOCAL, subnet).network_address) & int(NODE_MASK))


def private_address(prefix: IPv6Network, subnet: IPv4Network, number: int, ipv4: IPv4Address) -> IPv6Address:
    """The address of a VM of network `number`, on the node of `subnet`."""
    return IPv6Address(int(node_network(prefix, subnet).network_address) | number << _NUMBER_BITS | int(ipv4))


def prefix_of(address: IPv6Address) -> IPv6Network:
    """The platform's /48 of a private address."""
    return IPv6Network((address, PREFIX_LENGTH), strict=False)


@lru_cache(_REMEMBERED)
def node_of(address: IPv6Address) -> IPv6Network:
    """The node's /64 of a private address."""
    return IPv6Network((address, NODE_LENGTH), strict=False)


def number_of(address: IPv6Address) -> int:
    """The network number in a private address."""
    return int(address) >> _NUMBER_BITS & MAX_NUMBER


@lru_cache(_REMEMBERED)
def network_of(address: IPv6Address) -> IPv6Address:
    """Platform and network number of a private address, and nothing else: equal for whoever may talk."""
    return IPv6Address(int(address) & int(NETWORK_MASK))


def vxlan_number(network: IPv6Network) -> int:
    """The number of a platform's VXLAN (RFC 7348, section 5), of any network in its /48: the end of its global id."""
    return int(network.network_address) >> 128 - PREFIX_LENGTH & (1 << _VXLAN_BITS) - 1
