"""Who is on the node's network: addresses and the rules' members. Shared by the drivers; touches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from plasmavmc.errors import ConflictError, HostError
from plasmavmc.host.addresses import node_network, prefix_from, prefix_of, private_address
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import MAX_SOURCES, PLAINLY, Bridge, Member, Peer, RuleSet, Source
from plasmavmc.network.addressbook import AddressBook
from plasmavmc.network.ipam import AddressPool, gateway_of
from plasmavmc.network.publishing import Publishing
from plasmavmc.policy import ANYBODY, Egress, Ingress
from plasmavmc.types import Lease, NetworkSpec, mac_of


class Members:
    """The VMs of an installation's subnet."""

    def __init__(
        self, names: HostNames, subnet: IPv4Network, book: AddressBook | None = None, web_port: int = 0
    ) -> None:
        self.bridge = Bridge(names.bridge, gateway_of(subnet), subnet)
        self._names = names
        self._pool = AddressPool(subnet, book)
        self._members: dict[str, Member] = {}
        self._own_prefix = prefix_from(names.key)
        self.lacks_ipv6 = ""
        """Why no VM gets an address of the private network; empty where they do."""
        self.peers: tuple[Peer, ...] = ()
        self.resolver = False
        """Members may ask the gateway for names."""
        self.reach = PLAINLY
        """How other nodes reach this one."""
        self.published = Publishing(web_port)
        """Ports of the platform."""
        self.connections = 0
        """So many each may have; 0: any number."""
        self._known: tuple[Source, ...] = ()
        """VMs of other nodes."""
        self.unrecognized = 0
        """So many of those that ingress here names were beyond the most, in the rules that were asked for last."""

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def tap_of(self, key: str) -> str:
        """The tap of `key`; empty where it has no place."""
        member = self._members.get(key)
        return "" if member is None else member.tap

    def find(self, key: str) -> Member | None:
        """The member that `key` is now, if it has a place."""
        return self._members.get(key)

    def take_back(self, key: str, changed: Member, before: Member) -> None:
        """Undo what made `key` this member; where it is another by now, that stands."""
        if self._members.get(key) is changed:
            self._members[key] = before

    def rules(self) -> RuleSet:
        """The rules for all members, in a stable order."""
        members = tuple(self._members[key] for key in sorted(self._members))
        reached = tuple(filter(self.reach.fits, self.peers))
        ports = self.published.open(self._members, reached)
        sealed = self.reach.ports
        peers = self.peers if sealed else reached
        named = self._named(members)
        self.unrecognized = len(named[MAX_SOURCES:])
        known = named[:MAX_SOURCES]
        answered = self.published.answered if peers else ()
        return RuleSet(self.bridge, members, peers, self.resolver, ports, self.connections, sealed, known, answered)

    def retire(self, key: str) -> bool:
        """Give `key` nothing new at published ports. Whether that changes anything."""
        return key in self._members and self.published.retire(key)

    @property
    def by_key(self) -> Mapping[str, Member]:
        return dict(self._members)

    async def make_room(self, spec: NetworkSpec) -> None:
        """What `add` would wait for the disk for. Raises `CapacityError`: no address is free."""
        if spec.ipv4 is None:
            await self._pool.look_ahead()

    def add(self, key: str, spec: NetworkSpec) -> Member:
        """Give `key` a place.

        Raises:
            ConflictError: it has one.
            CapacityError: no address is free.
        """
        if key in self._members:
            raise ConflictError("network-exists", f"VM {key} is on the network already")
        if spec.ipv4 is None:
            return self._note(key, spec, self._pool.take(key))
        return self.claim(key, spec, spec.ipv4)

    def claim(self, key: str, spec: NetworkSpec, ipv4: IPv4Address) -> Member:
        """Note that `key` has this address.

        Raises:
            ConflictError: it is another's, or not of this subnet.
        """
        try:
            self._pool.claim(key, ipv4)
        except ValueError as error:
            raise ConflictError("address-conflict", f"VM {key} cannot have {ipv4}: {error}") from error
        return self._note(key, spec, ipv4)

    def remove(self, key: str, now: float) -> bool:
        """Take a place away. False where there was none."""
        self._pool.release(key, now)
        self.published.forget(key)
        return self._members.pop(key, None) is not None

    def restrict(self, key: str, egress: Egress) -> bool:
        """Change what `key` may open connections to. False where it has no place."""
        member = self._members.get(key)
        if member is None:
            return False
        self._members[key] = replace(member, egress=egress)
        return True

    def screen(self, key: str, identity: str, ingress: Ingress) -> bool:
        """Change what `key` is known by, and what may be opened to it. False where it has no place."""
        member = self._members.get(key)
        if member is None:
            return False
        self._members[key] = replace(member, identity=identity, ingress=ingress)
        return True

    def recognize(self, sources: Iterable[Source]) -> bool:
        """Know these VMs of other nodes, and no others. Whether they are new."""
        away = {source.ipv6: source for source in sources if not self._is_own(source.ipv6)}
        known = tuple(away[address] for address in sorted(away))
        changed, self._known = known != self._known, known
        return changed

    def _is_own(self, address: IPv6Address) -> bool:
        """Of VMs here it is known who has which address."""
        return address in node_network(prefix_of(address), self.bridge.network)

    def _named(self, members: Sequence[Member]) -> tuple[Source, ...]:
        """Of the known ones, those that ingress here names."""
        rules = (member.ingress for member in members if member.ingress)
        named = {opening.identity for ingress in rules for opening in ingress} - {ANYBODY}
        return tuple(source for source in self._known if source.identity in named) if named else ()

    def lease_of(self, member: Member) -> Lease:
        bridge = self.bridge
        return Lease(member.ipv4, bridge.network, bridge.gateway, member.mac, member.ipv6, mac_of(bridge.name))

    def _note(self, key: str, spec: NetworkSpec, ipv4: IPv4Address) -> Member:
        tap = self._names.tap(key)
        if any(member.tap == tap and other != key for other, member in self._members.items()):
            self._pool.release(key, 0)
            raise HostError("tap-name", f"two VMs would share the tap {tap}", resolution="create the VM again")
        ipv6 = self._private(spec, ipv4)
        member = Member(tap, spec.actual_mac, ipv4, spec.network_id, ipv6, spec.egress, spec.identity, spec.ingress)
        self._members[key] = member
        return member

    def _private(self, spec: NetworkSpec, ipv4: IPv4Address) -> IPv6Address | None:
        if not spec.network_number or self.lacks_ipv6:
            return None
        prefix = spec.private_prefix or self._own_prefix
        return private_address(prefix, self.bridge.network, spec.network_number, ipv4)
