"""Port: how agents and edges talk to the control plane. They always dial; the control plane only answers.

`NodeUplink` and `EdgeUplink` are what an agent or edge holds. The same protocols are implemented by the control plane's
use cases; a driver carries the calls between them. Nodes send ages and sequences, never wall times.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from shellwego.core.assignments import (
    Assignments,
    NodeReport,
    Registration,
    SecretsRequest,
    SecretValues,
    VolumeKey,
    VolumeKeyRequest,
)
from shellwego.core.backups import BackupAccess, BackupAccessRequest
from shellwego.core.names import NodeNames
from shellwego.core.publishing import NodePorts
from shellwego.core.routing import EdgeReport, RouteTable


class NodeUplink(Protocol):
    """Raises `UnavailableError` (temporary: keep what runs, try again) and `ForbiddenError` (this node is not known)."""

    async def register(self, registration: Registration) -> Assignments:
        """Make the node known, or known again; the answer carries its id and epoch."""

    async def assignments(self, node_id: str) -> Assignments:
        """All that the node should hold now."""

    async def report(self, report: NodeReport) -> int:
        """Say what was seen; counts as heartbeat. Returns the node's current epoch."""

    async def names(self, node_id: str) -> NodeNames:
        """The names that guests of the node may ask for now."""

    async def ports(self, node_id: str) -> NodePorts:
        """The published ports of the platform, at which the node answers now."""

    async def secrets(self, request: SecretsRequest) -> SecretValues:
        """The values that an instance's VM is started with; only for one that this node should run now.

        Raises:
            NotFoundError: it should not.
            ConflictError: a value was destroyed, or does not open any more.
        """

    async def backup_access(self, request: BackupAccessRequest) -> BackupAccess:
        """What it takes to read and write a backup; only for one that this node is to take, check, or make a volume of now.

        Raises:
            NotFoundError: it is not.
            ConflictError: the project's key does not open any more.
        """

    async def volume_key(self, request: VolumeKeyRequest) -> VolumeKey:
        """The key of an encrypted volume; only of one that is to be on this node.

        Raises:
            NotFoundError: it is not, or has no key.
            ConflictError: the key does not open any more.
        """


class Memories(Protocol):
    """What an agent needs beside where instances that sleep may be moved to it."""

    def memory(self, node_id: str, instance_id: str) -> AsyncGenerator[bytes]:
        """The memory that an instance of this node is to go on with, as its engine exported it. Secrets are in it: it is
        passed on as it comes, and kept nowhere between. Its reader tells whether it is whole.

        Raises:
            NotFoundError: there is no such instance on this node, or nothing for it to go on with.
            ConflictError: that does not sleep any more.
            UnavailableError: it cannot be had now.
        """


class Replicas(Protocol):
    """What an agent needs beside to keep copies of other nodes' volumes."""

    def replica(self, node_id: str, replica_id: str, snapshot_id: str, since: str) -> AsyncGenerator[bytes]:
        """A snapshot for a replica that this node keeps, as its volume's engine sent it: what differs from `since` (empty:
        whole). It is passed on as it comes, and kept nowhere between. Its reader tells whether it is whole.

        Raises:
            NotFoundError: this node keeps no such replica, or that snapshot is not for it; `marker-not-found`: the volume's
                node has not `since` any more.
            ConflictError: there is nothing to copy now.
            UnavailableError: it cannot be had now.
        """


class EdgeUplink(Protocol):
    """Raises as `NodeUplink`."""

    async def register_edge(self, name: str) -> str:
        """Make the edge known; returns its id."""

    async def routes(self, edge_id: str, known_version: int) -> RouteTable | None:
        """The route table, or None where `known_version` is still the newest."""

    async def report_edge(self, report: EdgeReport) -> None:
        """Say what was applied; renews the edge's lease."""
