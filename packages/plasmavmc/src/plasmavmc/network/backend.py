"""Port: the network of one node.

Theory. Every VM sits alone: its tap is an isolated port of the bridge, its address a /32 with the bridge as on-link
gateway, so each packet passes the host, where one rule set decides. VMs of one `network_id` may talk to each other: by IPv4
on one node, and by private IPv6 addresses (`host.addresses`), where they have such, from any node to any. A VM may open
connections to the outside (source NAT) but not to the host, not to link-local addresses (cloud metadata), not to other
installations; the host may open connections to VMs (checks, the edge). A tap sends only as its own MAC and addresses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from plasmavmc.host.operations import Guarding, Member, Peer, Source
from plasmavmc.host.ports import PublishedPort
from plasmavmc.policy import Egress, Ingress
from plasmavmc.types import Lease, NetworkSpec, NetworkUsage


@dataclass(frozen=True, slots=True)
class Attachment:
    """A VM's interface on this node."""

    key: str
    tap: str
    lease: Lease
    fd: int
    """Descriptor of the tap, owned by the caller; -1 for an adopted VM, whose VMM holds it, and where none was opened."""


class NameService(Protocol):
    """Who answers the guests of this host when they ask for names."""

    @property
    def serves(self) -> bool:
        """Guests may ask it, at the gateway's address."""

    def admit(self, members: Mapping[str, Member]) -> None:
        """These are the VMs of this host, by key; each may ask from when it has an address."""


class NoNameService:
    """Nobody does: guests ask the resolvers of their host."""

    serves = False

    def admit(self, members: Mapping[str, Member]) -> None:
        """Nobody wants to know."""


NO_NAMES = NoNameService()


class NetworkBackend(Protocol):
    """Raises `CapacityError` when addresses run out and `HostError` for what the kernel refuses."""

    @property
    def cannot_limit(self) -> str:
        """Why interfaces cannot be held to a rate here; empty where they can. Known once the bridge is configured."""

    @property
    def guarding(self) -> Guarding:
        """How frames of VMs are checked here. Known once the bridge is configured."""

    @property
    def lacks_ipv6(self) -> str:
        """Why VMs get no private IPv6 address here; empty where they do. Known once the bridge is configured."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Our public keys where other nodes reach this one by WireGuard, for them to know. Known once the bridge is
        configured; they change (`host.rotation`)."""

    @property
    def encrypted_by(self) -> str:
        """Who encrypts then: `kernel`, or the slower `wireguard-go`."""

    @property
    def unrecognized(self) -> int:
        """So many VMs of other nodes that ingress here names are more than rules can know: they get in as anybody does."""

    async def usage(self, keys: Collection[str]) -> Mapping[str, NetworkUsage]:
        """What has passed the interfaces of these VMs, by key, but for those that have none, or whose frames are not
        counted."""

    async def configure_bridge(self) -> None:
        """Make the bridge and the rules for no VM, or bring what exists to shape. Idempotent; called at start."""

    async def make_room(self, spec: NetworkSpec) -> None:
        """Return when `setup_tap` of an interface like this one need not wait for the disk. Raises `CapacityError`: no
        address is free."""

    async def setup_tap(self, key: str, spec: NetworkSpec, *, opened: bool = True) -> Attachment:
        """Give VM `key` an address and a tap with its limits; all or nothing. The same key again: `ConflictError`. Not
        `opened`, there is a name only, for a VMM in a jail that gets its tap there.

        The VM is entered before anything is awaited: who reads what it may reach and calls this at once loses no change,
        for `restrict` and `screen` find the VM from then on. So `make_room` comes before that is read.

        It may be handed to a VMM, whose guest must not run before `admit`. A tap without rules lets no frame in.
        """

    async def admit(self, key: str) -> None:
        """Return when the rules for VM `key` are in force."""

    async def adopt(self, key: str, spec: NetworkSpec, ipv4: IPv4Address) -> Attachment:
        """Take note of the interface of a VM that lived through a restart; its rules are applied by `settle`."""

    async def settle(self) -> None:
        """Apply the rules for all adopted VMs in one go."""

    async def heal(self) -> str:
        """Put the rules back where others took them away; what was missing, in words, empty where nothing was."""

    async def heal_tunnels(self) -> None:
        """Have the tunnels to other nodes there again where they have ended."""

    async def connect(self, peers: Sequence[Peer], step: int = 0) -> tuple[Peer, ...]:
        """Let these other nodes, and no others, open connections to VMs here, and have a way to theirs. Returns those that
        this host cannot reach yet; asked again, it tries again. Before the bridge is configured they are only noted.
        `step`: how far the exchange of keys is."""

    async def restrict(self, key: str, egress: Egress) -> None:
        """Let VM `key` open connections elsewhere to these destinations only, or again to all that is not closed to every
        VM; those that it has open are held to it too. Returns when it is in force. Unknown keys are fine."""

    async def screen(self, key: str, identity: str, ingress: Ingress) -> None:
        """Have VM `key` be known by this identity, and let VMs of its network open to it what its ingress says only, or
        (None) anything; connections that they have open are held to it too. Returns when it is in force. Unknown keys are
        fine."""

    async def recognize(self, sources: Sequence[Source]) -> None:
        """Know these VMs of other nodes by their identity, and no others: who is not known is let in as anybody is. Of
        those that ingress here names at most `MAX_SOURCES` are; `unrecognized` tells of the rest. Before VMs of an earlier
        life are adopted they are only noted."""

    async def publish(self, ports: Sequence[PublishedPort]) -> None:
        """Have this host answer at these ports, and at no others, as `network.publishing` has it. Those that root did not
        allow are left out. Before the bridge is configured, or VMs of an earlier life are adopted, they are only noted."""

    async def retire(self, key: str) -> None:
        """Give VM `key` nothing new at published ports: it is about to stop. Connections that it has stay."""

    async def release(self, key: str) -> None:
        """Take address and rules away. Unknown keys are fine. An address rests before it is given out again."""
