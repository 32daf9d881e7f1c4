"""What tests of a `Host` share: names, addresses, and VMMs that are started and ended."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from base64 import b64encode
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host import addresses
from plasmavmc.host.configuration import Listener
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import (
    Bridge,
    Host,
    Limits,
    Member,
    ProcessId,
    Reach,
    Spawned,
    TapRequest,
    Underlay,
)
from plasmavmc.types import MIB, mac_of, vm_key

LIMITS = Limits(256 * MIB, 1000)
ONE, TWO = vm_key("vm_one"), vm_key("vm_two")
SUBNET = IPv4Network("10.64.16.0/20")
PREFIX = IPv6Network("fd12:3456:789a::/48")
DEADLINE_S = 5.0
FENCE_S = 0.6
ENCRYPTED = Reach(Underlay.WIREGUARD, IPv4Address("192.0.2.1"), 7184)
KEYS = tuple(b64encode(bytes([number]) * 32).decode() for number in (1, 2))


@dataclass(frozen=True, slots=True)
class HostRig:
    """A host with what a test needs beside it."""

    host: Host
    names: HostNames
    vmm: str
    """A program on the host's list."""
    listener: Listener
    """The one address that it may open."""
    network_in_use: IPv4Network
    """Overlaps something that the machine has already."""
    uids: range

    @property
    def bridge(self) -> Bridge:
        return bridge_in(self.names, SUBNET)

    def tap(self, key: str = ONE) -> TapRequest:
        return TapRequest(self.names.tap(key), mac_of(key))

    def member(self, key: str, number: int, network: str = "net_a") -> Member:
        return Member(self.names.tap(key), mac_of(key), SUBNET.network_address + number, network)

    def private_member(self, key: str, number: int) -> Member:
        """The same with an address on the private network."""
        member = self.member(key, number)
        return replace(member, ipv6=addresses.private_address(PREFIX, SUBNET, 1, member.ipv4))

    def argv(self, key: str = ONE, *more: str) -> tuple[str, ...]:
        """A machine without anything, which waits for ever."""
        name = ("-name", self.names.process(key))
        return (self.vmm, *name, "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", *more)


def bridge_in(names: HostNames, subnet: IPv4Network) -> Bridge:
    return Bridge(names.bridge, subnet.network_address + 1, subnet)


def identity(spawned: Spawned) -> ProcessId:
    return ProcessId(spawned.pid, spawned.start_time)


def has_ended(spawned: Spawned, timeout_s: float = 0) -> bool:
    return bool(select.select([spawned.pidfd], [], [], timeout_s)[0])


def let_go(spawned: Spawned) -> None:
    os.close(spawned.pidfd)
    os.close(spawned.stdout)


async def start(rig: HostRig, key: str = ONE) -> Spawned:
    await rig.host.uid_take(key)
    return await rig.host.vm_spawn(key, rig.argv(key), LIMITS, {})


async def end(rig: HostRig, spawned: Spawned, key: str = ONE) -> int | None:
    """Kill a VMM and reap it."""
    await rig.host.vm_signal(key, identity(spawned), signal.SIGKILL)
    assert await asyncio.to_thread(has_ended, spawned, DEADLINE_S)
    let_go(spawned)
    return await rig.host.vm_reap(key, identity(spawned))


async def refused(code: str, attempt: object) -> None:
    with pytest.raises(HostError) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.code == code
