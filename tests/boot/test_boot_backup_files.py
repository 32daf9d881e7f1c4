"""The operator's own files in a backup of the platform: they come back as they were, over nothing, and lead to what was
restored."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.boot.backup import create, restore
from shellwego.core.errors import ConflictError
from shellwego.drivers.store.location import parse_url
from shellwego.drivers.store.schema import metadata
from tests.boot.backup_world import CONFIG, WORDS, World, new_database, rows
from tests.contract.postgres_server import PostgresServer


def test_the_configuration_comes_back_and_never_over_another(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.config.parent.mkdir()
    world.config.write_text(CONFIG)
    new_database(world.here)
    create(world.here, world.backup, WORDS, now=5.0)
    world.config.write_text("mine")
    with pytest.raises(ConflictError) as caught:
        restore(world.there, world.backup, WORDS)
    assert (caught.value.code, world.config.read_text()) == ("file-differs", "mine")
    world.config.unlink()
    restore(world.there, world.backup, WORDS)
    assert world.config.read_text() == CONFIG


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, as only root can")
def test_a_key_comes_back_as_its_users_own(tmp_path: Path) -> None:
    world = World(tmp_path)
    key = tmp_path / "key.pem"
    key.write_text("a key")
    key.chmod(0o600)
    shutil.chown(key, "nobody", "nogroup")
    owned = key.stat()
    new_database(world.here)
    here, there = (replace(place, settings=replace(place.settings, api_key=key)) for place in (world.here, world.there))
    create(here, world.backup, WORDS, now=5.0)
    key.unlink()
    restore(there, world.backup, WORDS)
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("a key", 0o600)
    assert (key.stat().st_uid, key.stat().st_gid) == (owned.st_uid, owned.st_gid)


class TestAConfigurationThatLeadsElsewhere:
    """As of a platform on PostgreSQL, or in a directory of its own, restored in another place."""

    OF_PRODUCTION = "postgresql://shellwego:secret@db.example/shellwego"

    def made(self, directory: Path, configuration: str) -> World:
        world = World(directory)
        world.config.parent.mkdir()
        world.config.write_text(configuration)
        new_database(world.here)
        create(world.here, world.backup, WORDS, now=5.0)
        world.config.unlink()
        return world

    @pytest.mark.parametrize("way", ["url", "url_file"])
    def test_does_not_lead_to_it_from_another_that_was_filled(self, tmp_path: Path, way: str) -> None:
        file = tmp_path / "url"
        file.write_text(self.OF_PRODUCTION)
        file.chmod(0o600)
        world = self.made(tmp_path, f'[database]\n{way} = "{self.OF_PRODUCTION if way == "url" else file}"')
        with pytest.raises(ConflictError) as caught:
            restore(world.there, world.backup, WORDS)
        assert (caught.value.code, "secret" in str(caught.value)) == ("database-differs", False)
        assert not world.config.exists()
        assert not world.there.data_dir.exists()
        restore(world.there, world.backup, WORDS, configuration=False)
        assert not world.config.exists()
        assert len(rows(world.there.database)) == len(metadata.tables)

    def test_comes_back_where_nothing_is_started_by_it(self, tmp_path: Path) -> None:
        world = self.made(tmp_path, f'[database]\nurl_file = "{tmp_path / "missing"}"')
        restore(world.there, world.backup, WORDS)
        assert world.config.exists()

    def test_comes_back_with_the_database_that_it_names(self, tmp_path: Path, postgres: PostgresServer) -> None:
        target = postgres.new_database()
        world = self.made(tmp_path, f'[database]\nurl = "{target.dsn}"')
        restore(world.place("there", target), world.backup, WORDS)
        assert world.config.exists()

    def test_comes_back_with_its_database_though_that_is_reached_in_another_way(
        self, tmp_path: Path, postgres: PostgresServer
    ) -> None:
        target = postgres.new_database()
        world = self.made(tmp_path, f'[database]\nurl = "{target.dsn}"')
        now = parse_url(f"{target.dsn}{'&' if '?' in target.dsn else '?'}sslmode=prefer")
        restore(world.place("there", now), world.backup, WORDS)
        assert world.config.exists()

    @pytest.mark.parametrize("name", ["data_dir", "data-dir"])
    def test_does_not_lead_to_an_empty_data_directory(self, tmp_path: Path, name: str) -> None:
        own = tmp_path / "own"
        world = self.made(tmp_path, f'[up]\n{name} = "{own}"\n')
        with pytest.raises(ConflictError) as caught:
            restore(world.there, world.backup, WORDS)
        assert (caught.value.code, f"--data-dir {own}." in str(caught.value.resolution)) == ("data-dir-differs", True)
        assert not world.config.exists()
        assert not world.there.data_dir.exists()
        restore(world.place("own"), world.backup, WORDS)
        assert world.config.exists()

    def test_is_left_out_without_the_certificate_and_the_key(self, tmp_path: Path) -> None:
        """Which no command gives."""
        world = World(tmp_path)
        world.config.parent.mkdir()
        world.config.write_text(CONFIG)
        key = tmp_path / "key.pem"
        key.write_text("a key")
        new_database(world.here)
        create(replace(world.here, settings=replace(world.here.settings, api_key=key)), world.backup, WORDS, now=5.0)
        world.config.unlink()
        key.unlink()
        restore(world.there, world.backup, WORDS, configuration=False)
        assert (key.read_text(), world.config.exists()) == ("a key", False)

    def test_and_leaves_the_key_that_is_there_by_now(self, tmp_path: Path) -> None:
        world = World(tmp_path)
        key = tmp_path / "key.pem"
        key.write_text("a key")
        new_database(world.here)
        create(replace(world.here, settings=replace(world.here.settings, api_key=key)), world.backup, WORDS, now=5.0)
        key.write_text("a newer one")
        restore(world.there, world.backup, WORDS, configuration=False)
        assert key.read_text() == "a newer one"
