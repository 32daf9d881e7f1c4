"""What `swg doctor` tells of the platform's database."""

from __future__ import annotations

from shellwego.boot.databaseurl import read_url
from shellwego.boot.findings import Finding, fail, ok, warn
from shellwego.boot.settings import UpSettings
from shellwego.core.errors import ShellWeGoError

_CHECK = "database"


def check_database(settings: UpSettings) -> Finding:
    """Whether the platform could be started on it."""
    try:
        url = read_url(settings)
    except ShellWeGoError as error:
        return fail(_CHECK, error.message, error.resolution)
    if not url:
        return ok(_CHECK, f"SQLite, in {settings.data_dir}/db")
    return _postgres(url)


def _postgres(text: str) -> Finding:
    from shellwego.drivers.store.health import look  # noqa: PLC0415 - heavy, and not always needed
    from shellwego.drivers.store.location import parse_url  # noqa: PLC0415
    from shellwego.drivers.store.postgres import CONNECTIONS  # noqa: PLC0415 - as above

    try:
        url = parse_url(text)
        facts = look(url)
    except ShellWeGoError as error:
        if "Peer authentication" in error.message:
            return warn(_CHECK, error.message, "The platform asks as user shellwego: sudo -u shellwego swg doctor")
        return fail(_CHECK, error.message, error.resolution or "Is it up, and does its pg_hba.conf let us in?")
    told = f"PostgreSQL {facts.version}, {url}, schema {facts.revision or 'not made yet'}"
    if not facts.durable:
        return warn(_CHECK, f"{told}: it may lose what it has confirmed", "Set fsync = on and full_page_writes = on.")
    if facts.free_connections < CONNECTIONS:
        free = f"{facts.free_connections} connections are free, and the platform takes {CONNECTIONS}"
        return warn(_CHECK, f"{told}: {free}", "Raise max_connections, unless the platform runs already.")
    return ok(_CHECK, told)
