"""Edges: what they serve, and what is still open on them.

`Edges` is the control plane's end of `ports.uplink.EdgeUplink`. An edge holds a lease by the store's clock, renewed by each
report; one whose lease ran out no longer confirms anything, and holds the stop of old instances for a while
(`core.routes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shellwego.control.instances import LIVE_PHASES
from shellwego.control.routetable import route_table, routes_version
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import ForbiddenError, InvalidError
from shellwego.core.instances import Desired, Sleep
from shellwego.core.routing import Edge, EdgeReport, RouteTable
from shellwego.ports.store import Transaction, eq, within
from shellwego.wire import subjects

LEASE_S = 10.0
MAX_SESSIONS_TOLD = 10_000
"""Instances in one report."""


class Edges:
    """See `ports.uplink.EdgeUplink`. Keeps the newest table, so that many edges cost one look at the store."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._table: RouteTable | None = None

    async def register_edge(self, name: str) -> str:
        return await self._control.commit(lambda unit: register_edge(unit, name))

    async def routes(self, edge_id: str, known_version: int) -> RouteTable | None:
        def run(tx: Transaction) -> RouteTable | None:
            if tx.edges.get(edge_id) is None:
                raise _unknown(edge_id)
            version = routes_version(tx)
            if version == known_version:
                return None
            return self._table if self._table and self._table.version == version else route_table(tx)

        table = await self._control.read(run)
        self._table = table or self._table
        return table

    async def report_edge(self, report: EdgeReport) -> None:
        await self._control.commit(lambda unit: accept_edge(unit, report))


def register_edge(unit: Unit, name: str) -> str:
    """Make an edge known, or known again by its name; returns its id.

    What it applied before is void: it starts from the routes on its disk, and says so in its first report.

    Raises:
        InvalidError: the name is not usable.
    """
    if not name or len(name) > 253 or not name.isprintable():
        raise InvalidError("bad-edge-name", "an edge's name has 1 to 253 printable characters")
    known = next(iter(unit.tx.edges.select(eq("name", name), limit=1)), None)
    if known is not None:
        fresh = replace(known, applied_version=0, open_sessions={}, lease_until=unit.now() + LEASE_S)
        return unit.tx.edges.update(fresh).id
    edge = Edge(id=unit.new_id("edg"), name=name, lease_until=unit.now() + LEASE_S, created_at=unit.now())
    unit.emit("edge.registered", edge.id, data={"name": name})
    return unit.tx.edges.insert(edge).id


def accept_edge(unit: Unit, report: EdgeReport) -> None:
    """Note what an edge applied, and renew its lease.

    Raises:
        ForbiddenError: this edge is not known.
    """
    edge = unit.tx.edges.get(report.edge_id)
    if edge is None:
        raise _unknown(report.edge_id)
    applied = min(report.applied_version, routes_version(unit.tx))
    sessions = _open_sessions(report.open_sessions)
    now = unit.now()
    news = (applied, sessions) != (edge.applied_version, edge.open_sessions) or edge.lease_until <= now
    if not news and edge.lease_until - now > LEASE_S * 2 / 3:
        return
    unit.tx.edges.update(replace(edge, applied_version=applied, open_sessions=sessions, lease_until=now + LEASE_S))
    if news:
        _wake_leaving(unit, sessions)


def forget_edge(unit: Unit, edge_id: str) -> None:
    """Wait for an edge no more, and let its name be free; one that is not there is no error."""
    edge = unit.tx.edges.get(edge_id)
    if edge is None:
        return
    unit.emit("edge.removed", edge.id, severity="warning", data={"name": edge.name})
    unit.tx.edges.delete(edge.id)
    _wake_leaving(unit, {})


def _open_sessions(told: Mapping[str, int]) -> dict[str, int]:
    if len(told) > MAX_SESSIONS_TOLD:
        raise InvalidError("report-too-large", f"a report names at most {MAX_SESSIONS_TOLD} instances")
    return {instance_id[:64]: count for instance_id, count in told.items() if count > 0}


def _wake_leaving(unit: Unit, sessions: Mapping[str, int]) -> None:
    """Whatever drains, or is to sleep, may be empty now; and what still has sessions may have no VM that answers them."""
    draining = unit.tx.instances.select(eq("desired", Desired.DRAIN.value), within("phase", LIVE_PHASES))
    dozing = unit.tx.instances.select(eq("sleep", Sleep.DOZING.value), within("phase", LIVE_PHASES))
    busy = unit.tx.instances.select(within("id", tuple(sessions)))
    for app_id in {instance.app_id for instance in (*draining, *dozing, *busy)}:
        unit.hint(subjects.app(app_id))


def _unknown(edge_id: str) -> ForbiddenError:
    return ForbiddenError("edge-unknown", f"this platform has no edge {edge_id[:64]}", resolution="Register again.")
