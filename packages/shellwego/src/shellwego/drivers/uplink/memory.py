"""The uplink in one process. Every call is encoded and decoded both ways, so that nothing passes that a wire would refuse,
and neither side can change what the other holds.

A `MemoryLink` is the wire: it can be slow, be cut, or lose only the answers, which is the case that makes reports doubled.
A defect of the control plane looks like its absence: the caller keeps what runs and tries again.
"""

from __future__ import annotations

from collections.abc import Awaitable
from enum import Enum, auto
from typing import TypeVar

import structlog

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
from shellwego.core.errors import ShellWeGoError, UnavailableError
from shellwego.core.names import NodeNames
from shellwego.core.publishing import NodePorts
from shellwego.core.routing import EdgeReport, RouteTable
from shellwego.ports.clock import Clock
from shellwego.ports.uplink import EdgeUplink, NodeUplink
from shellwego.wire.codec import decode, encode

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class LinkState(Enum):
    UP = auto()
    CUT = auto()
    ANSWERS_LOST = auto()
    """Calls arrive and are done; the caller does not hear of it."""


class MemoryLink:
    """The wire between one node or edge and the control plane; `delay_s` is the time of one way."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.state = LinkState.UP
        self.delay_s = 0.0

    async def travel(self, blocked_by: frozenset[LinkState]) -> None:
        """One way.

        Raises:
            UnavailableError: the message was lost.
        """
        if self.delay_s:
            await self._clock.sleep(self.delay_s)
        if self.state in blocked_by:
            raise UnavailableError("uplink-unavailable", "the control plane does not answer")

    async def call(self, answer: Awaitable[T]) -> T:
        """Carry a call there and its answer back."""
        try:
            result = await answer
        except ShellWeGoError:
            await self.travel(_BACK)
            raise
        except Exception:  # noqa: BLE001 - see the module's head
            _log.exception("uplink.call_failed")
            raise UnavailableError("uplink-unavailable", "the control plane failed at this call") from None
        await self.travel(_BACK)
        return result


_THERE = frozenset({LinkState.CUT})
_BACK = frozenset({LinkState.CUT, LinkState.ANSWERS_LOST})


def _copy(kind: type[T], message: T) -> T:
    """What arrives at the other end."""
    return decode(kind, encode(message))


class MemoryNodeUplink:
    """See `ports.uplink.NodeUplink`; `server` is the control plane's side."""

    def __init__(self, server: NodeUplink, link: MemoryLink) -> None:
        self._server = server
        self._link = link

    async def register(self, registration: Registration) -> Assignments:
        sent = _copy(Registration, registration)
        await self._link.travel(_THERE)
        return _copy(Assignments, await self._link.call(self._server.register(sent)))

    async def assignments(self, node_id: str) -> Assignments:
        sent = _copy(str, node_id)
        await self._link.travel(_THERE)
        return _copy(Assignments, await self._link.call(self._server.assignments(sent)))

    async def report(self, report: NodeReport) -> int:
        sent = _copy(NodeReport, report)
        await self._link.travel(_THERE)
        return _copy(int, await self._link.call(self._server.report(sent)))

    async def names(self, node_id: str) -> NodeNames:
        sent = _copy(str, node_id)
        await self._link.travel(_THERE)
        return _copy(NodeNames, await self._link.call(self._server.names(sent)))

    async def ports(self, node_id: str) -> NodePorts:
        sent = _copy(str, node_id)
        await self._link.travel(_THERE)
        return _copy(NodePorts, await self._link.call(self._server.ports(sent)))

    async def secrets(self, request: SecretsRequest) -> SecretValues:
        sent = _copy(SecretsRequest, request)
        await self._link.travel(_THERE)
        return _copy(SecretValues, await self._link.call(self._server.secrets(sent)))

    async def backup_access(self, request: BackupAccessRequest) -> BackupAccess:
        sent = _copy(BackupAccessRequest, request)
        await self._link.travel(_THERE)
        return _copy(BackupAccess, await self._link.call(self._server.backup_access(sent)))

    async def volume_key(self, request: VolumeKeyRequest) -> VolumeKey:
        sent = _copy(VolumeKeyRequest, request)
        await self._link.travel(_THERE)
        return _copy(VolumeKey, await self._link.call(self._server.volume_key(sent)))


class MemoryEdgeUplink:
    """See `ports.uplink.EdgeUplink`; `server` is the control plane's side."""

    def __init__(self, server: EdgeUplink, link: MemoryLink) -> None:
        self._server = server
        self._link = link

    async def register_edge(self, name: str) -> str:
        sent = _copy(str, name)
        await self._link.travel(_THERE)
        return _copy(str, await self._link.call(self._server.register_edge(sent)))

    async def routes(self, edge_id: str, known_version: int) -> RouteTable | None:
        sent_id, sent_version = _copy(str, edge_id), _copy(int, known_version)
        await self._link.travel(_THERE)
        table = await self._link.call(self._server.routes(sent_id, sent_version))
        return None if table is None else _copy(RouteTable, table)

    async def report_edge(self, report: EdgeReport) -> None:
        sent = _copy(EdgeReport, report)
        await self._link.travel(_THERE)
        await self._link.call(self._server.report_edge(sent))
