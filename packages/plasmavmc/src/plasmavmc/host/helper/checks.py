"""Is this value one that our own code would send? Pure; a refusal is an error, never a correction."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

from plasmavmc.errors import HostError
from plasmavmc.host import addresses
from plasmavmc.host.configuration import POOL
from plasmavmc.host.helper import connection_limits
from plasmavmc.host.helper.wireguard_device import is_key as is_public_key
from plasmavmc.host.names import HostNames, is_cgroup_name, is_key
from plasmavmc.host.operations import (
    MAX_SOURCES,
    Bridge,
    Limits,
    Member,
    Peer,
    Reach,
    RuleSet,
    Source,
    TapRequest,
    Underlay,
)
from plasmavmc.host.rotation import MAX_STEP, SLOTS
from plasmavmc.policy import MAX_DESTINATIONS, MAX_OPENINGS, Destination, Opening, is_identity
from plasmavmc.types import GIB, MIB

SIGNALS = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSTOP, signal.SIGCONT})
_UNICAST_MAC = re.compile(r"[0-9a-f][26ae](:[0-9a-f]{2}){5}")
"""Locally administered, unicast."""
_LEAST_RATE, _MOST_RATE = 1024, 2**32 - 1
"""Bytes a second; the kernel's bucket takes 32 bits."""
MAX_PEERS = 1024
LONGEST_FENCE_S = 24 * 3600.0
"""What is to end later than that from now is not fenced at all."""
_LEAST_PORT, _MOST_PORT = 1024, 65535
_NETWORK_ID = re.compile(r"[a-z0-9_-]{1,64}")


def refusal(what: str, why: str) -> HostError:
    """A value that the helper does not accept: a defect of the caller, or an attack on root."""
    return HostError("helper-refused", f"the root helper refused {what}: {why}")


def check_key(key: str) -> None:
    if not is_key(key):
        raise refusal("a key", f"{key!r:.40} is not 12 characters of base32")


def check_moment(until: float | None, now: float) -> None:
    """A moment at most a day from now."""
    if until is not None and not (math.isfinite(until) and until <= now + LONGEST_FENCE_S):
        raise refusal("a moment", f"{until!r:.40} is none, or too far away")


def check_bridge(names: HostNames, bridge: Bridge) -> None:
    if bridge.name != names.bridge:
        raise refusal("a bridge", f"{bridge.name!r:.40} is not {names.bridge}")
    network = bridge.network
    if not network.subnet_of(POOL) or not 16 <= network.prefixlen <= 29:
        raise refusal("a bridge", f"{network} is not a /16 to /29 of {POOL}")
    if bridge.gateway != network.network_address + 1:
        raise refusal("a bridge", f"{bridge.gateway} is not the first host of {network}")


def check_tap(names: HostNames, tap: TapRequest) -> None:
    check_tap_name(names, tap.name)
    _check_mac(tap.mac)
    for rate in (tap.receive, tap.transmit):
        if rate and not _LEAST_RATE <= rate <= _MOST_RATE:
            raise refusal("a tap", f"{rate} bytes a second")


def check_tap_name(names: HostNames, name: str) -> None:
    if not names.is_tap(name):
        raise refusal("a tap", f"{name!r:.40} is not {names.link_prefix} and 8 characters of base32")


def check_own_tap(names: HostNames, key: str, tap: TapRequest) -> None:
    check_tap(names, tap)
    if tap.name != names.tap(key):
        raise refusal("a tap", f"{tap.name} is not that of VM {key}")


def check_rules(names: HostNames, rules: RuleSet) -> None:
    """All but what no two members may share (`roster`)."""
    check_bridge(names, rules.bridge)
    check_peers(rules.peers)
    if rules.connections and not connection_limits.FEWEST <= rules.connections <= connection_limits.MOST:
        raise refusal("rules", f"{rules.connections} connections of one VM")
    if any(peer.network.overlaps(rules.bridge.network) for peer in rules.peers):
        raise refusal("rules", f"a peer's network overlaps {rules.bridge.network}")
    own = {addresses.node_of(member.ipv6) for member in rules.members if member.ipv6 is not None}
    if any(peer.private in own for peer in rules.peers):
        raise refusal("rules", "a peer's private network is our own")
    _check_ports(rules.tunnel_ports)
    check_sources(rules.bridge, rules.sources)
    for member in rules.members:
        check_member(names, rules.bridge, member)


def check_sources(bridge: Bridge, sources: Sequence[Source]) -> None:
    """VMs of other nodes, each once: what VMs here are is known by their taps."""
    if len(sources) > MAX_SOURCES:
        raise refusal("rules", f"{len(sources)} VMs of other nodes are more than {MAX_SOURCES}")
    if len({source.ipv6 for source in sources}) != len(sources):
        raise refusal("rules", "a VM of another node is there twice")
    for source in sources:
        prefix = addresses.prefix_of(source.ipv6)
        if not is_identity(source.identity):
            raise refusal("rules", f"{source.identity!r:.80} is not an identity")
        if not addresses.is_prefix(prefix) or source.ipv6 in addresses.node_network(prefix, bridge.network):
            raise refusal("rules", f"{source.ipv6} is not the private address of a VM of another node")


def check_peers(peers: Sequence[Peer]) -> None:
    """Networks of other nodes: apart from each other, and reached by an address that is no VM's."""
    if len(peers) > MAX_PEERS:
        raise refusal("peers", f"{len(peers)} are more than {MAX_PEERS}")
    for peer in peers:
        if not peer.network.subnet_of(POOL) or not 16 <= peer.network.prefixlen <= 29:
            raise refusal("a peer", f"{peer.network} is not a /16 to /29 of {POOL}")
        if not _is_hosts(peer.via):
            raise refusal("a peer", f"{peer.via} is not the address of a host")
        _check_private(peer)
        _check_keys(peer)
    ordered = sorted(peer.network for peer in peers)
    if any(before.overlaps(after) for before, after in pairwise(ordered)):
        raise refusal("peers", "two of their networks overlap")
    private = [peer.private for peer in peers if peer.private is not None]
    if len(set(private)) != len(private):
        raise refusal("peers", "two of them share a private network")
    keys = [key for peer in peers for key in peer.keys]
    if len(set(keys)) != len(keys):
        raise refusal("peers", "a public key is there twice")


def check_reach(reach: Reach) -> None:
    """What other nodes know this one by."""
    if reach.address is not None and not _is_hosts(reach.address):
        raise refusal("an address", f"{reach.address} is not that of a host")
    _check_ports(reach.ports)
    if not 0 <= reach.step <= MAX_STEP:
        raise refusal("an exchange of keys", f"{reach.step} is no step of it")


def _check_ports(ports: Sequence[int]) -> None:
    if len(ports) not in (0, len(SLOTS)) or any(not _LEAST_PORT <= port <= _MOST_PORT for port in ports):
        raise refusal("ports", f"{ports!r:.60} are not {len(SLOTS)} ports above root's own")


def _check_keys(peer: Peer) -> None:
    if not peer.keys:
        return
    if len(peer.keys) != len(SLOTS) or not all(map(is_public_key, peer.keys)):
        raise refusal("a peer", f"{peer.keys!r:.120} are not {len(SLOTS)} public keys")
    _check_ports([peer.port + slot for slot in SLOTS])


def _is_hosts(address: IPv4Address) -> bool:
    special = address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local
    return not special and address not in POOL


def _check_private(peer: Peer) -> None:
    if peer.private is None:
        if peer.underlay is Underlay.VXLAN:
            raise refusal("a peer", f"{peer.via} is reached by a tunnel, whose number its private network would tell")
        return
    prefix = addresses.prefix_of(peer.private.network_address)
    if not addresses.is_prefix(prefix) or peer.private != addresses.node_network(prefix, peer.network):
        raise refusal("a peer", f"{peer.private} is not the private network of {peer.network}")


def check_member(names: HostNames, bridge: Bridge, member: Member) -> None:
    check_tap_name(names, member.tap)
    _check_mac(member.mac)
    if member.ipv4 not in bridge.network or member.ipv4 == bridge.gateway:
        raise refusal("rules", f"{member.ipv4} is not a member's address of {bridge.network}")
    if not _NETWORK_ID.fullmatch(member.network_id):
        raise refusal("rules", f"{member.network_id!r:.80} is not a network id")
    if member.ipv6 is not None:
        _check_ipv6(bridge, member.ipv6, member.ipv4)
    if member.egress is not None:
        _check_egress(member.egress)
    if member.identity and not is_identity(member.identity):
        raise refusal("rules", f"{member.identity!r:.80} is not an identity")
    _check_ingress(member.ingress or ())


def _check_egress(destinations: Sequence[Destination]) -> None:
    if len(destinations) > MAX_DESTINATIONS:
        raise refusal("rules", f"{len(destinations)} destinations are more than {MAX_DESTINATIONS}")
    for destination in destinations:
        if fault := destination.fault:
            raise refusal("rules", f"a destination's {fault[0]}: {fault[1]}")


def _check_ingress(openings: Sequence[Opening]) -> None:
    if len(openings) > MAX_OPENINGS:
        raise refusal("rules", f"{len(openings)} openings are more than {MAX_OPENINGS}")
    for opening in openings:
        if fault := opening.fault:
            raise refusal("rules", f"an opening's {fault[0]}: {fault[1]}")


def _check_ipv6(bridge: Bridge, ipv6: IPv6Address, ipv4: IPv4Address) -> None:
    prefix, number = addresses.prefix_of(ipv6), addresses.number_of(ipv6)
    own = addresses.is_prefix(prefix) and ipv6 == addresses.private_address(prefix, bridge.network, number, ipv4)
    if not own or not number:
        raise refusal("rules", f"{ipv6} is not a private address of {ipv4} here")


def _check_mac(mac: str) -> None:
    if not _UNICAST_MAC.fullmatch(mac):
        raise refusal("a MAC address", f"{mac!r:.40} is not locally administered, unicast and in lower case")


def check_limits(limits: Limits) -> None:
    if not 16 * MIB <= limits.memory_bytes <= 16_384 * GIB:
        raise refusal("limits", f"{limits.memory_bytes} bytes of memory")
    if not 10 <= limits.cpu_milli <= 1_024_000:
        raise refusal("limits", f"{limits.cpu_milli} milli-CPU")
    if not 1 <= limits.pids <= 4096:
        raise refusal("limits", f"{limits.pids} processes")


def check_signal(number: int) -> None:
    if number not in SIGNALS:
        raise refusal("a signal", f"{number} is not one that a VMM may get")


def check_cgroup_name(name: str) -> None:
    if not is_cgroup_name(name):
        raise refusal("a cgroup", f"{name!r:.40} is not 1 to 32 characters of a-z and 0-9")


def check_fd_names(fds: Collection[str]) -> None:
    if any(not re.fullmatch(r"[a-z][a-z0-9]{0,15}", name) for name in fds) or len(set(fds)) != len(fds):
        raise refusal("descriptors", "their names are not distinct words of a-z and 0-9")
