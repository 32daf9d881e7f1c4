"""Where the platform's database is named, and that its password stays where it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from shellwego.boot import up
from shellwego.boot.configfile import config_file_values
from shellwego.boot.database import claim, open_store
from shellwego.boot.databasechecks import check_database
from shellwego.boot.databaseurl import read_url
from shellwego.boot.findings import State
from shellwego.boot.settings import UpSettings
from shellwego.boot.up import up_settings
from shellwego.control.bootstrap import bootstrap
from shellwego.control.unit import Control
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from tests.contract.postgres_server import PostgresServer

URL = "postgresql://swg:c4nary@db/swg"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    path.touch(0o600)
    monkeypatch.setattr(up, "config_file_values", lambda: config_file_values(path))
    return path


@pytest.fixture
def url_file(tmp_path: Path) -> Path:
    path = tmp_path / "url"
    path.touch(0o600)
    path.write_text(URL + "\n")
    return path


def test_without_a_url_it_is_sqlite(config: Path) -> None:
    assert read_url(up_settings({})) == ""


def test_the_configuration_file_names_it_in_a_table_of_its_own(config: Path) -> None:
    config.write_text(f'[up]\nhttp_port = 8080\n[database]\nurl = "{URL}"\n')
    settings = up_settings({})
    assert (read_url(settings), settings.http_port) == (URL, 8080)
    assert "c4nary" not in repr(settings)


def test_the_environment_goes_before_the_file_and_a_flag_before_both(
    config: Path, url_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('[database]\nurl_file = "/nowhere"\n')
    monkeypatch.setenv("SHELLWEGO_DATABASE_URL", "postgresql://environment/swg")
    assert read_url(up_settings({})) == "postgresql://environment/swg"
    assert read_url(up_settings({"database_url_file": str(url_file)})) == URL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'[database]\nurl = "{URL}"\nurl_file = "x"\n', "named twice"),
        (f'[database]\nuri = "{URL}"\n', "database.uri"),
        ("[database]\nurl = 5\n", "not a text"),
        ("database = 5\n", "not a table"),
        (f'[up]\ndatabase_url = "{URL}"\n', "table [database]"),
    ],
)
def test_a_database_that_is_named_otherwise_is_refused(config: Path, text: str, words: str) -> None:
    config.write_text(text)
    with pytest.raises(InvalidError) as caught:
        up_settings({})
    assert words in caught.value.message
    assert "c4nary" not in caught.value.message


def test_a_password_that_everybody_can_read_is_refused(config: Path, url_file: Path) -> None:
    url_file.chmod(0o644)
    with pytest.raises(InvalidError, match="everybody can read"):
        read_url(up_settings({"database_url_file": str(url_file)}))
    config.write_text(f'[database]\nurl = "{URL}"\n')
    config.chmod(0o644)
    with pytest.raises(InvalidError, match="everybody can read"):
        up_settings({})
    config.write_text('[database]\nurl = "postgresql:///swg?host=/run/postgresql"\n')
    assert read_url(up_settings({}))


def test_a_file_that_cannot_be_read_or_is_empty_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "empty"):
        if path.name == "empty":
            path.touch()
        with pytest.raises(InvalidError, match=str(path)):
            read_url(UpSettings(database_url_file=path))


async def test_a_database_is_one_platforms_only(postgres: PostgresServer) -> None:
    store = open_store(postgres.emptied_database().dsn, Path("/nowhere"), SystemClock())
    control = Control(store, MemoryBus(), SystemClock())
    for _ in range(2):
        await control.commit(lambda unit: claim(unit, "inst_a"))
    with pytest.raises(ConflictError, match="inst_a") as caught:
        await control.commit(lambda unit: (claim(unit, "inst_b"), bootstrap(unit, "secret")))
    assert "leases" in caught.value.resolution
    assert await control.read(lambda tx: tx.users.count()) == 0
    await store.close()


def test_doctor_tells_what_the_database_is(postgres: PostgresServer, tmp_path: Path) -> None:
    assert check_database(UpSettings()).state is State.OK
    url = postgres.new_database()
    found = check_database(UpSettings(database_url=url.dsn))
    assert (found.state, "schema not made yet" in found.message) == (State.OK, True)
    away = check_database(UpSettings(database_url=f"postgresql://x:c4nary@/swg?host={tmp_path}"))
    assert (away.state, bool(away.remedy)) == (State.FAIL, True)
    assert "c4nary" not in f"{away}"
    assert check_database(UpSettings(database_url="mysql://c4nary")).state is State.FAIL
