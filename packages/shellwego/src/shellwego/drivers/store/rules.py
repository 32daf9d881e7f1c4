"""What every store driver agrees on: which entities there are, what may be asked, and the words of the errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Protocol

from shellwego.core.apps import App, Release
from shellwego.core.backups import Backup, BackupPolicy, Vault
from shellwego.core.buskeys import BusKey
from shellwego.core.credentials import Credentials
from shellwego.core.deployments import Deployment
from shellwego.core.envelope import DataKey, MasterKey
from shellwego.core.errors import ConflictError, FieldError, NotFoundError, StaleError
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
from shellwego.drivers.store.storable import check_comparable
from shellwego.ports.store import INDEXES, Op, Order, Scalar, Where

ENTITIES: Mapping[str, type] = {
    "organizations": Organization,
    "projects": Project,
    "users": User,
    "credentials": Credentials,
    "invitations": Invitation,
    "tokens": Token,
    "token_uses": TokenUse,
    "grants": Grant,
    "service_accounts": ServiceAccount,
    "roles": Role,
    "quotas": Quota,
    "apps": App,
    "releases": Release,
    "deployments": Deployment,
    "instances": Instance,
    "nodes": Node,
    "join_tokens": JoinToken,
    "node_keys": NodeKey,
    "node_authorities": NodeAuthority,
    "servers": Server,
    "bus_keys": BusKey,
    "images": Image,
    "edges": Edge,
    "events": Event,
    "audit": AuditRecord,
    "webhooks": Webhook,
    "deliveries": Delivery,
    "idempotency": IdempotencyRecord,
    "counters": Counter,
    "leases": LoopLease,
    "secrets": Secret,
    "secret_versions": SecretVersion,
    "data_keys": DataKey,
    "master_keys": MasterKey,
    "volumes": Volume,
    "snapshots": Snapshot,
    "backups": Backup,
    "backup_policies": BackupPolicy,
    "vaults": Vault,
    "published_ports": PublishedPort,
    "replicas": Replica,
    "security_groups": SecurityGroup,
}
"""Table name → entity."""


BY_ID = Order()
_COMPARING = (Op.GT, Op.GTE, Op.LT, Op.LTE)
_ASKED_FOR = {table: frozenset({*fields, "id"}) for table, fields in INDEXES.items()}


class Row(Protocol):
    """What every entity has."""

    @property
    def id(self) -> str: ...


def is_versioned(entity: type) -> bool:
    """True for entities that change by compare-and-set."""
    return any(field.name == "version" for field in fields(entity))


def check_question(
    table: str, conditions: Sequence[Where], order: Order, after: tuple[Scalar, str] | None = None
) -> None:
    """Refuse a question about a field without an index, or about what lies beyond a value that no row can hold.

    Raises:
        ValueError: a defect of the use case, never of a user.
        InvalidError: such a value.
    """
    allowed, compares = _ASKED_FOR[table], after is not None
    for where in conditions:
        if where.field not in allowed:
            raise _unindexed(table, where.field)
        compares = compares or (where.op is not Op.EQ and where.op is not Op.IN and where.op in _COMPARING)
    if order.field not in allowed:
        raise _unindexed(table, order.field)
    if not compares:
        return
    compared = [(where.field, where.value) for where in conditions if where.op in _COMPARING]
    beyond = [] if after is None else [(order.field, after[0]), ("id", after[1])]
    check_comparable(table, [(field, value) for field, value in compared if not isinstance(value, tuple)] + beyond)


def _unindexed(table: str, field: str) -> ValueError:
    fields = ", ".join(sorted(_ASKED_FOR[table]))
    return ValueError(f"{table}.{field} has no index; fields that can be asked for: {fields}")


def taken(table: str, key: Sequence[str]) -> ConflictError:
    """A unique key is in use. The value is not repeated: it may be the hash of a secret."""
    name = key[-1]
    return ConflictError(
        "already-exists",
        f"{table}: {' and '.join(key)} already in use",
        errors=(FieldError(name, "already-exists", f"this {name} is already in use"),),
    )


def stale(table: str, id_: str) -> StaleError:
    """Another version is stored than the one that was read."""
    return StaleError("stale", f"{table}: {id_} was changed in between", resolution="Read it again and retry.")


def missing(table: str, id_: str) -> NotFoundError:
    """There is no such row."""
    return NotFoundError("not-found", f"{table}: there is no {id_}")
