"""What may be called on the node port, by whom, with what; and that nobody speaks for another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

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
from shellwego.core.errors import ForbiddenError
from shellwego.core.names import NodeNames
from shellwego.core.nodecallers import Caller, EdgeCaller, NodeCaller
from shellwego.core.plans import Rate
from shellwego.core.publishing import NodePorts
from shellwego.core.routing import EdgeReport
from shellwego.ports.uplink import EdgeUplink, NodeUplink
from shellwego.wire.uplink import (
    MAX_BODIES,
    MAX_BODY,
    AssignmentsCall,
    Done,
    Method,
    NamesCall,
    PortsCall,
    RegisterEdgeAnswer,
    RegisterEdgeCall,
    ReportAnswer,
    RoutesAnswer,
    RoutesCall,
)

Q = TypeVar("Q")


@dataclass(frozen=True, slots=True)
class Served(Generic[Q]):
    """A method: what its body is, and who answers it."""

    question: type[Q]
    answer: Callable[[Caller, Q], Awaitable[object]]
    max_body: int = MAX_BODY
    rate: Rate | None = None
    """How often one caller may call it; None: as often as anything. What leaves a record, or writes much, has one."""


@dataclass(frozen=True, slots=True)
class ServedToStrangers(Generic[Q]):
    """A method that one without a certificate may call: what makes him known."""

    question: type[Q]
    answer: Callable[[Q], Awaitable[object]]
    max_body: int = 64 * 1024


AnyServed = Served[Any] | ServedToStrangers[Any]
_REGISTRATIONS = Rate(per_minute=60, burst=60)
_SECRETS = Rate(per_minute=1200, burst=2000)
"""One for each VM that starts, or volume that it opens; after a power cut a host starts all of its own."""


_BACKUPS = Rate(per_minute=120, burst=120)
"""One for each try to check a backup or make a volume of it, and two for one to take it."""


def methods(nodes: NodeUplink, edges: EdgeUplink) -> Mapping[str, AnyServed]:
    """The methods of both uplinks."""
    served = _Methods(nodes, edges)
    return {
        Method.REGISTER: Served(Registration, served.register, rate=_REGISTRATIONS),
        Method.ASSIGNMENTS: Served(AssignmentsCall, served.assignments),
        Method.REPORT: Served(NodeReport, served.report, MAX_BODIES[Method.REPORT]),
        Method.NAMES: Served(NamesCall, served.names),
        Method.PORTS: Served(PortsCall, served.ports),
        Method.SECRETS: Served(SecretsRequest, served.secrets, rate=_SECRETS),
        Method.BACKUP_ACCESS: Served(BackupAccessRequest, served.backup_access, rate=_BACKUPS),
        Method.VOLUME_KEY: Served(VolumeKeyRequest, served.volume_key, rate=_SECRETS),
        Method.REGISTER_EDGE: Served(RegisterEdgeCall, served.register_edge, rate=_REGISTRATIONS),
        Method.ROUTES: Served(RoutesCall, served.routes),
        Method.REPORT_EDGE: Served(EdgeReport, served.report_edge),
    }


class _Methods:
    def __init__(self, nodes: NodeUplink, edges: EdgeUplink) -> None:
        self._nodes = nodes
        self._edges = edges

    async def register(self, caller: Caller, asked: Registration) -> Assignments:
        """A node is called what it joined as, whatever it says now."""
        node = _node(caller, asked.known_node_id or caller.id)
        answer = await self._nodes.register(replace(asked, name=node.name, joined=True))
        _same(node, answer.node_id)
        return answer

    async def assignments(self, caller: Caller, asked: AssignmentsCall) -> Assignments:
        return await self._nodes.assignments(_node(caller, asked.node_id).node_id)

    async def report(self, caller: Caller, asked: NodeReport) -> ReportAnswer:
        _node(caller, asked.node_id)
        return ReportAnswer(epoch=await self._nodes.report(asked))

    async def names(self, caller: Caller, asked: NamesCall) -> NodeNames:
        return await self._nodes.names(_node(caller, asked.node_id).node_id)

    async def ports(self, caller: Caller, asked: PortsCall) -> NodePorts:
        return await self._nodes.ports(_node(caller, asked.node_id).node_id)

    async def secrets(self, caller: Caller, asked: SecretsRequest) -> SecretValues:
        _node(caller, asked.node_id)
        return await self._nodes.secrets(asked)

    async def backup_access(self, caller: Caller, asked: BackupAccessRequest) -> BackupAccess:
        _node(caller, asked.node_id)
        return await self._nodes.backup_access(asked)

    async def volume_key(self, caller: Caller, asked: VolumeKeyRequest) -> VolumeKey:
        _node(caller, asked.node_id)
        return await self._nodes.volume_key(asked)

    async def register_edge(self, caller: Caller, _asked: RegisterEdgeCall) -> RegisterEdgeAnswer:
        edge = _edge(caller, caller.id)
        edge_id = await self._edges.register_edge(edge.name)
        _same(edge, edge_id)
        return RegisterEdgeAnswer(edge_id=edge_id)

    async def routes(self, caller: Caller, asked: RoutesCall) -> RoutesAnswer:
        edge = _edge(caller, asked.edge_id)
        return RoutesAnswer(table=await self._edges.routes(edge.edge_id, asked.known_version))

    async def report_edge(self, caller: Caller, asked: EdgeReport) -> Done:
        _edge(caller, asked.edge_id)
        await self._edges.report_edge(asked)
        return Done()


def _node(caller: Caller, claimed: str) -> NodeCaller:
    if not isinstance(caller, NodeCaller):
        raise ForbiddenError(
            "uplink-not-a-node", f"{caller.name} is an edge, and no node", resolution="Join it as one."
        )
    _same(caller, claimed)
    return caller


def _edge(caller: Caller, claimed: str) -> EdgeCaller:
    if not isinstance(caller, EdgeCaller):
        raise ForbiddenError(
            "uplink-not-an-edge", f"{caller.name} is a node, and no edge", resolution="Join it as one."
        )
    _same(caller, claimed)
    return caller


def _same(caller: Caller, claimed: str) -> None:
    if claimed != caller.id:
        raise ForbiddenError(
            "uplink-not-yours",
            f"{caller.name} speaks for {claimed[:64]!r}, which is another",
            resolution="Register again, with the state of this host and no other's.",
        )
