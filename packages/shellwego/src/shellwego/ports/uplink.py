"""Port: how agents and edges talk to the control plane. They always dial; the control plane only answers.

`NodeUplink` and `EdgeUplink` are what an agent or edge holds. The same protocols are implemented by the control plane's
use cases; a driver carries the calls between them. Nodes send ages and sequences, never wall times.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from shellwego.core.assignments import Assignments, NodeReport, Registration, SecretsRequest, SecretValues
from shellwego.core.routing import EdgeReport, RouteTable


class NodeUplink(Protocol):
    """Raises `UnavailableError` (temporary: keep what runs, try again) and `ForbiddenError` (this node is not known)."""

    async def register(self, registration: Registration) -> Assignments:
        """Make the node known, or known again; the answer carries its id and epoch."""

    async def assignments(self, node_id: str) -> Assignments:
        """All that the node should hold now."""

    async def report(self, report: NodeReport) -> int:
        """Say what was seen; counts as heartbeat. Returns the node's current epoch."""

    async def secrets(self, request: SecretsRequest) -> SecretValues:
        """The values that an instance's VM is started with; only for one that this node should run now.

        Raises:
            NotFoundError: it should not.
            ConflictError: a value was destroyed, or does not open any more.
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


class EdgeUplink(Protocol):
    """Raises as `NodeUplink`."""

    async def register_edge(self, name: str) -> str:
        """Make the edge known; returns its id."""

    async def routes(self, edge_id: str, known_version: int) -> RouteTable | None:
        """The route table, or None where `known_version` is still the newest."""

    async def report_edge(self, report: EdgeReport) -> None:
        """Say what was applied; renews the edge's lease."""
