"""A platform whose state is in PostgreSQL: it starts there, survives both, and tells the password to nobody."""

from __future__ import annotations

import http.client
import tempfile
from pathlib import Path

import pytest

from examples.demo.platform import CommandFailed, Platform
from tests.contract.postgres_server import PostgresServer, running_postgres
from tests.real.platform_harness import (
    api,
    arguments_of,
    kill_platform,
    platform_processes,
    scratch_platform,
    take_down,
    until,
)

pytestmark = pytest.mark.real

PASSWORD = "c4nary-of-the-database"


def url_file(directory: Path, server: PostgresServer, database: str) -> Path:
    path = directory / "database-url"
    path.touch(0o600)
    path.write_text(server.url(database, password=PASSWORD))
    return path


def second_platform(directory: Path, secret: Path) -> str:
    """What another platform says that is to use the same database."""
    other = Platform(directory / "data", directory / "config", extra=("--database-url-file", str(secret)))
    with pytest.raises(CommandFailed) as refused:
        other.start()
    take_down(other)
    return refused.value.output


def apps(platform: Platform) -> list[str]:
    return [app["name"] for app in api(platform, "apps")["data"]]


def database_is_missed(platform: Platform) -> bool:
    try:
        api(platform, "apps")
    except AssertionError as answer:
        return "503" in str(answer)
    except (OSError, http.client.HTTPException):
        return False
    return False


def database_is_back(platform: Platform) -> bool:
    try:
        return apps(platform) == ["shop"]
    except AssertionError:
        return False


def test_a_platform_on_postgresql_survives_its_own_death_and_the_databases() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="swg-test-", ignore_cleanup_errors=True) as name,
        running_postgres() as server,
    ):
        place = Path(name)
        place.chmod(0o755)
        database = server.new_database().name
        secret = url_file(place, server, database)
        with scratch_platform("--database-url-file", str(secret)) as platform:
            platform.swg("apps", "create", "shop")
            for pid in platform_processes(platform):
                assert PASSWORD not in " ".join(arguments_of(pid))
            refused = second_platform(place, secret)
            assert "belongs to the platform" in refused
            kill_platform(platform)
            platform.start()
            assert apps(platform) == ["shop"]
            server.stop()
            until(lambda: database_is_missed(platform), "the API says that the database is away")
            server.start()
            until(lambda: database_is_back(platform), "the platform goes on with the database")
            assert api(platform, "nodes")["data"][0]["health"] == "ready"
            assert PASSWORD not in platform.log.read_text() + refused
