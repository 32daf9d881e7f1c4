"""A node's network in memory: addresses and rules are kept as values, a tap is a descriptor of nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from plasmavmc.errors import PlasmaError
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Guarding, Peer, RuleSet, Source
from plasmavmc.host.ports import NOTHING_PUBLISHED, PublishedPort, PublishSite
from plasmavmc.network.addressbook import AddressBook
from plasmavmc.network.backend import Attachment
from plasmavmc.network.members import Members
from plasmavmc.policy import Egress, Ingress
from plasmavmc.types import NetworkSpec, NetworkUsage


class MemoryNetwork:
    """`NetworkBackend` that obeys the contract without a host. `rules` is what would be in force."""

    def __init__(
        self,
        names: HostNames,
        subnet: IPv4Network,
        clock: Callable[[], float],
        *,
        publish: PublishSite = NOTHING_PUBLISHED,
        book: AddressBook | None = None,
    ) -> None:
        self._members = Members(names, subnet, book)
        self._publish = publish
        self._clock = clock
        self.rules: RuleSet | None = None
        self.cannot_limit = ""
        """Set it to what the kernel lacks."""
        self.wiped = ""
        """What others took away of the rules, which are None then."""
        self.tunnels_fail_with: PlasmaError | None = None
        """While set, tunnels that have ended cannot be had again."""
        self.guarding = Guarding("tcx", "")
        self.step = 0
        """How far the exchange of keys is, as it was told."""
        self.keys: tuple[str, ...] = ()
        """Its public keys, where it is reached by WireGuard."""
        self.encrypted_by = ""
        self.traffic: dict[str, NetworkUsage] = {}
        """What has passed whose interface, by key; set it."""

    @property
    def lacks_ipv6(self) -> str:
        return self._members.lacks_ipv6

    @property
    def unrecognized(self) -> int:
        return self._members.unrecognized

    async def usage(self, keys: Collection[str]) -> Mapping[str, NetworkUsage]:
        return {key: self.traffic[key] for key in keys if key in self._members and key in self.traffic}

    async def configure_bridge(self) -> None:
        self.rules = self._members.rules()

    async def make_room(self, spec: NetworkSpec) -> None:
        await self._members.make_room(spec)

    async def setup_tap(self, key: str, spec: NetworkSpec, *, opened: bool = True) -> Attachment:
        member = self._members.add(key, spec)
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) if opened else -1
        return Attachment(key, member.tap, self._members.lease_of(member), fd)

    async def admit(self, key: str) -> None:
        self.rules = self._members.rules()

    async def adopt(self, key: str, spec: NetworkSpec, ipv4: IPv4Address) -> Attachment:
        member = self._members.claim(key, spec, ipv4)
        return Attachment(key, member.tap, self._members.lease_of(member), -1)

    async def settle(self) -> None:
        self.rules = self._members.rules()

    async def heal(self) -> str:
        fault, self.wiped = self.wiped, ""
        if fault:
            self.rules = self._members.rules()
        return fault

    async def heal_tunnels(self) -> None:
        if self.tunnels_fail_with is not None:
            raise self.tunnels_fail_with

    @property
    def peers(self) -> tuple[Peer, ...]:
        """As they were told last."""
        return self._members.peers

    async def connect(self, peers: Sequence[Peer], step: int = 0) -> tuple[Peer, ...]:
        self._members.peers, self.step = tuple(peers), step
        await self._follow()
        return ()

    async def publish(self, ports: Sequence[PublishedPort]) -> None:
        self._members.published.publish(ports, self._publish.ports)
        await self._follow()

    async def retire(self, key: str) -> None:
        if self._members.retire(key):
            await self._follow()

    async def _follow(self) -> None:
        if self.rules is not None:
            self.rules = self._members.rules()

    async def restrict(self, key: str, egress: Egress) -> None:
        if self._members.restrict(key, egress):
            await self._follow()

    async def screen(self, key: str, identity: str, ingress: Ingress) -> None:
        if self._members.screen(key, identity, ingress):
            await self._follow()

    async def recognize(self, sources: Sequence[Source]) -> None:
        if self._members.recognize(sources):
            await self._follow()

    async def release(self, key: str) -> None:
        if self._members.remove(key, self._clock()):
            self.rules = self._members.rules()
