"""Port: the network of one node.

Theory. Every VM sits alone: its tap is an isolated port of the bridge, its address a /32 with the bridge as on-link
gateway, so each packet passes the host, where one rule set decides. VMs of one `network_id` may talk to each other; a VM
may open connections to the outside (source NAT) but not to the host, not to link-local addresses (cloud metadata), not
to other installations; the host may open connections to VMs (checks, the edge). A tap sends only as its own MAC and
address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from plasmavmc.host.operations import Peer
from plasmavmc.types import Lease, NetworkSpec


@dataclass(frozen=True, slots=True)
class Attachment:
    """A VM's interface on this node."""

    key: str
    tap: str
    lease: Lease
    fd: int
    """Descriptor of the tap, owned by the caller; -1 for an adopted VM, whose VMM holds it, and where none was opened."""


class NetworkBackend(Protocol):
    """Raises `CapacityError` when addresses run out and `HostError` for what the kernel refuses."""

    @property
    def cannot_limit(self) -> str:
        """Why interfaces cannot be held to a rate here; empty where they can. Known once the bridge is configured."""

    async def configure_bridge(self) -> None:
        """Make the bridge and the rules for no VM, or bring what exists to shape. Idempotent; called at start."""

    async def setup_tap(self, key: str, spec: NetworkSpec, *, opened: bool = True) -> Attachment:
        """Give VM `key` an address and a tap with its limits; all or nothing. The same key again: `ConflictError`. Not
        `opened`, there is a name only, for a VMM in a jail that gets its tap there.

        It may be handed to a VMM, whose guest must not run before `admit`. A tap without rules lets no frame in.
        """

    async def admit(self, key: str) -> None:
        """Return when the rules for VM `key` are in force."""

    async def adopt(self, key: str, spec: NetworkSpec, ipv4: IPv4Address) -> Attachment:
        """Take note of the interface of a VM that lived through a restart; its rules are applied by `settle`."""

    async def settle(self) -> None:
        """Apply the rules for all adopted VMs in one go."""

    async def connect(self, peers: Sequence[Peer]) -> tuple[Peer, ...]:
        """Let these other nodes, and no others, open connections to VMs here, and have a way to theirs. Returns those that
        this host cannot reach yet; asked again, it tries again. Before the bridge is configured they are only noted."""

    async def release(self, key: str) -> None:
        """Take address and rules away. Unknown keys are fine. An address rests before it is given out again."""
