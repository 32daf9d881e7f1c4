"""Where the truth is kept: a file of SQLite, or a database of PostgreSQL.

The URL of PostgreSQL may hold a password. It is kept in one place, and no text that is made of a location tells it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from shellwego.core.errors import FieldError, InvalidError

_SCHEMES = ("postgresql", "postgres")
_PORT = "5432"
"""Where a URL names none."""
_SECRET_PARAMETERS = ("password", "sslpassword")
_CONNECTION: Mapping[str, object] = {
    "connect_timeout": 5,
    "application_name": "shellwego",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Defaults of libpq's parameters, in seconds and (the last) milliseconds; what the URL says goes before."""


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """A database of PostgreSQL; made by `parse_url`."""

    _url: sa.URL = field(repr=False)

    def __str__(self) -> str:
        """Its name without password and parameters, for people."""
        return sa.URL.create(
            "postgresql", self._url.username, None, self._url.host, self._url.port, self._url.database
        ).render_as_string()

    @property
    def name(self) -> str:
        """Of the database within its server."""
        return str(self._url.database)

    @property
    def place(self) -> tuple[frozenset[tuple[str, str]], tuple[str, ...]]:
        """Which database of which server: its hosts with their ports, of which there may be several, and its name; with the
        service that may name both, and the options that may name a schema. Who goes there, and how, does not count."""
        told = _connect_args(self._url)
        hosts = str(told.get("hostaddr") or told.get("host") or "").lower().split(",")
        ports = str(told.get("port") or "").split(",")
        ports = ports * len(hosts) if len(ports) == 1 else ports
        names = tuple(str(told.get(name, "")) for name in ("dbname", "service", "options"))
        return frozenset((host, port or _PORT) for host, port in zip(hosts, ports, strict=False)), names

    @property
    def dsn(self) -> str:
        """The whole of it, with its password, as libpq reads it."""
        return self._url.set(drivername="postgresql").render_as_string(hide_password=False)

    def engine(self, **options: Any) -> sa.Engine:
        """An engine on it, with these options of SQLAlchemy's."""
        known = {name: value for name, value in _CONNECTION.items() if name not in self._url.query}
        return sa.create_engine(
            self._url,
            connect_args=known,
            hide_parameters=True,  # errors are logged, and rows hold secrets
            **options,
        )

    def redact(self, text: str) -> str:
        """The text without the password."""
        password = self._url.password
        return text.replace(str(password), "***") if password else text


Location = Path | PostgresUrl


def parse_url(text: str) -> PostgresUrl:
    """`postgresql://user:password@host:port/database?sslmode=verify-full`; the parameters are libpq's.

    Raises:
        InvalidError: it is no such URL. The text is not repeated: it may hold a password.
    """
    try:
        url = sa.make_url(text.strip())
    except (ArgumentError, ValueError):
        raise _refusal("it is no URL") from None
    if url.drivername not in _SCHEMES:
        raise _refusal("it does not begin with postgresql://")
    if not url.database:
        raise _refusal("it names no database")
    if any(name in url.query for name in _SECRET_PARAMETERS):
        raise _refusal("a password stands before the host (user:password@host), or in libpq's passfile")
    url = url.set(drivername="postgresql+psycopg")
    try:
        _connect_args(url)
    except (ArgumentError, ValueError):
        raise _refusal("its hosts and ports do not go together") from None
    return PostgresUrl(url)


def _connect_args(url: sa.URL) -> Mapping[str, Any]:
    """What libpq is told by it; raises `ArgumentError`."""
    _, told = url.get_dialect()().create_connect_args(url)
    return told


def _refusal(why: str) -> InvalidError:
    return InvalidError(
        "invalid-database-url",
        f"the URL of the database cannot be used: {why}",
        resolution="Such as postgresql://shellwego@db.example:5432/shellwego, or postgresql:///shellwego?host=/run/postgresql",
        errors=(FieldError("database.url", "invalid-database-url", why),),
    )
