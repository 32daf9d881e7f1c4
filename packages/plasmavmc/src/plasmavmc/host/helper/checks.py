"""Is this value one that our own code would send? Pure; a refusal is an error, never a correction."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Sequence
from itertools import pairwise

from plasmavmc.errors import HostError
from plasmavmc.host.configuration import POOL
from plasmavmc.host.names import HostNames, is_cgroup_name, is_key
from plasmavmc.host.operations import Bridge, Limits, Member, Peer, RuleSet, TapRequest
from plasmavmc.types import GIB, MIB

SIGNALS = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSTOP, signal.SIGCONT})
_UNICAST_MAC = re.compile(r"[0-9a-f][26ae](:[0-9a-f]{2}){5}")
"""Locally administered, unicast."""
_LEAST_RATE, _MOST_RATE = 1024, 2**32 - 1
"""Bytes a second; the kernel's bucket takes 32 bits."""
MAX_PEERS = 1024
_NETWORK_ID = re.compile(r"[a-z0-9_-]{1,64}")


def refusal(what: str, why: str) -> HostError:
    """A value that the helper does not accept: a defect of the caller, or an attack on root."""
    return HostError("helper-refused", f"the root helper refused {what}: {why}")


def check_key(key: str) -> None:
    if not is_key(key):
        raise refusal("a key", f"{key!r:.40} is not 12 characters of base32")


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
    if not re.fullmatch(rf"{names.link_prefix}[a-z2-7]{{8}}", name):
        raise refusal("a tap", f"{name!r:.40} is not {names.link_prefix} and 8 characters of base32")


def check_own_tap(names: HostNames, key: str, tap: TapRequest) -> None:
    check_tap(names, tap)
    if tap.name != names.tap(key):
        raise refusal("a tap", f"{tap.name} is not that of VM {key}")


def check_rules(names: HostNames, rules: RuleSet) -> None:
    check_bridge(names, rules.bridge)
    check_peers(rules.peers)
    if any(peer.network.overlaps(rules.bridge.network) for peer in rules.peers):
        raise refusal("rules", f"a peer's network overlaps {rules.bridge.network}")
    for member in rules.members:
        _check_member(names, rules.bridge, member)
    for what in ("tap", "mac", "ipv4"):
        if len({getattr(member, what) for member in rules.members}) != len(rules.members):
            raise refusal("rules", f"two members share one {what}")


def check_peers(peers: Sequence[Peer]) -> None:
    """Networks of other nodes: apart from each other, and reached by an address that is no VM's."""
    if len(peers) > MAX_PEERS:
        raise refusal("peers", f"{len(peers)} are more than {MAX_PEERS}")
    for peer in peers:
        if not peer.network.subnet_of(POOL) or not 16 <= peer.network.prefixlen <= 29:
            raise refusal("a peer", f"{peer.network} is not a /16 to /29 of {POOL}")
        via = peer.via
        if via in POOL or via.is_loopback or via.is_multicast or via.is_unspecified or via.is_link_local:
            raise refusal("a peer", f"{via} is not the address of a host")
    ordered = sorted(peer.network for peer in peers)
    if any(before.overlaps(after) for before, after in pairwise(ordered)):
        raise refusal("peers", "two of their networks overlap")


def _check_member(names: HostNames, bridge: Bridge, member: Member) -> None:
    check_tap_name(names, member.tap)
    _check_mac(member.mac)
    if member.ipv4 not in bridge.network or member.ipv4 == bridge.gateway:
        raise refusal("rules", f"{member.ipv4} is not a member's address of {bridge.network}")
    if not _NETWORK_ID.fullmatch(member.network_id):
        raise refusal("rules", f"{member.network_id!r:.80} is not a network id")


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
