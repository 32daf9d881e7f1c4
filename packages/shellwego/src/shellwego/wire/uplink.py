"""Calls of nodes and edges to a server: their names, their bodies, how a refusal travels, and who understands whom.

A call is `POST /v1/uplink/<method>` with a body in `wire.codec` form. Both sides tell the version of their protocol. It
counts up where something is changed that the other side has to know of; what is only added needs no new version, since
unknown fields are ignored and an unknown method is told as such. Sides that are one version apart work together.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shellwego.core import errors as core
from shellwego.core.routing import RouteTable
from shellwego.ports.busaccess import BusPass

PROTOCOL = 1
PROTOCOL_HEADER = "ShellWeGo-Protocol"
MEDIA_TYPE = "application/msgpack"
BASE = "/v1/uplink/"
LINK = "link"
"""Where a WebSocket is opened (`wire.links`)."""
BLOBS = "blobs/"
"""Behind it the digest of an image's blob that is to be downloaded."""
MEMORIES = "memories/"
"""Behind it the instance of a node that is to go on with another's memory, which is downloaded."""
REPLICAS = "replicas/"
"""Behind it, each after a slash, a replica of a node, the snapshot that is downloaded for it, and, if not all of it, the
earlier one from which it is what differs."""
MAX_SERVER_ANSWER = 64 << 20
"""Bytes."""


class Method(StrEnum):
    REGISTER = "register"
    ASSIGNMENTS = "assignments"
    REPORT = "report"
    SECRETS = "secrets"
    BACKUP_ACCESS = "backup-access"
    NAMES = "names"
    PORTS = "ports"
    VOLUME_KEY = "volume-key"
    REGISTER_EDGE = "register-edge"
    ROUTES = "routes"
    REPORT_EDGE = "report-edge"
    JOIN = "join"
    RENEW = "renew"
    SERVERS = "servers"
    BUS_PASS = "bus-pass"  # noqa: S105 - a method's name


MAX_BODY = 1 << 20
"""Bytes of a call, where `MAX_BODIES` has no other number."""
MAX_BODIES = {Method.REPORT: 16 << 20}
"""A report of all instances; one that would be larger goes in several calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentsCall:
    """What should this node hold?"""

    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesCall:
    """Which names may guests of this node ask for?"""

    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortsCall:
    """At which published ports does this node answer, and who does behind it?"""

    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportAnswer:
    """What was reported is stored, unless it is of an older epoch than this."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterEdgeCall:
    """An edge is up, or up again."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterEdgeAnswer:
    edge_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutesCall:
    edge_id: str
    known_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutesAnswer:
    table: RouteTable | None = None
    """None: what is known is the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewCall:
    """Another certificate for the key of this connection, whatever node or edge it is."""

    request: bytes
    """As that of `core.joins.JoinRequest`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServersCall:
    """Where are the servers?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServersAnswer:
    """All of them; none: stay with those that are known."""

    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BusPassCall:
    """May this key listen on the bus?"""

    public_key: str
    """An NKey of a user, made by the caller for this pass alone."""
    signature: bytes
    """Of `core.buskeys.statement`, by that key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusPassAnswer:
    bus_pass: BusPass | None = None
    """None: hints come over the links alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The answer of a call that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error on its way."""

    kind: str
    """Of `_KINDS`."""
    code: str
    message: str
    resolution: str = ""
    retriable: bool = False
    retry_after_s: int = 0
    errors: tuple[core.FieldError, ...] = ()


_KINDS: dict[str, type[core.ShellWeGoError]] = {
    "throttled": core.ThrottledError,
    "quota": core.QuotaError,
    "malformed": core.MalformedError,
    "unauthenticated": core.UnauthenticatedError,
    "forbidden": core.ForbiddenError,
    "not-found": core.NotFoundError,
    "conflict": core.ConflictError,
    "stale": core.StaleError,
    "invalid": core.InvalidError,
    "unavailable": core.UnavailableError,
}


def refusal_of(error: core.ShellWeGoError) -> Refusal:
    """An error as it travels."""
    return Refusal(
        kind=next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "invalid"),
        code=error.code,
        message=error.message,
        resolution=error.resolution,
        retriable=error.temporary or isinstance(error, core.ThrottledError),
        retry_after_s=error.retry_after_s if isinstance(error, core.ThrottledError) else 0,
        errors=error.errors,
    )


def error_of(refusal: Refusal) -> core.ShellWeGoError:
    """What travelled. A kind that is not known here yet is told by whether another try may help."""
    kind = _KINDS.get(refusal.kind) or (core.UnavailableError if refusal.retriable else core.InvalidError)
    if kind is core.ThrottledError:
        return core.ThrottledError(
            refusal.code, refusal.message, resolution=refusal.resolution, retry_after_s=refusal.retry_after_s
        )
    return kind(refusal.code, refusal.message, resolution=refusal.resolution, errors=refusal.errors)


class Side(StrEnum):
    """Who the other one is."""

    SERVER = "server"
    AGENT = "agent"


def check_protocol(told: str | None, side: Side) -> None:
    """Whether the other side and this one can work together.

    Raises:
        MalformedError: it tells no version.
        InvalidError: it is more than one version older or newer.
    """
    if told is None or not told.isascii() or not told.isdigit() or len(told) > 6:
        raise core.MalformedError("uplink-version-missing", f"the {side} does not tell which protocol it speaks")
    if abs(int(told) - PROTOCOL) <= 1:
        return
    here = Side.AGENT if side is Side.SERVER else Side.SERVER
    behind, age = (side, "old") if int(told) < PROTOCOL else (here, "new")
    raise core.InvalidError(
        f"uplink-too-{age}",
        f"the {side} speaks protocol {told}, the {here} {PROTOCOL}; they may be one apart",
        resolution=f"Update ShellWeGo on the {'servers' if behind is Side.SERVER else 'hosts of nodes and edges'} first.",
    )
