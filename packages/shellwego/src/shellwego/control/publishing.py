"""Published ports as their owners handle them, and as nodes are told of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from shellwego.control.announcements import announce
from shellwego.control.config import refuse
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.quotas import charge
from shellwego.control.scopes import missing, project_of
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.errors import ConflictError, FieldError, InvalidError, QuotaError
from shellwego.core.instances import Instance
from shellwego.core.publishing import (
    LEAST_PORT,
    MAX_PORTS,
    MOST_PORT,
    NodePorts,
    OpenPort,
    PublishedPort,
    Transport,
    chosen_process,
    open_port,
)
from shellwego.ports.clock import Clock
from shellwego.ports.store import Transaction, eq, within
from shellwego.wire import subjects

KNOWN_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortWish:
    """As in `PublishedPort`."""

    port: int
    transport: Transport = Transport.TCP
    target_port: int | None = None
    """None: the same."""
    process: str = ""
    """Empty: the only one that can be meant."""


def publish_port(unit: Unit, app: App, wish: PortWish, offered: range) -> PublishedPort:
    """Have a port of every node's addresses lead to the app. `offered`: what the operator lets apps publish.

    Raises:
        InvalidError: the operator does not offer this port, or the app has no such process.
        ConflictError: the port is taken, by whomever; or the app is being destroyed.
        QuotaError: the project or its organization has as many as it may, or the platform as many as it can.
    """
    _refuse_not_offered(wish.port, offered)
    if app.deleting:
        raise ConflictError("app-deleting", f"the app {app.name} is being destroyed")
    process, target = chosen_process(wish.process, app.config), wish.target_port or wish.port
    faults = [] if process else [_process_fault(app, wish.process)]
    if not LEAST_PORT <= target <= MOST_PORT:
        faults.append(FieldError("target_port", "out-of-range", f"between {LEAST_PORT} and {MOST_PORT}"))
    refuse("port-refused", tuple(faults))
    taken = unit.tx.published_ports.select(eq("transport", wish.transport.value), eq("port", wish.port), limit=1)
    if taken:
        fault = FieldError("port", "port-taken", "it is published already")
        raise ConflictError(
            "port-taken",
            f"the port {wish.port}/{wish.transport} is published already",
            resolution="Choose another.",
            errors=(fault,),
        )
    if unit.tx.published_ports.count() >= MAX_PORTS:
        raise QuotaError("too-many-ports", f"a platform has at most {MAX_PORTS} published ports")
    charge(unit, project_of(unit.tx, app.project_id), {"ports": 1})
    published = PublishedPort(
        id=unit.new_id("port"),
        project_id=app.project_id,
        app_id=app.id,
        process=process,
        transport=wish.transport,
        port=wish.port,
        target_port=target,
        created_at=unit.now(),
        created_by=unit.caller.actor,
    )
    _tell(unit, app, published, "app.port.published")
    return unit.tx.published_ports.insert(published)


def unpublish_port(unit: Unit, app: App, published: PublishedPort) -> None:
    """Close a port; what is open there is cut."""
    unit.tx.published_ports.delete(published.id)
    _tell(unit, app, published, "app.port.unpublished")


def find_port(tx: Transaction, app: App, id_: str) -> PublishedPort:
    """A port of this app; raises `NotFoundError`."""
    published = tx.published_ports.get(id_)
    if published is None or published.app_id != app.id:
        raise missing("port", id_)
    return published


def hint_nodes(unit: Unit) -> None:
    """Have all nodes look at what is published."""
    for node in unit.tx.nodes.select():
        unit.hint(subjects.assignments(node.id))


class PortBook:
    """What nodes are told; read once a while and not by each node that asks, since all of them are told the same."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ports = NodePorts(version="")
        self._until = float("-inf")

    def of(self, tx: Transaction) -> NodePorts:
        """All ports, as they were at most `KNOWN_S` ago."""
        if self._clock.monotonic() >= self._until:
            self._ports = node_ports(tx)
            self._until = self._clock.monotonic() + KNOWN_S
        return self._ports


def node_ports(tx: Transaction) -> NodePorts:
    """All published ports with the instances that answer there now. The version follows from them alone, so that several
    servers agree on it."""
    published = tx.published_ports.select()
    instances: dict[str, list[Instance]] = {}
    app_ids = tuple({port.app_id for port in published})
    for instance in tx.instances.select(within("app_id", app_ids), within("phase", LIVE_PHASES)) if app_ids else ():
        instances.setdefault(instance.app_id, []).append(instance)
    ports = tuple(open_port(port, instances.get(port.app_id, ())) for port in published)
    return NodePorts(version=_version(ports), ports=ports)


def _version(ports: tuple[OpenPort, ...]) -> str:
    return hashlib.sha256(repr(ports).encode()).hexdigest()[:32]


def _refuse_not_offered(port: int, offered: range) -> None:
    if not offered:
        raise InvalidError(
            "publishing-off",
            "port: this platform publishes no ports",
            resolution="Its operator has to say which ones: publish in the table [network] of the configuration, on "
            'servers and nodes, such as publish = "20000-29999".',
            errors=(FieldError("port", "publishing-off", "this platform publishes no ports"),),
        )
    text = f"this platform publishes ports from {offered.start} to {offered.stop - 1}"
    refuse("port-not-offered", () if port in offered else (FieldError("port", "out-of-range", text),))


def _process_fault(app: App, asked: str) -> FieldError:
    known = ", ".join(process.name for process in app.config.processes)
    if asked:
        return FieldError("process", "no-such-process", f"there is no process “{asked[:40]}”; the app has: {known}")
    return FieldError("process", "ambiguous", f"several could be meant; the app has: {known}")


def _tell(unit: Unit, app: App, published: PublishedPort, type_: str) -> None:
    data = {
        "port": str(published.port),
        "transport": published.transport.value,
        "process": published.process,
        "target_port": str(published.target_port),
    }
    announce(unit, app, type_, data, resource=published.id)
    hint_nodes(unit)
