"""The store in memory: dictionaries, and an undo list for each transaction. Nothing survives the process.

A function of a transaction runs to its end inside the event loop, so it is alone by nature. A transaction is over when its
function returns: using it later is a defect and raises, because on a real store it would touch nothing or somebody else's
transaction.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Generic, TypeVar, cast

from shellwego.core.apps import App, Release
from shellwego.core.backups import Backup, BackupPolicy, Vault
from shellwego.core.buskeys import BusKey
from shellwego.core.credentials import Credentials
from shellwego.core.deployments import Deployment
from shellwego.core.envelope import DataKey, MasterKey
from shellwego.core.errors import UnavailableError
from shellwego.core.events import AuditRecord, Counter, Event, IdempotencyRecord, LoopLease
from shellwego.core.images import Image
from shellwego.core.instances import Instance
from shellwego.core.invitations import Invitation
from shellwego.core.joins import JoinToken, NodeAuthority, NodeKey
from shellwego.core.nodes import Node
from shellwego.core.publishing import PublishedPort
from shellwego.core.quota import Quota
from shellwego.core.replicas import Replica
from shellwego.core.routing import Edge
from shellwego.core.secrets import Secret, SecretVersion
from shellwego.core.securitygroups import SecurityGroup
from shellwego.core.servers import Server
from shellwego.core.tenancy import Grant, Organization, Project, Role, ServiceAccount, Token, TokenUse, User
from shellwego.core.volumes import Snapshot, Volume
from shellwego.core.webhooks import Delivery, Webhook
from shellwego.drivers.store.rules import BY_ID, ENTITIES, Row, check_question, is_versioned, missing, stale, taken
from shellwego.drivers.store.storable import FIELDS, check_storable
from shellwego.ports.clock import Clock
from shellwego.ports.store import UNIQUE, UNIQUE_IF_GIVEN, Op, Order, Scalar, Transaction, Where

E = TypeVar("E")
T = TypeVar("T")
R = TypeVar("R", bound=Row)


Key = tuple[tuple[str, ...], Any]
"""Fields that are unique together, and their values in a row."""


@dataclass(slots=True)
class _Rows:
    """One table's rows, who holds each unique key, and an index for each field that was asked for a value."""

    name: str
    versioned: bool
    by_id: dict[str, Any] = field(default_factory=dict)
    holders: dict[Key, str] = field(default_factory=dict)
    by_value: dict[str, dict[Any, dict[str, Any]]] = field(default_factory=dict)
    """Field → its value → the rows that have it, by id."""
    unique: tuple[tuple[tuple[str, ...], Callable[[Any], Any]], ...] = field(init=False)
    """Fields that are unique together, and what reads them of a row."""
    unique_if_given: tuple[tuple[tuple[str, ...], Callable[[Any], Any]], ...] = field(init=False)
    """The same of fields that may be empty in any number of rows."""
    values: Callable[[Any], tuple[Any, ...]] = field(init=False)
    """Reads all of a row."""

    def __post_init__(self) -> None:
        self.values = attrgetter(*FIELDS[self.name])
        self.unique = tuple((fields, attrgetter(*fields)) for fields in UNIQUE.get(self.name, ()))
        self.unique_if_given = tuple(((name,), attrgetter(name)) for name in UNIQUE_IF_GIVEN.get(self.name, ()))

    def put(self, id_: str, row: Any) -> None:
        """Store, replace, or (None) remove a row.

        Raises:
            ConflictError: a unique key is another row's.
        """
        old = self.by_id.get(id_)
        if self.unique or self.unique_if_given:
            self._hold(id_, old, row)
        if row is None:
            self.by_id.pop(id_, None)
        else:
            self.by_id[id_] = row
        for name, index in self.by_value.items():
            value = None if row is None else getattr(row, name)
            if old is not None and (row is None or getattr(old, name) != value):
                del index[getattr(old, name)][id_]
            if row is not None:
                index.setdefault(value, {})[id_] = row

    def _hold(self, id_: str, old: Any, row: Any) -> None:
        keys = [] if row is None else self._keys(row)
        for key in keys:
            if self.holders.get(key, id_) != id_:
                raise taken(self.name, key[0])
        for key in [] if old is None else self._keys(old):
            del self.holders[key]
        self.holders.update(dict.fromkeys(keys, id_))

    def _keys(self, row: Any) -> list[Key]:
        """The keys that no other row may have."""
        given = [(names, value) for names, read in self.unique_if_given if (value := read(row))]
        return [*((names, read(row)) for names, read in self.unique), *given]

    def matching(self, conditions: tuple[Where, ...]) -> list[Any]:
        """The rows that fulfil all conditions, in no order: of the index that leads to the fewest those that fulfil the
        others, too."""
        if len(conditions) == 1 and conditions[0].op is Op.EQ:  # most questions
            return list(self._having(conditions[0])[0].values())
        fewest, start, best = len(self.by_id), [self.by_id], None
        for where in conditions:
            if where.op is Op.EQ or where.op is Op.IN:
                found = self._having(where)
                count = len(found[0]) if len(found) == 1 else sum(map(len, found))
                if best is None or count < fewest:
                    fewest, start, best = count, found, where
        rows = [row for part in start for row in part.values()] if fewest else []
        for where in conditions:
            if rows and where is not best:
                read, fulfils, value = attrgetter(where.field), _FULFILS[where.op], where.value
                rows = [row for row in rows if fulfils(read(row), value)]
        return rows

    def _having(self, where: Where) -> list[dict[str, Any]]:
        """The rows that fulfil a condition that names values, by id for each of these."""
        index = self.by_value.get(where.field)
        if index is None:
            index = self.by_value[where.field] = {}
            for id_, row in self.by_id.items():
                index.setdefault(getattr(row, where.field), {})[id_] = row
        if not isinstance(where.value, tuple):
            return [index.get(where.value, _NONE)]
        return [index[value] for value in set(where.value) if value in index]


_NONE: dict[str, Any] = {}

_FULFILS: Mapping[Op, Callable[[Any, Any], bool]] = {
    Op.EQ: operator.eq,
    Op.IN: lambda stored, values: stored in values,
    Op.GT: operator.gt,
    Op.GTE: operator.ge,
    Op.LT: operator.lt,
    Op.LTE: operator.le,
    Op.CONTAINS: lambda stored, part: part.lower() in stored.lower(),
}


@dataclass(slots=True)
class _Scope:
    """The life of one transaction: whether it may write, and how to undo what it wrote."""

    writable: bool
    open: bool = True
    undo: list[tuple[_Rows, str, Any]] = field(default_factory=list)

    def check(self, *, write: bool) -> None:
        if not self.open:
            raise RuntimeError("the transaction is over; a use case must not keep it")
        if write and not self.writable:
            raise RuntimeError("a read must not write; use transact")

    def roll_back(self) -> None:
        """Put every row back. Removals come first, so that no unique key is in the way."""
        first: dict[tuple[int, str], tuple[_Rows, str, Any]] = {}
        for rows, id_, old in self.undo:
            first.setdefault((id(rows), id_), (rows, id_, old))
        for rows, id_, _ in first.values():
            rows.put(id_, None)
        for rows, id_, old in first.values():
            rows.put(id_, old)


class MemoryTable(Generic[E]):
    """See `ports.store.Table`."""

    __slots__ = ("_rows", "_scope")

    def __init__(self, scope: _Scope, rows: _Rows) -> None:
        self._scope = scope
        self._rows = rows

    def get(self, id_: str) -> E | None:
        self._scope.check(write=False)
        return self._rows.by_id.get(id_)

    def insert(self, entity: E) -> E:
        id_ = cast(Row, entity).id
        if id_ in self._rows.by_id:
            raise taken(self._rows.name, ("id",))
        self._put(id_, entity)
        return entity

    def update(self, entity: E) -> E:
        id_ = cast(Row, entity).id
        stored = self._rows.by_id.get(id_)
        if stored is None:
            raise missing(self._rows.name, id_)
        if self._rows.versioned:
            raised: Any = entity
            if stored.version != raised.version:
                raise stale(self._rows.name, id_)
            entity = replace(raised, version=raised.version + 1)
        self._put(id_, entity)
        return entity

    def delete(self, id_: str) -> None:
        if id_ not in self._rows.by_id:
            raise missing(self._rows.name, id_)
        self._put(id_, None)

    def select(
        self,
        *conditions: Where,
        order: Order = BY_ID,
        limit: int | None = None,
        after: tuple[Scalar, str] | None = None,
    ) -> list[E]:
        check_question(self._rows.name, conditions, order, after)
        rows: list[E] = self._matching(conditions)
        rows.sort(key=_BY_ID if order.field == "id" else attrgetter(order.field, "id"), reverse=order.descending)
        if after is not None:
            rows = [row for row in rows if _beyond(_position(row, order), after, order)]
        return rows if limit is None else rows[:limit]

    def count(self, *conditions: Where) -> int:
        check_question(self._rows.name, conditions, BY_ID)
        return len(self._matching(conditions))

    def sums(self, by: str, fields: Sequence[str], *conditions: Where) -> dict[str, tuple[int, ...]]:
        check_question(self._rows.name, conditions, Order(by))
        found: dict[str, list[int]] = {}
        for row in self._matching(conditions):
            amounts = found.setdefault(getattr(row, by), [0] * (1 + len(fields)))
            amounts[0] += 1
            for number, name in enumerate(fields, 1):
                amounts[number] += getattr(row, name)
        return {value: tuple(amounts) for value, amounts in found.items()}

    def _matching(self, conditions: tuple[Where, ...]) -> list[E]:
        self._scope.check(write=False)
        return self._rows.matching(conditions)

    def _put(self, id_: str, row: Any) -> None:
        self._scope.check(write=True)
        old = self._rows.by_id.get(id_)
        if row is not None:
            read = self._rows.values
            check_storable(self._rows.name, read(row), () if old is None else read(old))
        self._rows.put(id_, row)
        self._scope.undo.append((self._rows, id_, old))


_BY_ID = attrgetter("id")


def _position(row: Any, order: Order) -> tuple[Any, str]:
    return getattr(row, order.field), row.id


def _beyond(position: tuple[Any, str], after: tuple[Any, str], order: Order) -> bool:
    return position < after if order.descending else position > after


class MemoryTransaction:
    """See `ports.store.Transaction`. A table is made when it is first asked for: most use cases need a few."""

    organizations: MemoryTable[Organization]
    projects: MemoryTable[Project]
    users: MemoryTable[User]
    credentials: MemoryTable[Credentials]
    invitations: MemoryTable[Invitation]
    tokens: MemoryTable[Token]
    token_uses: MemoryTable[TokenUse]
    grants: MemoryTable[Grant]
    service_accounts: MemoryTable[ServiceAccount]
    roles: MemoryTable[Role]
    quotas: MemoryTable[Quota]
    apps: MemoryTable[App]
    releases: MemoryTable[Release]
    deployments: MemoryTable[Deployment]
    instances: MemoryTable[Instance]
    nodes: MemoryTable[Node]
    join_tokens: MemoryTable[JoinToken]
    node_keys: MemoryTable[NodeKey]
    node_authorities: MemoryTable[NodeAuthority]
    servers: MemoryTable[Server]
    bus_keys: MemoryTable[BusKey]
    images: MemoryTable[Image]
    edges: MemoryTable[Edge]
    events: MemoryTable[Event]
    audit: MemoryTable[AuditRecord]
    webhooks: MemoryTable[Webhook]
    deliveries: MemoryTable[Delivery]
    idempotency: MemoryTable[IdempotencyRecord]
    counters: MemoryTable[Counter]
    leases: MemoryTable[LoopLease]
    secrets: MemoryTable[Secret]
    secret_versions: MemoryTable[SecretVersion]
    data_keys: MemoryTable[DataKey]
    master_keys: MemoryTable[MasterKey]
    volumes: MemoryTable[Volume]
    snapshots: MemoryTable[Snapshot]
    backups: MemoryTable[Backup]
    backup_policies: MemoryTable[BackupPolicy]
    vaults: MemoryTable[Vault]
    published_ports: MemoryTable[PublishedPort]
    replicas: MemoryTable[Replica]
    security_groups: MemoryTable[SecurityGroup]

    def __init__(self, scope: _Scope, tables: dict[str, _Rows], now: float) -> None:
        self._scope = scope
        self._tables = tables
        self._now = now

    def __getattr__(self, name: str) -> MemoryTable[Any]:
        rows = None if name.startswith("_") else self._tables.get(name)
        if rows is None:
            raise AttributeError(name)
        table: MemoryTable[Any] = MemoryTable(self._scope, rows)
        self.__dict__[name] = table
        return table

    def now(self) -> float:
        return self._now

    def next(self, counter: str) -> int:
        stored = self.counters.get(counter)
        if stored is None:
            return self.counters.insert(Counter(id=counter, value=1)).value
        return self.counters.update(replace(stored, value=stored.value + 1)).value


class MemoryStore:
    """See `ports.store.Store`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tables = {name: _Rows(name, is_versioned(entity)) for name, entity in ENTITIES.items()}
        self._closed = False

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        return await self._run(fn, writable=True)

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        return await self._run(fn, writable=False)

    async def close(self) -> None:
        self._closed = True

    async def _run(self, fn: Callable[[Transaction], T], *, writable: bool) -> T:
        await asyncio.sleep(0)  # a real store gives way here, so callers meet the same interleavings
        if self._closed:
            raise UnavailableError("store-closed", "the store is closed")
        scope = _Scope(writable)
        try:
            return fn(MemoryTransaction(scope, self._tables, self._clock.now()))
        except BaseException:
            scope.roll_back()
            raise
        finally:
            scope.open = False
