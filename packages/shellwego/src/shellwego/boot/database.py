"""The platform's database, opened: SQLite in the data directory, unless there is a URL of PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError
from shellwego.core.events import LoopLease
from shellwego.ports.clock import Clock
from shellwego.ports.store import Store

if TYPE_CHECKING:
    from shellwego.drivers.store.location import Location

_OWNER = "platform"


def open_store(url: str, path: Path, clock: Clock) -> Store:
    """Open the database, made or migrated where needed.

    Raises:
        InvalidError: the URL is none of PostgreSQL.
        UnavailableError: it does not answer, or lets us not in.
        ConflictError: it was written by another version than ours knows, or cannot keep what we write.
    """
    if not url:
        return open_location(path, clock)
    from shellwego.drivers.store.location import parse_url  # noqa: PLC0415 - costs memory where it is not used

    return open_location(parse_url(url), clock)


def open_location(location: Location, clock: Clock) -> Store:
    """As `open_store`."""
    if isinstance(location, Path):
        from shellwego.drivers.store.sqlite import open_sqlite  # noqa: PLC0415 - the one that is used

        return open_sqlite(location, clock)
    from shellwego.drivers.store.postgres import open_postgres  # noqa: PLC0415 - as above

    return open_postgres(location)


SERVERS = "servers"
"""Whose a database is that several `swg server` share."""


def claim(unit: Unit, installation_id: str) -> None:
    """Make the database this installation's, or that of servers (`SERVERS`). Two platforms of one host each that shared one
    would both be its only node.

    Raises:
        ConflictError: it is another's.
    """
    owner = unit.tx.leases.get(_OWNER)
    if owner is None:
        unit.tx.leases.insert(LoopLease(id=_OWNER, holder=installation_id, until=0.0))
    elif owner.holder != installation_id:
        raise ConflictError(
            "database-in-use",
            f"the database belongs to {_called(owner.holder)}, and this is {_called(installation_id)}",
            resolution="Give each platform a database of its own. To move it here for good, end the other one, and"
            f" delete the row '{_OWNER}' of the table leases.",
        )


def _called(owner: str) -> str:
    return "the servers of a platform" if owner == SERVERS else f"the platform with installation id {owner}"
