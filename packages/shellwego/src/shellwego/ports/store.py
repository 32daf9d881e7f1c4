"""Port: the truth.

`transact(fn)` runs a synchronous function of a transaction, free of outside effects, durably (fsync) and isolated as if
alone; it may run more than once. What needs the outside happens before it. An exception from `fn` undoes the whole of
it and reaches the caller.

A `Table` holds one kind of entity: frozen dataclasses with `id`. Entities that change have `version`, by which `update`
compares and sets. Conditions are values, so that each driver can turn them into its own kind of look-up; only the fields
that `INDEXES` names (and `id`) can be asked for, so that no query scans by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar, runtime_checkable

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

E = TypeVar("E")
T = TypeVar("T")

Scalar = str | int | float | bool


class Op(StrEnum):
    EQ = "eq"
    IN = "in"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    CONTAINS = "contains"
    """Case-insensitive substring of a text field."""


@dataclass(frozen=True, slots=True)
class Where:
    field: str
    op: Op
    value: Scalar | tuple[Scalar, ...]


def eq(field: str, value: Scalar) -> Where:
    return Where(field, Op.EQ, value)


def within(field: str, values: Sequence[Scalar]) -> Where:
    return Where(field, Op.IN, tuple(values))


@dataclass(frozen=True, slots=True)
class Order:
    field: str = "id"
    descending: bool = False


class Table(Protocol[E]):
    """Raises `ConflictError` (unique key taken), `StaleError` (another version is stored), `NotFoundError` (update or
    delete of a row that is not there)."""

    def get(self, id_: str) -> E | None: ...

    def insert(self, entity: E) -> E: ...

    def update(self, entity: E) -> E:
        """Store the new value if the stored version is still `entity.version`; returns it with the version raised."""

    def delete(self, id_: str) -> None: ...

    def select(
        self,
        *conditions: Where,
        order: Order = Order(),
        limit: int | None = None,
        after: tuple[Scalar, str] | None = None,
    ) -> list[E]:
        """Rows that fulfil all conditions, by `order` and then by id; `after` is the (order value, id) to go on from."""

    def count(self, *conditions: Where) -> int: ...

    def sums(self, by: str, fields: Sequence[str], *conditions: Where) -> dict[str, tuple[int, ...]]:
        """For each value of the text field `by` among the rows that fulfil all conditions: how many they are, then the sum
        of each of these whole-number fields."""


class Transaction(Protocol):
    """All tables, seen at one moment."""

    @property
    def organizations(self) -> Table[Organization]: ...
    @property
    def projects(self) -> Table[Project]: ...
    @property
    def users(self) -> Table[User]: ...
    @property
    def credentials(self) -> Table[Credentials]: ...
    @property
    def invitations(self) -> Table[Invitation]: ...
    @property
    def tokens(self) -> Table[Token]: ...
    @property
    def token_uses(self) -> Table[TokenUse]: ...
    @property
    def grants(self) -> Table[Grant]: ...
    @property
    def service_accounts(self) -> Table[ServiceAccount]: ...
    @property
    def roles(self) -> Table[Role]: ...
    @property
    def quotas(self) -> Table[Quota]: ...
    @property
    def apps(self) -> Table[App]: ...
    @property
    def releases(self) -> Table[Release]: ...
    @property
    def deployments(self) -> Table[Deployment]: ...
    @property
    def instances(self) -> Table[Instance]: ...
    @property
    def nodes(self) -> Table[Node]: ...
    @property
    def join_tokens(self) -> Table[JoinToken]: ...
    @property
    def node_keys(self) -> Table[NodeKey]: ...
    @property
    def node_authorities(self) -> Table[NodeAuthority]: ...
    @property
    def servers(self) -> Table[Server]: ...
    @property
    def bus_keys(self) -> Table[BusKey]: ...
    @property
    def images(self) -> Table[Image]: ...
    @property
    def edges(self) -> Table[Edge]: ...
    @property
    def events(self) -> Table[Event]: ...
    @property
    def audit(self) -> Table[AuditRecord]: ...
    @property
    def webhooks(self) -> Table[Webhook]: ...
    @property
    def deliveries(self) -> Table[Delivery]: ...
    @property
    def idempotency(self) -> Table[IdempotencyRecord]: ...
    @property
    def counters(self) -> Table[Counter]: ...
    @property
    def leases(self) -> Table[LoopLease]: ...
    @property
    def secrets(self) -> Table[Secret]: ...
    @property
    def secret_versions(self) -> Table[SecretVersion]: ...
    @property
    def data_keys(self) -> Table[DataKey]: ...
    @property
    def master_keys(self) -> Table[MasterKey]: ...
    @property
    def volumes(self) -> Table[Volume]: ...
    @property
    def snapshots(self) -> Table[Snapshot]: ...
    @property
    def backups(self) -> Table[Backup]: ...
    @property
    def backup_policies(self) -> Table[BackupPolicy]: ...
    @property
    def vaults(self) -> Table[Vault]: ...
    @property
    def published_ports(self) -> Table[PublishedPort]: ...
    @property
    def replicas(self) -> Table[Replica]: ...
    @property
    def security_groups(self) -> Table[SecurityGroup]: ...

    def now(self) -> float:
        """The store's own clock; leases are judged by it alone."""

    def next(self, counter: str) -> int:
        """Raise a counter and return its new value."""


INDEXES: Mapping[str, tuple[str, ...]] = {
    "organizations": ("name",),
    "projects": ("organization_id", "name"),
    "users": ("email",),
    "credentials": (),
    "invitations": ("organization_id", "secret_hash", "created_at"),
    "tokens": ("secret_hash", "principal_id", "parent_id"),
    "token_uses": (),
    "grants": ("principal_id", "scope_id", "role"),
    "service_accounts": ("organization_id", "name"),
    "roles": ("organization_id", "name"),
    "quotas": (),
    "apps": ("project_id", "name", "hostname", "created_at", "deleting"),
    "releases": ("app_id", "number"),
    "deployments": ("app_id", "state", "created_at"),
    "instances": (
        "app_id",
        "node_id",
        "reserved_node_id",
        "phase",
        "desired",
        "sleep",
        "eviction",
        "priority",
        "owner",
        "created_at",
    ),
    "nodes": ("name", "health", "scheduling", "created_at"),
    "join_tokens": ("secret_hash", "created_at"),
    "node_keys": ("fingerprint", "member_id", "authority_id", "expires_at", "created_at"),
    "node_authorities": ("created_at",),
    "servers": (),
    "bus_keys": ("public_key", "member_id", "expires_at", "revoked_at"),
    "images": ("project_id", "reference", "digest", "state", "created_at"),
    "edges": ("name",),
    "events": ("seq", "project_id", "organization_id", "type", "resource", "severity", "actor", "time"),
    "audit": ("actor", "action", "resource", "time", "organization_id", "project_id", "position"),
    "webhooks": ("organization_id", "project_id", "created_at"),
    "deliveries": ("webhook_id", "state", "type", "next_at", "seq", "created_at"),
    "idempotency": ("created_at",),
    "counters": (),
    "leases": (),
    "secrets": ("project_id", "name", "created_at"),
    "secret_versions": ("secret_id", "number"),
    "data_keys": ("master_key",),
    "master_keys": ("created_at",),
    "volumes": ("project_id", "name", "node_id", "instance_id", "state", "created_at"),
    "snapshots": ("volume_id", "project_id", "created_at"),
    "backups": ("volume_id", "project_id", "node_id", "state", "verifying", "created_at"),
    "backup_policies": ("project_id", "next_at"),
    "vaults": ("garbage",),
    "published_ports": ("project_id", "app_id", "transport", "port", "created_at"),
    "replicas": ("volume_id", "project_id", "node_id", "purpose", "state", "created_at"),
    "security_groups": ("project_id", "name", "created_at"),
}
UNIQUE: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "organizations": (("name",),),
    "projects": (("organization_id", "name"),),
    "users": (("email",),),
    "invitations": (("secret_hash",),),
    "tokens": (("secret_hash",),),
    "service_accounts": (("organization_id", "name"),),
    "roles": (("organization_id", "name"),),
    "apps": (("project_id", "name"), ("hostname",)),
    "releases": (("app_id", "number"),),
    "nodes": (("name",),),
    "join_tokens": (("secret_hash",),),
    "node_keys": (("fingerprint",),),
    "bus_keys": (("public_key",),),
    "edges": (("name",),),
    "secrets": (("project_id", "name"),),
    "secret_versions": (("secret_id", "number"),),
    "volumes": (("project_id", "name"),),
    "published_ports": (("transport", "port"),),
    "replicas": (("volume_id", "node_id"),),
    "security_groups": (("project_id", "name"),),
}
UNIQUE_IF_GIVEN: Mapping[str, tuple[str, ...]] = {"nodes": ("subnet",), "projects": ("network_number",)}
"""Fields of text or numbers that no two rows have alike, unless they are empty or 0."""


class Store(Protocol):
    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        """Run `fn` in a durable transaction and return what it returned. Raises `UnavailableError` where the disk is
        full or the store is closed."""

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        """Run `fn` on a consistent snapshot; writes in it raise `RuntimeError`."""

    async def close(self) -> None: ...


@runtime_checkable
class ApartStore(Store, Protocol):
    """A store in which much work may wait for its turn."""

    def apart(self) -> Store:
        """Another way to the same rows, on which nothing waits for what is done on this one. Close it before this one."""
