"""A node's network in memory: addresses and rules are kept as values, a tap is a descriptor of nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network

from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Peer, RuleSet
from plasmavmc.network.backend import Attachment
from plasmavmc.network.members import Members
from plasmavmc.types import NetworkSpec


class MemoryNetwork:
    """`NetworkBackend` that obeys the contract without a host. `rules` is what would be in force."""

    def __init__(self, names: HostNames, subnet: IPv4Network, clock: Callable[[], float]) -> None:
        self._members = Members(names, subnet)
        self._clock = clock
        self.rules: RuleSet | None = None
        self.cannot_limit = ""
        """Set it to what the kernel lacks."""

    async def configure_bridge(self) -> None:
        self.rules = self._members.rules()

    async def setup_tap(self, key: str, spec: NetworkSpec, *, opened: bool = True) -> Attachment:
        member = self._members.add(key, spec, self._clock())
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) if opened else -1
        return Attachment(key, member.tap, self._members.lease_of(member), fd)

    async def admit(self, key: str) -> None:
        self.rules = self._members.rules()

    async def adopt(self, key: str, spec: NetworkSpec, ipv4: IPv4Address) -> Attachment:
        member = self._members.claim(key, spec, ipv4)
        return Attachment(key, member.tap, self._members.lease_of(member), -1)

    async def settle(self) -> None:
        self.rules = self._members.rules()

    async def connect(self, peers: Sequence[Peer]) -> tuple[Peer, ...]:
        self._members.peers = tuple(peers)
        if self.rules is not None:
            self.rules = self._members.rules()
        return ()

    async def release(self, key: str) -> None:
        if self._members.remove(key, self._clock()):
            self.rules = self._members.rules()
