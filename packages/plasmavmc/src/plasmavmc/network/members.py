"""Who is on the node's network: addresses and the rules' members. Shared by the drivers; touches nothing."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from plasmavmc.errors import ConflictError, HostError
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Bridge, Member, Peer, RuleSet
from plasmavmc.network.ipam import AddressPool, gateway_of
from plasmavmc.types import Lease, NetworkSpec, mac_of


class Members:
    """The VMs of an installation's subnet."""

    def __init__(self, names: HostNames, subnet: IPv4Network) -> None:
        self.bridge = Bridge(names.bridge, gateway_of(subnet), subnet)
        self._names = names
        self._pool = AddressPool(subnet)
        self._members: dict[str, Member] = {}
        self.peers: tuple[Peer, ...] = ()

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def rules(self) -> RuleSet:
        """The rules for all members, in a stable order."""
        return RuleSet(self.bridge, tuple(self._members[key] for key in sorted(self._members)), self.peers)

    def add(self, key: str, spec: NetworkSpec, now: float) -> Member:
        """Give `key` a place.

        Raises:
            ConflictError: it has one.
            CapacityError: no address is free.
        """
        if key in self._members:
            raise ConflictError("network-exists", f"VM {key} is on the network already")
        if spec.ipv4 is None:
            return self._note(key, spec, self._pool.take(key, now))
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
        return self._members.pop(key, None) is not None

    def lease_of(self, member: Member) -> Lease:
        return Lease(member.ipv4, self.bridge.network, self.bridge.gateway, member.mac)

    def _note(self, key: str, spec: NetworkSpec, ipv4: IPv4Address) -> Member:
        tap = self._names.tap(key)
        if any(member.tap == tap and other != key for other, member in self._members.items()):
            self._pool.release(key, 0)
            raise HostError("tap-name", f"two VMs would share the tap {tap}", resolution="create the VM again")
        member = Member(tap, spec.mac or mac_of(spec.id), ipv4, spec.network_id)
        self._members[key] = member
        return member
