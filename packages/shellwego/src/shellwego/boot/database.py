"""The platform's database: SQLite in the data directory, unless a URL of PostgreSQL is given."""

from __future__ import annotations

from pathlib import Path

from shellwego.boot.settings import UpSettings, exposed, has_password
from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.core.events import LoopLease
from shellwego.ports.clock import Clock
from shellwego.ports.store import Store

_OWNER = "platform"
_MAX_URL_BYTES = 4096


def read_url(settings: UpSettings) -> str:
    """The URL of PostgreSQL, from the settings or from the file that they name; empty: SQLite.

    Raises:
        InvalidError: the file cannot be read, holds no URL, or shows a password to everybody.
    """
    path = settings.database_url_file
    if path is None:
        return settings.database_url
    try:
        with path.open("rb") as file:
            url = file.read(_MAX_URL_BYTES).decode().strip()
            mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidError("no-database-url", f"--database-url-file {path}: {reason}") from error
    if not url:
        raise InvalidError("no-database-url", f"--database-url-file {path}: it is empty")
    if mode & 0o004 and has_password(url):
        raise exposed(path)
    return url


def open_store(url: str, path: Path, clock: Clock) -> Store:
    """Open the database, made or migrated where needed.

    Raises:
        InvalidError: the URL is none of PostgreSQL.
        UnavailableError: it does not answer, or lets us not in.
        ConflictError: it was written by another version than ours knows, or cannot keep what we write.
    """
    if not url:
        from shellwego.drivers.store.sqlite import open_sqlite  # noqa: PLC0415 - the one that is used

        return open_sqlite(path, clock)
    from shellwego.drivers.store.location import parse_url  # noqa: PLC0415 - costs memory where it is not used
    from shellwego.drivers.store.postgres import open_postgres  # noqa: PLC0415

    return open_postgres(parse_url(url))


def claim(unit: Unit, installation_id: str) -> None:
    """Make the database this installation's. Two platforms of one host each that shared one would both be its only node.

    Raises:
        ConflictError: it is another's.
    """
    owner = unit.tx.leases.get(_OWNER)
    if owner is None:
        unit.tx.leases.insert(LoopLease(id=_OWNER, holder=installation_id, until=0.0))
    elif owner.holder != installation_id:
        raise ConflictError(
            "database-in-use",
            f"the database belongs to the platform with installation id {owner.holder}, and this one is {installation_id}",
            resolution="Give each platform a database of its own. To move it here for good, end the other one, and"
            f" delete the row '{_OWNER}' of the table leases.",
        )
