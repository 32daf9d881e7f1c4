"""The members of the rules in force, by what no two of them share: to check one more takes as long beside any number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from plasmavmc.host import addresses
from plasmavmc.host.helper.checks import check_member, check_sources, refusal
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Member, RuleSet, Source
from plasmavmc.host.ports import OpenPort


class Roster:
    """Rules with members that come and go. A change that is refused spoils it."""

    def __init__(self, names: HostNames, rules: RuleSet) -> None:
        """Raises `HostError` `helper-refused` where two members share what is one's own."""
        self._names = names
        self._rules = rules
        self._members: dict[str, Member] = {}
        self._macs: set[str] = set()
        self._ipv4s: set[IPv4Address] = set()
        self._networks: dict[IPv6Address, tuple[str, int]] = {}
        """Ids of networks by what addresses say of them, and how many members have such."""
        self._take(rules.members)

    @property
    def rules(self) -> RuleSet:
        return self._rules

    def member(self, tap: str) -> Member | None:
        """Who has that tap."""
        return self._members.get(tap)

    def change(
        self,
        added: Sequence[Member],
        removed: Sequence[str],
        ports: tuple[OpenPort, ...] | None,
        sources: tuple[Source, ...] | None = None,
    ) -> tuple[Member, ...]:
        """Have these in place of those that had these taps, who are returned, these open ports, which are not checked here,
        and these VMs of other nodes; None: those that there are. Raises `HostError` `helper-refused`."""
        gone = tuple(map(self._drop, removed))
        for member in added:
            check_member(self._names, self._rules.bridge, member)
        self._take(added)
        there = self._rules.ports if ports is None else ports
        known = self._rules.sources if sources is None else sources
        if sources is not None:
            check_sources(self._rules.bridge, sources)
        self._rules = replace(self._rules, members=tuple(self._members.values()), ports=there, sources=known)
        return gone

    def _take(self, members: Iterable[Member]) -> None:
        for member in members:
            for what, held in (("tap", self._members), ("mac", self._macs), ("ipv4", self._ipv4s)):
                if getattr(member, what) in held:
                    raise refusal("rules", f"two members share one {what}")
            self._members[member.tap] = member
            self._macs.add(member.mac)
            self._ipv4s.add(member.ipv4)
            if member.ipv6 is not None:
                self._count(member.ipv6, member.network_id, 1)

    def _drop(self, tap: str) -> Member:
        member = self._members.pop(tap, None)
        if member is None:
            raise refusal("rules", "a tap is to go that no member has")
        self._macs.discard(member.mac)
        self._ipv4s.discard(member.ipv4)
        if member.ipv6 is not None:
            self._count(member.ipv6, member.network_id, -1)
        return member

    def _count(self, address: IPv6Address, network_id: str, by: int) -> None:
        """What is one network by its addresses is one by its id."""
        network = addresses.network_of(address)
        known, members = self._networks.get(network, (network_id, 0))
        if known != network_id:
            raise refusal("rules", f"two networks share the number {addresses.number_of(address)}")
        if members + by:
            self._networks[network] = network_id, members + by
        else:
            del self._networks[network]
