"""What an operator should know of a PostgreSQL before the platform is started on it. Nothing is changed by a look."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from shellwego.core.errors import UnavailableError
from shellwego.drivers.store.location import PostgresUrl
from shellwego.drivers.store.migrate import revision

_QUESTION = """
SELECT current_setting('server_version'), current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on',
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int - count(*)
FROM pg_stat_activity WHERE backend_type = 'client backend'
"""


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    version: str
    durable: bool
    """Whether what is stored outlives a loss of power."""
    free_connections: int
    revision: str
    """Of the schema; empty: no platform was here yet."""


def look(url: PostgresUrl) -> DatabaseFacts:
    """Ask the database.

    Raises:
        UnavailableError: it does not answer, or lets us not in.
    """
    try:
        with url.engine(poolclass=NullPool).connect() as connection:
            version, durable, free = connection.exec_driver_sql(_QUESTION).one()
        found = revision(url)
    except DBAPIError as error:
        reason = url.redact(str(error.orig).partition("\n")[0])
        raise UnavailableError("store-unavailable", f"the database {url} does not answer: {reason}") from None
    return DatabaseFacts(str(version), bool(durable), int(free), found)
