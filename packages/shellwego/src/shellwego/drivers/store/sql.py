"""Tables and transactions over a connection, for every SQL driver.

The driver owns the connection, begins and ends the transaction, runs statements, and says what its database does of one
that it refused. Statements are built from the names of columns and bound parameters only, once for each form of a question:
building one costs several times what asking it does, and every loop asks at every hint. Drivers keep them compiled.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from shellwego.core.apps import App, Release
from shellwego.core.backups import Backup, BackupPolicy, Vault
from shellwego.core.buskeys import BusKey
from shellwego.core.credentials import Credentials
from shellwego.core.deployments import Deployment
from shellwego.core.envelope import DataKey, MasterKey
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
from shellwego.drivers.store.rows import RowMapper
from shellwego.drivers.store.rules import BY_ID, ENTITIES, Row, check_question, is_versioned, missing, stale, taken
from shellwego.drivers.store.schema import TABLES
from shellwego.drivers.store.storable import FIELDS, check_storable, is_possible_id, possible
from shellwego.ports.store import Op, Order, Scalar, Transaction, Where

E = TypeVar("E")
T = TypeVar("T")
C = TypeVar("C")


class _Versioned(Protocol):
    @property
    def version(self) -> int: ...


class _Shape(Generic[E]):
    """What is known of one table beforehand: its statements and its mapping."""

    def __init__(self, name: str, entity: type[E]) -> None:
        self.name = name
        self.mapper = RowMapper(entity)
        self.versioned = is_versioned(entity)
        self.table = TABLES[name]
        self.columns = [self.table.c[column] for column in self.mapper.names]
        self.values = operator.itemgetter(*FIELDS[name])
        self.by_id = sa.select(*self.columns).where(self.table.c.id == sa.bindparam("key"))
        self.insert = sa.insert(self.table)
        self.delete = sa.delete(self.table).where(self.table.c.id == sa.bindparam("key"))
        self.update = sa.update(self.table).where(self.table.c.id == sa.bindparam("key"))
        if self.versioned:
            self.update = self.update.where(self.table.c.version == sa.bindparam("read_version"))


_SHAPES: Mapping[str, _Shape[Any]] = {name: _Shape(name, entity) for name, entity in ENTITIES.items()}

_AFTER = ("after_field", "after_id")
_ESCAPE = "/"
_FORMS_KEPT = 256


class _Lower(GenericFunction[str]):
    """Lower case in every script, whatever the locale of the database."""

    type = sa.Text()
    inherit_cache = True


@compiles(_Lower)
def _lower(element: _Lower, compiler: Any, **options: Any) -> str:
    return f"lower({compiler.process(element.clauses, **options)})"


@compiles(_Lower, "postgresql")
def _lower_on_postgresql(element: _Lower, compiler: Any, **options: Any) -> str:
    return f'lower({compiler.process(element.clauses, **options)} COLLATE "und-x-icu")'


def _contains(column: Any, part: sa.BindParameter[str]) -> sa.ColumnElement[bool]:
    return cast("sa.ColumnElement[bool]", _Lower(column).like(part, escape=_ESCAPE))


_CONDITIONS: Mapping[Op, Callable[[Any, Any], sa.ColumnElement[bool]]] = {
    Op.EQ: operator.eq,
    Op.IN: lambda column, values: column.in_(values),
    Op.GT: operator.gt,
    Op.GTE: operator.ge,
    Op.LT: operator.lt,
    Op.LTE: operator.le,
    Op.CONTAINS: _contains,
}


class _Form(NamedTuple):
    """A question without its values, which are bound by name: `c0`, `c1`, …, `after_field`, `after_id`, `limit`."""

    conditions: tuple[tuple[str, Op], ...]
    order_field: str = ""
    """Empty: how many there are."""
    descending: bool = False
    limited: bool = False
    continued: bool = False


@lru_cache(maxsize=_FORMS_KEPT)
def _statement(shape: _Shape[Any], form: _Form) -> sa.Select[Any]:
    columns = shape.table.c
    fulfilled = _fulfilled(shape, form.conditions)
    if not form.order_field:
        return sa.select(sa.func.count()).select_from(shape.table).where(*fulfilled)
    statement = sa.select(*shape.columns).where(*fulfilled)
    place = [columns[form.order_field], columns.id]
    if form.continued:
        beyond = operator.lt if form.descending else operator.gt
        known = [sa.bindparam(name, type_=column.type) for name, column in zip(_AFTER, place, strict=True)]
        statement = statement.where(beyond(sa.tuple_(*place), sa.tuple_(*known)))
    statement = statement.order_by(*(column.desc() if form.descending else column.asc() for column in place))
    return statement.limit(sa.bindparam("limit", type_=sa.Integer)) if form.limited else statement


@lru_cache(maxsize=_FORMS_KEPT)
def _sums(
    shape: _Shape[Any], conditions: tuple[tuple[str, Op], ...], by: str, fields: tuple[str, ...]
) -> sa.Select[Any]:
    columns = shape.table.c
    amounts = (sa.func.count(), *(sa.func.sum(columns[field]) for field in fields))
    return sa.select(columns[by], *amounts).where(*_fulfilled(shape, conditions)).group_by(columns[by])


def _fulfilled(shape: _Shape[Any], conditions: tuple[tuple[str, Op], ...]) -> list[sa.ColumnElement[bool]]:
    columns = shape.table.c
    return [
        _CONDITIONS[op](columns[field], _parameter(f"c{number}", op, columns[field]))
        for number, (field, op) in enumerate(conditions)
    ]


def _parameter(name: str, op: Op, column: sa.Column[Any]) -> sa.BindParameter[Any]:
    kind = sa.String() if op is Op.CONTAINS else column.type
    return sa.bindparam(name, type_=kind, expanding=op is Op.IN)


def _bound(where: Where) -> Scalar | list[Scalar] | str:
    """A condition's value as its parameter."""
    if where.op is Op.CONTAINS:
        part = str(where.value).lower()
        for special in (_ESCAPE, "%", "_"):
            part = part.replace(special, _ESCAPE + special)
        return f"%{part}%"
    return list(where.value) if isinstance(where.value, tuple) else where.value


class Scope(ABC, Generic[C]):
    """The life of one transaction over a connection of the type `C`; each driver has its own."""

    def __init__(self, connection: C, *, writable: bool) -> None:
        self._connection = connection
        self._writable = writable
        self.open = True

    def read(self) -> C:
        """The connection, while the transaction lasts."""
        if not self.open:
            raise RuntimeError("the transaction is over; a use case must not keep it")
        return self._connection

    def write(self) -> C:
        """The connection, where the transaction may write."""
        if not self._writable:
            raise RuntimeError("a read must not write; use transact")
        return self.read()

    @abstractmethod
    def rows(self, statement: sa.Select[Any], values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """What a question finds."""

    @abstractmethod
    def change(self, table: sa.Table, statement: sa.Insert | sa.Update | sa.Delete, values: Mapping[str, Any]) -> int:
        """Run a statement that writes; returns how many rows it met. One that is refused leaves the transaction usable.

        Raises:
            ConflictError: a unique key is taken.
        """


def refusal(table: sa.Table, key: Sequence[str] | None) -> Exception:
    """What is told of a row that the database refused, by the fields of the unique key that is taken; None where it was
    something else. The database's own words are not: they may hold the row."""
    if key is None:
        return RuntimeError(f"the database refused a row of {table.name} that breaks no unique key")
    return taken(table.name, key)


def call(fn: Callable[[Transaction], T], tx: Transaction) -> T:
    """Run the function of a transaction."""
    try:
        return fn(tx)
    except StopIteration as error:  # a future cannot carry it
        raise RuntimeError("the function of the transaction raised StopIteration") from error


class SqlTable(Generic[E]):
    """See `ports.store.Table`."""

    def __init__(self, scope: Scope[Any], shape: _Shape[E]) -> None:
        self._scope = scope
        self._shape = shape

    def get(self, id_: str) -> E | None:
        if not is_possible_id(self._shape.name, id_):
            return None
        rows = self._scope.rows(self._shape.by_id, {"key": id_})
        return self._shape.mapper.to_entity(rows[0]) if rows else None

    def insert(self, entity: E) -> E:
        self._write(self._shape.insert, self._row(entity))
        return entity

    def update(self, entity: E) -> E:
        id_ = cast(Row, entity).id
        keys: dict[str, Any] = {"key": id_}
        if self._shape.versioned:
            read_version = cast(_Versioned, entity).version
            keys["read_version"] = read_version
            entity = replace(cast(Any, entity), version=read_version + 1)
        if self._write(self._shape.update, {**self._row(entity), **keys}) == 0:
            raise missing(self._shape.name, id_) if self.get(id_) is None else stale(self._shape.name, id_)
        return entity

    def delete(self, id_: str) -> None:
        if not is_possible_id(self._shape.name, id_) or self._write(self._shape.delete, {"key": id_}) == 0:
            raise missing(self._shape.name, id_)

    def select(
        self,
        *conditions: Where,
        order: Order = BY_ID,
        limit: int | None = None,
        after: tuple[Scalar, str] | None = None,
    ) -> list[E]:
        check_question(self._shape.name, conditions, order, after)
        asked = possible(self._shape.name, conditions)
        if asked is None:
            return []
        form = _Form(_forms(asked), order.field, order.descending, limit is not None, after is not None)
        values = _values(asked)
        if after is not None:
            values.update(zip(_AFTER, after, strict=True))
        if limit is not None:
            values["limit"] = limit
        to_entity = self._shape.mapper.to_entity
        return [to_entity(row) for row in self._scope.rows(_statement(self._shape, form), values)]

    def count(self, *conditions: Where) -> int:
        check_question(self._shape.name, conditions, BY_ID)
        asked = possible(self._shape.name, conditions)
        if asked is None:
            return 0
        statement = _statement(self._shape, _Form(_forms(asked)))
        return int(self._scope.rows(statement, _values(asked))[0][0])

    def sums(self, by: str, fields: Sequence[str], *conditions: Where) -> dict[str, tuple[int, ...]]:
        check_question(self._shape.name, conditions, Order(by))
        asked = possible(self._shape.name, conditions)
        if asked is None:
            return {}
        statement = _sums(self._shape, _forms(asked), by, tuple(fields))
        rows = self._scope.rows(statement, _values(asked))
        return {value: tuple(map(int, amounts)) for value, *amounts in rows}

    def _row(self, entity: E) -> Mapping[str, Any]:
        row = self._shape.mapper.to_row(entity)
        check_storable(self._shape.name, self._shape.values(row))
        return row

    def _write(self, statement: sa.Insert | sa.Update | sa.Delete, values: Mapping[str, Any]) -> int:
        return self._scope.change(self._shape.table, statement, values)


def _forms(conditions: Sequence[Where]) -> tuple[tuple[str, Op], ...]:
    return tuple((where.field, where.op) for where in conditions)


def _values(conditions: Sequence[Where]) -> dict[str, Any]:
    return {f"c{number}": _bound(where) for number, where in enumerate(conditions)}


class SqlTransaction:
    """See `ports.store.Transaction`."""

    organizations: SqlTable[Organization]
    projects: SqlTable[Project]
    users: SqlTable[User]
    credentials: SqlTable[Credentials]
    invitations: SqlTable[Invitation]
    tokens: SqlTable[Token]
    token_uses: SqlTable[TokenUse]
    grants: SqlTable[Grant]
    service_accounts: SqlTable[ServiceAccount]
    roles: SqlTable[Role]
    quotas: SqlTable[Quota]
    apps: SqlTable[App]
    releases: SqlTable[Release]
    deployments: SqlTable[Deployment]
    instances: SqlTable[Instance]
    nodes: SqlTable[Node]
    join_tokens: SqlTable[JoinToken]
    node_keys: SqlTable[NodeKey]
    node_authorities: SqlTable[NodeAuthority]
    servers: SqlTable[Server]
    bus_keys: SqlTable[BusKey]
    images: SqlTable[Image]
    edges: SqlTable[Edge]
    events: SqlTable[Event]
    audit: SqlTable[AuditRecord]
    webhooks: SqlTable[Webhook]
    deliveries: SqlTable[Delivery]
    idempotency: SqlTable[IdempotencyRecord]
    counters: SqlTable[Counter]
    leases: SqlTable[LoopLease]
    secrets: SqlTable[Secret]
    secret_versions: SqlTable[SecretVersion]
    data_keys: SqlTable[DataKey]
    master_keys: SqlTable[MasterKey]
    volumes: SqlTable[Volume]
    snapshots: SqlTable[Snapshot]
    backups: SqlTable[Backup]
    backup_policies: SqlTable[BackupPolicy]
    vaults: SqlTable[Vault]
    published_ports: SqlTable[PublishedPort]
    replicas: SqlTable[Replica]
    security_groups: SqlTable[SecurityGroup]

    def __init__(self, scope: Scope[Any], now: Callable[[], float]) -> None:
        self._scope = scope
        self._ask_now = now
        self._now: float | None = None

    def __getattr__(self, name: str) -> SqlTable[Any]:
        """A table, made when it is first asked for: most transactions ask two or three of them."""
        shape = _SHAPES.get(name)
        if shape is None:
            raise AttributeError(name)
        table = SqlTable(self._scope, shape)
        setattr(self, name, table)
        return table

    def now(self) -> float:
        if self._now is None:
            self._now = self._ask_now()
        return self._now

    def next(self, counter: str) -> int:
        stored = self.counters.get(counter)
        if stored is None:
            return self.counters.insert(Counter(id=counter, value=1)).value
        return self.counters.update(replace(stored, value=stored.value + 1)).value
