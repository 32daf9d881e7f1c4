"""From what HAProxy holds and what the routes want to the operations that lead from one to the other. Pure.

Theory. HAProxy cannot make a backend at run time, only servers. So its configuration declares a pool of empty backends;
an app *claims* one, keeps it as long as it has routes, and a map leads from host to backend. A change builds beside and
drains, in phases that never overlap:

1. *Build*: new servers in and ready, weights raised.
2. *Turn*: hosts lead to their backends; those no longer served lead to a page.
3. *Drain*: servers that left the routes get no new request; weights lowered.
4. *Clear*: a drained server without a connection is taken out of service and deleted. Where its instance is wanted at
   another address, or has departed from this one, its VM is dead (an instance has one at a time) and will never answer:
   what waits for it is cut.

Whoever carries out a plan must leave out what depends on a failed step (`Progress`): a server that could not be added must
not cost the old one its place. Deleting waits for connections, so phase 4 is planned again, later, from a new look.

Names. A server is called `<instance id>.<hash of its address>`: an instance whose VM was restarted with another address is
a new server beside the old one, and sessions are still told by instance. A backend is free for another app only when no
server is left in it, so that no request can ever reach a former tenant.

A server or host entry that the routes do not want is removed, whoever made it; a server with our name and a wrong address is
such a one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

POOL_PREFIX = "swg_b"


def backend_name(index: int) -> str:
    """The name of the pool's backend with this number."""
    return f"{POOL_PREFIX}{index:04d}"


def instance_of(server: str) -> str:
    """The instance that a server name stands for."""
    return server.partition(".")[0]


class ServerState(StrEnum):
    """HAProxy's administrative states (management manual, `set server <b>/<s> state`)."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


Key: TypeAlias = tuple[str, str]
"""Backend and server name."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a server should be, and its share of the requests (0 to 256)."""

    address: str
    weight: int


@dataclass(frozen=True, slots=True)
class Server:
    """A server as a worker has it. `address` is empty where HAProxy does not tell it (a unix socket)."""

    address: str
    weight: int
    state: ServerState
    connections: int = 0
    """In use now; idle ones that wait for reuse do not count."""


@dataclass(slots=True)
class Pool:
    """What one worker holds under our names."""

    size: int
    servers: dict[Key, Server] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the routes ask of the pool."""

    servers: Mapping[Key, Slot] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    departed: Mapping[str, str] = field(default_factory=dict)
    """Instance whose former VM ended → the server of its next one, or empty."""


@dataclass(frozen=True, slots=True)
class AddServer:
    """The new server is out of service until `SetState`."""

    key: Key
    slot: Slot


@dataclass(frozen=True, slots=True)
class SetState:
    key: Key
    state: ServerState


@dataclass(frozen=True, slots=True)
class SetWeight:
    key: Key
    weight: int


@dataclass(frozen=True, slots=True)
class CutSessions:
    """End every session of a server that no longer exists; its clients get an error now, and not after a time-out."""

    key: Key


@dataclass(frozen=True, slots=True)
class DeleteServer:
    key: Key


@dataclass(frozen=True, slots=True)
class TurnHost:
    host: str
    backend: str
    previous: str | None


@dataclass(frozen=True, slots=True)
class DropHost:
    host: str
    previous: str


@dataclass(frozen=True, slots=True)
class SetPage:
    host: str
    page: str
    previous: str | None


@dataclass(frozen=True, slots=True)
class DropPage:
    host: str


Operation: TypeAlias = (
    AddServer | SetState | SetWeight | CutSessions | DeleteServer | TurnHost | DropHost | SetPage | DropPage
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations by phase, to be done in this order."""

    build: tuple[Operation, ...] = ()
    turn: tuple[Operation, ...] = ()
    drain: tuple[Operation, ...] = ()
    clear: tuple[Operation, ...] = ()

    @property
    def phases(self) -> tuple[tuple[Operation, ...], ...]:
        return self.build, self.turn, self.drain, self.clear

    @property
    def applied(self) -> bool:
        """Requests already go where the routes say; at most something is left to clear."""
        return not (self.build or self.turn or self.drain)


def plan(present: Pool, wanted: Wanted) -> Plan:
    """What leads from `present` to `wanted`. Empty where they agree."""
    return Plan(
        build=tuple(_build(present, wanted)),
        turn=tuple(_turn(present, wanted)),
        drain=tuple(_drain(present, wanted)),
        clear=tuple(_clear(present, wanted)),
    )


def _is_wanted(key: Key, server: Server, wanted: Wanted) -> bool:
    slot = wanted.servers.get(key)
    return slot is not None and server.address in ("", slot.address)


def _build(present: Pool, wanted: Wanted) -> Iterator[Operation]:
    for key, slot in wanted.servers.items():
        server = present.servers.get(key)
        if server is None:
            yield AddServer(key, slot)
            yield SetState(key, ServerState.READY)
        elif _is_wanted(key, server, wanted):
            if server.weight < slot.weight:
                yield SetWeight(key, slot.weight)
            if server.state is not ServerState.READY:
                yield SetState(key, ServerState.READY)


def _turn(present: Pool, wanted: Wanted) -> Iterator[Operation]:
    """The page of a host is there before its route goes, and goes after its route is there."""
    for host, page in wanted.pages.items():
        if present.pages.get(host) != page:
            yield SetPage(host, page, present.pages.get(host))
    for host, backend in wanted.hosts.items():
        if present.hosts.get(host) != backend:
            yield TurnHost(host, backend, present.hosts.get(host))
    for host, backend in present.hosts.items():
        if host not in wanted.hosts:
            yield DropHost(host, backend)
    for host in present.pages:
        if host not in wanted.pages:
            yield DropPage(host)


def _drain(present: Pool, wanted: Wanted) -> Iterator[Operation]:
    for key, server in present.servers.items():
        if not _is_wanted(key, server, wanted):
            if server.state is ServerState.READY:
                yield SetState(key, ServerState.DRAIN)
        elif server.weight > wanted.servers[key].weight:
            yield SetWeight(key, wanted.servers[key].weight)


def _clear(present: Pool, wanted: Wanted) -> Iterator[Operation]:
    serving = {(backend, instance_of(name)) for backend, name in wanted.servers}
    for key, server in present.servers.items():
        if _is_wanted(key, server, wanted) or server.state is ServerState.READY:
            continue
        if server.connections:
            backend, instance = key[0], instance_of(key[1])
            moved = key not in wanted.servers and (backend, instance) in serving
            if moved or wanted.departed.get(instance, key[1]) != key[1]:
                yield CutSessions(key)
            continue
        if server.state is not ServerState.MAINT:
            yield SetState(key, ServerState.MAINT)
        yield DeleteServer(key)


class Progress:
    """What may still be done of a plan of which some operations failed."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    def possible(self, phase: Iterable[Operation]) -> list[Operation]:
        """The operations of a phase that depend on nothing that failed; the others count as failed themselves."""
        chosen = []
        for operation in phase:
            if self._failed.isdisjoint(_touches(operation)):
                chosen.append(operation)
            else:
                self.fail(operation)
        return chosen

    def fail(self, operation: Operation) -> None:
        """It was not done."""
        self._failed |= _touches(operation)


def _touches(operation: Operation) -> frozenset[str]:
    """The backends that an operation changes or depends on."""
    match operation:
        case AddServer(key) | SetState(key) | SetWeight(key) | CutSessions(key) | DeleteServer(key):
            return frozenset({key[0]})
        case TurnHost(_, backend, previous):
            return frozenset({backend} if previous is None else {backend, previous})
        case DropHost(_, previous):
            return frozenset({previous})
        case SetPage() | DropPage():
            return frozenset()


def apply(pool: Pool, operation: Operation) -> None:
    """What the operation, done, makes of the pool."""
    match operation:
        case AddServer(key, slot):
            pool.servers[key] = Server(slot.address, slot.weight, ServerState.MAINT)
        case SetState(key, state):
            pool.servers[key] = replace(pool.servers[key], state=state)
        case SetWeight(key, weight):
            pool.servers[key] = replace(pool.servers[key], weight=weight)
        case CutSessions(key):
            pool.servers[key] = replace(pool.servers[key], connections=0)
        case DeleteServer(key):
            del pool.servers[key]
        case TurnHost(host, backend):
            pool.hosts[host] = backend
        case DropHost(host):
            del pool.hosts[host]
        case SetPage(host, page):
            pool.pages[host] = page
        case DropPage(host):
            del pool.pages[host]


def draining(present: Pool, wanted: Wanted) -> frozenset[Key]:
    """Servers that are still there although the routes no longer want them."""
    return frozenset(key for key, server in present.servers.items() if not _is_wanted(key, server, wanted))


@dataclass(frozen=True, slots=True)
class Claims:
    """Which backend each app has. `waiting` apps found none free: the pool must grow."""

    backends: Mapping[str, int]
    waiting: tuple[str, ...] = ()


def claim(apps: Iterable[str], held: Mapping[str, int], busy: frozenset[str], size: int) -> Claims:
    """Give each app that serves a backend: its own if it has one, else the lowest that is free.

    `busy` names backends that are still `occupied`; an app that left keeps its claim until its backend is empty, so that
    it finds it again when it comes back in the meantime.
    """
    serving = set(apps)
    kept = {
        app: index for app, index in held.items() if index < size and (app in serving or backend_name(index) in busy)
    }
    taken = set(kept.values())
    free = (index for index in range(size) if index not in taken and backend_name(index) not in busy)
    waiting = []
    for app in sorted(serving - kept.keys()):
        index = next(free, None)
        if index is None:
            waiting.append(app)
        else:
            kept[app] = index
    return Claims(kept, tuple(waiting))


def confirmed(held: Mapping[str, int], present: Pool, last: Wanted) -> dict[str, int]:
    """The claims on record that a running HAProxy bears out; `last` is what the same record wanted.

    A record may be older than what runs (the disk was full). A backend that holds a server or a host that is not of the
    app on record is another's: the app takes a new one beside.
    """
    foreign = {backend for backend, name in present.servers if (backend, name) not in last.servers}
    foreign |= {backend for host, backend in present.hosts.items() if last.hosts.get(host) != backend}
    return {app: index for app, index in held.items() if backend_name(index) not in foreign}


def occupied(present: Pool) -> frozenset[str]:
    """Backends that still hold a server, or that a host still leads to."""
    return frozenset(backend for backend, _ in present.servers) | frozenset(present.hosts.values())


def grown(size: int, missing: int, limit: int) -> int:
    """The pool's next size: doubled until `missing` more fit, at most `limit`."""
    target = size + missing
    while size < target:
        size *= 2
    return min(size, limit)
