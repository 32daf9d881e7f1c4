"""The whole platform backed up and restored: row for row, all or nothing, and never over what is there."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shellwego.boot import backupcommands, backupfiles
from shellwego.boot.backup import DATABASE, Place, create, restore
from shellwego.boot.backupcommands import PASSPHRASE, backup
from shellwego.boot.backupfiles import Backup, Manifest, Writer, open_backup
from shellwego.control.sealing import Sealer, keep
from shellwego.control.unit import Control
from shellwego.core.errors import ConflictError, InvalidError, NotFoundError, ShellWeGoError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.kms.local import FileKms
from shellwego.drivers.store import dump, migrate
from shellwego.drivers.store.location import Location, PostgresUrl, parse_url
from shellwego.drivers.store.schema import metadata
from shellwego.ports.store import Store
from tests.boot.backup_world import BOUND, WORDS, World, opened, rows
from tests.boot.interrupted_restore import KILLED
from tests.contract.postgres_server import PostgresServer
from tests.contract.store_samples import user

ROOT = Path(__file__).resolve().parents[2]


def one(directory: Path) -> Backup:
    return open_backup(directory, WORDS)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One world, made once; what is in it is not to be changed."""
    directory = tmp_path_factory.mktemp("world")
    world = World(directory)
    asyncio.run(world.fill())
    made = create(world.here, world.backup, WORDS, now=5.0)
    assert (made.made_at, made.revision, made.kms) == (5.0, migrate.HEAD, "local")
    return directory


@pytest.fixture
def world(filled: Path, tmp_path: Path) -> World:
    return copied(filled, tmp_path)


def copied(filled: Path, directory: Path, target: Location | None = None) -> World:
    """A world of one's own, whose configuration is where the first one's is."""
    shutil.copytree(filled, directory, dirs_exist_ok=True)
    world = World(directory, target)
    world.config = filled / "etc" / "config.toml"
    return world


def test_what_is_restored_is_what_was_there_row_for_row(filled: Path, tmp_path: Path, postgres: PostgresServer) -> None:
    """From SQLite to PostgreSQL, of which a backup is made, and back."""
    target = postgres.new_database()
    world = copied(filled, tmp_path, target)
    before = rows(world.here.database)
    assert before.keys() == metadata.tables.keys()
    assert all(before.values()), "every table has something"
    restore(world.there, world.backup, WORDS)
    assert rows(target) == before
    create(world.there, world.directory / "second", WORDS, now=6.0)
    back = world.place("back")
    restore(back, world.directory / "second", WORDS)
    assert rows(back.database) == before
    for path in ("installation", "keys/master-keys.json"):
        assert (back.data_dir / path).read_bytes() == (world.here.data_dir / path).read_bytes()
        assert (back.data_dir / path).stat().st_mode & 0o777 == 0o600
    assert asyncio.run(world.unsealed(back)) == "a secret"
    with pytest.raises(ConflictError) as caught:
        restore(world.place("again", target), world.backup, WORDS)
    assert caught.value.code == "database-not-empty"
    assert not (world.directory / "again").exists()


def test_a_key_file_that_nothing_is_under_is_not_taken_for_the_master_keys(world: World) -> None:
    """As it lies there where keys were given since, or are kept elsewhere."""
    path = world.here.data_dir / "keys" / "master-keys.json"
    path.unlink()
    FileKms.open(path)
    made = create(world.here, world.directory / "second", WORDS, now=6.0)
    assert made.kms == "given"
    assert "master-keys" not in {piece.name for piece in made.pieces}


class TestARestoreIntoPostgreSQLThatIsInterrupted:
    """Between the database, which is filled, and the data directory, which is not in its place yet."""

    @pytest.fixture
    def target(self, postgres: PostgresServer) -> PostgresUrl:
        return postgres.new_database()

    @pytest.fixture
    def world(self, filled: Path, tmp_path: Path, target: PostgresUrl) -> World:
        return copied(filled, tmp_path, target)

    def is_whole(self, world: World) -> None:
        assert rows(world.there.database) == rows(world.here.database)
        assert asyncio.run(world.unsealed(world.there)) == "a secret"
        assert {path.name for path in world.there.data_dir.iterdir()} == {"installation", "keys", "db"}
        assert list(world.directory.glob(".*")) == []

    def test_is_gone_on_with_by_the_same_command(self, world: World, target: PostgresUrl) -> None:
        killed_at_its_last_step(world)
        assert rows(target) == rows(world.here.database)
        assert not world.there.data_dir.exists()
        restore(world.there, world.backup, WORDS)
        self.is_whole(world)

    def test_is_over_where_nothing_but_the_mark_was_left(self, world: World, target: PostgresUrl) -> None:
        restore(world.there, world.backup, WORDS)
        (world.there.data_dir / "restored").write_text(dump.marked(target))
        restore(world.there, world.backup, WORDS)
        self.is_whole(world)
        with pytest.raises(ConflictError) as caught:
            restore(world.there, world.backup, WORDS)
        assert caught.value.code == "not-empty"

    @pytest.mark.nightly
    def test_is_not_taken_for_that_of_another_backup(self, world: World) -> None:
        second = world.directory / "second"
        create(world.here, second, WORDS, now=6.0)
        killed_at_its_last_step(world)
        with pytest.raises(ConflictError) as caught:
            restore(world.there, second, WORDS)
        assert caught.value.code == "restore-unfinished"
        restore(world.there, world.backup, WORDS)
        self.is_whole(world)

    @pytest.mark.nightly
    def test_is_gone_on_with_where_the_databases_answer_was_lost(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load = dump.load

        def cut_off(*words: Any) -> None:
            load(*words)
            raise ConnectionResetError

        with monkeypatch.context() as patch:
            patch.setattr(dump, "load", cut_off)
            with pytest.raises(ConnectionResetError):
                restore(world.there, world.backup, WORDS)
        restore(world.there, world.backup, WORDS)
        self.is_whole(world)

    @pytest.mark.nightly
    def test_leaves_nothing_where_the_database_was_not_filled(
        self, world: World, target: PostgresUrl, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> None:
            raise ConflictError("broken", "it broke")

        with monkeypatch.context() as patch:
            patch.setattr(dump, "load", broken)
            with pytest.raises(ConflictError):
                restore(world.there, world.backup, WORDS)
        dump.check_empty(target)
        assert list(world.directory.glob(".*")) == []

    @pytest.mark.nightly
    def test_does_not_hide_that_somebody_else_filled_the_database(self, world: World) -> None:
        killed_at_its_last_step(world)
        (mark,) = world.directory.glob(".*/restored")
        mark.write_text(mark.read_text()[:-1] + "x")
        with pytest.raises(ConflictError) as caught:
            restore(world.there, world.backup, WORDS)
        assert caught.value.code == "database-not-empty"


def killed_at_its_last_step(world: World) -> None:
    """A restore, in a process that ends as it is about to rename the data directory into its place."""
    there = world.there
    module = "tests.boot.interrupted_restore"
    command = [sys.executable, "-m", module, world.backup, there.data_dir, world.config, there.settings.database_url]
    done = subprocess.run(
        command, cwd=ROOT, input=WORDS.reveal_text(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == KILLED, done.stderr[-3000:]


def test_it_is_of_one_moment_while_a_server_writes(world: World) -> None:
    store = opened(world.here.database)
    with dump.snapshot(world.here.database) as tables:
        before = len(list(tables["users"]()))
        asyncio.run(_insert(store, "late"))
        assert len(list(tables["users"]())) == before
    assert len(rows(world.here.database)["users"]) == before + 1


async def _insert(store: Store, name: str) -> None:
    await store.transact(lambda tx: tx.users.insert(user(name)))
    await store.close()


class TestTheMasterKeysAreOfTheMomentOfTheRows:
    """Whatever is done to them meanwhile: what is sealed in the rows opens."""

    def restored(self, world: World, monkeypatch: pytest.MonkeyPatch, *, before: bool) -> str:
        """The secret, of a backup while which the master key is rotated, and the secret sealed anew: just before the rows
        are looked at, or after."""
        snapshot, done = dump.snapshot, list[None]()

        @contextmanager
        def meanwhile(location: Location) -> Iterator[Mapping[str, Callable[[], Iterator[bytes]]]]:
            if before and not done:
                done.append(asyncio.run(rotated(world)))
            with snapshot(location) as tables:
                yield {**tables, "users": lambda: at_last(tables["users"])}

        def at_last(read: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
            if not done:
                done.append(asyncio.run(rotated(world)))
            yield from read()

        value = world.directory / "value"
        then = value.read_text()
        with monkeypatch.context() as patch:
            patch.setattr(dump, "snapshot", meanwhile)
            create(world.here, world.directory / "fresh", WORDS, now=6.0)
        assert done
        if not before:
            value.write_text(then)
        restore(world.there, world.directory / "fresh", WORDS)
        return asyncio.run(world.unsealed(world.there))

    def test_one_that_is_made_before_they_are_read_is_in_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.restored(world, monkeypatch, before=True) == "a secret"

    def test_one_that_is_retired_after_they_were_read_is_in_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.restored(world, monkeypatch, before=False) == "a secret"


async def rotated(world: World) -> None:
    """The secret is under a new master key, and the old one is no more."""
    kms = FileKms.open(world.here.data_dir / "keys" / "master-keys.json")
    old = await kms.current()
    await kms.rotate()
    store = opened(world.here.database)
    control = Control(store, MemoryBus(), SystemClock())
    sealing = await Sealer(control, kms).seal(Sensitive.of("a secret"), BOUND)
    value = await control.commit(lambda unit: keep(unit, sealing))
    (world.directory / "value").write_text(json.dumps([value.key_id, value.nonce.hex(), value.ciphertext.hex()]))
    await kms.retire(old)
    await store.close()


def test_nothing_of_it_can_be_read_without_the_passphrase(world: World) -> None:
    stored = b"".join(path.read_bytes() for path in world.backup.iterdir())
    keys = json.loads((world.here.data_dir / "keys" / "master-keys.json").read_text())["keys"]
    for word in (b"example.org", b"usr_1-", *(key.encode() for key in keys.values()), WORDS.reveal()):
        assert word not in stored
    assert {path.stat().st_mode & 0o077 for path in (world.backup, world.backup / backupfiles.MANIFEST)} == {0}


class TestWhatIsRefused:
    def refused(self, world: World, code: str, passphrase: Sensitive = WORDS) -> str:
        """Nothing is left of the attempt."""
        with pytest.raises(ShellWeGoError) as caught:
            restore(world.there, world.backup, passphrase)
        assert caught.value.code == code
        assert not [path for path in world.directory.iterdir() if path.name.startswith((".", "there"))]
        return caught.value.message

    def test_another_passphrase(self, world: World) -> None:
        told = self.refused(world, "wrong-passphrase", Sensitive.of("correct horse battery stable"))
        assert "horse" not in told

    @pytest.mark.parametrize("harm", ["flip", "cut", "gone", "swap"])
    def test_a_damaged_piece_is_named(self, world: World, harm: str) -> None:
        pieces = one(world.backup).pieces()
        path, other = (world.backup / pieces[f"rows/{name}"].file for name in ("users", "apps"))
        content = path.read_bytes()
        match harm:
            case "flip":
                path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
            case "cut":
                path.write_bytes(content[:-20])
            case "gone":
                path.unlink()
            case _:
                path.write_bytes(other.read_bytes())
        assert "rows/users" in self.refused(world, "backup-damaged")

    def test_a_manifest_that_was_changed(self, world: World) -> None:
        path = world.backup / backupfiles.MANIFEST
        whole = path.read_text()
        path.write_text(whole.replace('"kms": "local"', '"kms": "vault"'))
        assert backupfiles.MANIFEST in self.refused(world, "backup-damaged")
        path.write_text(whole[:-30])
        self.refused(world, "backup-damaged")
        path.unlink()
        assert f"{world.backup} is no backup" in self.refused(world, "no-backup")

    def test_one_of_a_later_version(self, world: World) -> None:
        self.forged(world, replace(one(world.backup).manifest, revision="9999", pieces=()))
        assert str(world.backup) in self.refused(world, "schema-too-new")
        self.forged(world, replace(one(world.backup).manifest, format=3, pieces=()))
        self.refused(world, "backup-too-new")

    def forged(self, world: World, manifest: Manifest) -> None:
        (world.backup / backupfiles.MANIFEST).unlink()
        Writer(world.backup, manifest, WORDS).finish("local")

    def test_a_place_where_there_is_something(self, world: World) -> None:
        before = rows(world.here.database)
        for place in (world.here, world.there):
            place.data_dir.mkdir(exist_ok=True)
            (place.data_dir / "mine").touch()
            with pytest.raises(ConflictError) as caught:
                restore(place, world.backup, WORDS)
            assert caught.value.code == "not-empty"
        assert rows(world.here.database) == before

    def test_a_row_that_does_not_fit_leaves_an_empty_database(self, tmp_path: Path) -> None:
        lines: dict[str, Callable[[], list[bytes]]] = {"users": lambda: [b'{"id": "usr_1"}']}
        with pytest.raises(Exception, match="NOT NULL"):
            dump.load(tmp_path / "state.db", migrate.HEAD, lines)
        dump.check_empty(tmp_path / "state.db")

    def test_a_backup_that_is_there_and_a_platform_that_is_not(self, world: World) -> None:
        with pytest.raises(ConflictError, match="is there already"):
            create(world.here, world.backup, WORDS, now=5.0)
        with pytest.raises(NotFoundError):
            create(world.there, world.directory / "other", WORDS, now=5.0)
        assert not (world.directory / "other").exists()
        (world.there.data_dir / "db").mkdir(parents=True)
        sqlite3.connect(world.there.data_dir / DATABASE).execute("CREATE TABLE x (y)").connection.commit()
        with pytest.raises(ConflictError) as caught:
            create(world.there, world.directory / "other", WORDS, now=5.0)
        assert caught.value.code == "schema-differs"


class TestTheCommand:
    @pytest.fixture
    def swg(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
        def place(flags: dict[str, str | None]) -> Place:
            return world.here if flags["data_dir"] == "here" else world.there

        monkeypatch.setattr(backupcommands, "_place", place)

        def run(*words: str, **environment: str) -> tuple[int, str]:
            result = CliRunner().invoke(backup, words, env=environment)
            return result.exit_code, result.output

        return run

    def test_without_a_passphrase_it_says_so(self, world: World, swg: Callable[..., tuple[int, str]]) -> None:
        code, told = swg("create", str(world.directory / "fresh"), "--data-dir", "here")
        assert (code, "no passphrase is given" in told, "--passphrase-file" in told) == (2, True, True)
        code, told = swg("create", str(world.directory / "fresh"), "--data-dir", "here", **{PASSPHRASE: "short"})
        assert (code, "at least 12 characters" in told) == (2, True)

    def test_it_is_root_who_is_needed_for_the_backup(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 65534)
        result = CliRunner().invoke(backup, ["create", str(world.directory / "fresh")])
        assert result.exit_code == 1
        assert "a backup is made and restored by root" in result.output
        assert "sudo swg backup" in result.output

    def test_there_and_back(self, world: World, swg: Callable[..., tuple[int, str]]) -> None:
        words = world.directory / "words"
        words.write_bytes(WORDS.reveal() + b"\n")
        words.chmod(0o600)
        fresh = str(world.directory / "fresh")
        code, told = swg("create", fresh, "--data-dir", "here", "--passphrase-file", str(words))
        assert (code, "what volumes hold" in told) == (0, True), told
        code, told = swg("restore", fresh, "--data-dir", "there", **{PASSPHRASE: WORDS.reveal_text()})
        assert code == 0, told
        assert len(metadata.tables) == len(rows(world.there.database))

    def test_a_database_that_does_not_answer_is_told_without_its_password(
        self, world: World, swg: Callable[..., tuple[int, str]]
    ) -> None:
        nowhere = parse_url("postgresql://shellwego:secret@127.0.0.1:1/shellwego")
        world.here, world.there = world.place("here", nowhere), world.place("there", nowhere)
        for words in (("create", str(world.directory / "fresh"), "--data-dir", "here"), ("restore", str(world.backup))):
            code, told = swg(*words, **{PASSPHRASE: WORDS.reveal_text()})
            assert (code, "127.0.0.1:1/shellwego failed" in told, "secret" in told) == (1, True, False), told
        assert not (world.directory / "fresh").exists()

    def test_passphrases_that_are_none(self, world: World, swg: Callable[..., tuple[int, str]]) -> None:
        words = world.directory / "words"
        words.write_text("short")
        words.chmod(0o644)
        for given, why in ((("--passphrase-file", str(words)), "chmod 600"), ((), "no passphrase is given")):
            code, told = swg("create", str(world.directory / "fresh"), "--data-dir", "here", *given)
            assert (code, why in told) == (2, True), told
        assert not (world.directory / "fresh").exists()


def test_a_piece_of_any_size_comes_back(tmp_path: Path) -> None:
    sizes = (0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20)
    writer = Writer(tmp_path, Manifest(made_at=0.0, version="1", revision="1"), WORDS)
    for size in sizes:
        writer.add(str(size), [b"ab" * (size // 2), b"c" * (size % 2)])
    writer.finish("local")
    found = one(tmp_path)
    found.verify()
    assert [len(found.content(piece)) for piece in found.manifest.pieces] == list(sizes)
    with pytest.raises(InvalidError):
        open_backup(tmp_path / "none", WORDS)
