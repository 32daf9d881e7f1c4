"""Volumes in a backup of the whole platform: what they hold is in it, and is made into them anew; all or nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shellwego.agent.repository import Repository
from shellwego.boot import backup as platform_backup
from shellwego.boot import backupcommands
from shellwego.boot.backup import DATABASE, Place, create, restore
from shellwego.boot.backupcommands import PASSPHRASE
from shellwego.boot.backupvolumes import Held, Keeper, make_anew
from shellwego.boot.settings import UpSettings
from shellwego.control import platformvolumes
from shellwego.control.backupreports import backup_orders, take_backups
from shellwego.control.backups import let_backup_go
from shellwego.control.loops.backups import BackupLoop
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control, Unit
from shellwego.control.vaults import Vaults
from shellwego.core.assignments import NodeReport
from shellwego.core.backups import Backup, BackupPhase, BackupState, ObservedBackup
from shellwego.core.chunks import CHUNK_BYTES, VaultCipher
from shellwego.core.errors import ConflictError, ShellWeGoError, UnavailableError
from shellwego.core.instances import Phase
from shellwego.core.sensitive import Sensitive
from shellwego.core.volumes import Presence, Volume, VolumeState
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.kms.local import FileKms
from shellwego.drivers.objects.directory import DirectoryObjects
from shellwego.drivers.store.location import Location
from shellwego.ports.objects import Objects
from shellwego.ports.store import Transaction, eq
from tests.boot.backup_world import WORDS, opened
from tests.contract.postgres_server import PostgresServer
from tests.contract.store_samples import FACTS, SAMPLES

CONTENT = {
    "vol_1": os.urandom(CHUNK_BYTES) + b"the orders".ljust(CHUNK_BYTES, b"\0"),
    "vol_2": b"logs".ljust(4096, b"\0"),
}
"""Of the volumes: `data`, which an instance has, and `logs`."""
_KEPT = ("organizations", "projects", "apps", "releases", "instances", "nodes", "snapshots", "replicas")


def sample(table: str) -> Any:
    return SAMPLES[table]


@dataclass
class Disk:
    """`ports.engine.SnapshotSource`: bytes."""

    content: bytes
    sealed: bool = False

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    async def next_data(self, offset: int) -> tuple[int, int] | None:
        return (offset, len(self.content)) if offset < len(self.content) else None

    async def read(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]


def nobody(_done: int, _added: int) -> None:
    """Who wants to know how far it is."""


async def wanted() -> None:
    """Whether it still is."""


class Platform:
    """One that is at this place: its store, its keys and its repository."""

    def __init__(self, place: Place) -> None:
        clock = SystemClock()
        self.control = Control(opened(place.database), MemoryBus(), clock)
        kms = FileKms.open(place.data_dir / "keys" / "master-keys.json")
        self.vaults = Vaults(self.control, Sealer(self.control, kms), None)
        self.objects = DirectoryObjects(Path(place.settings.backups_url.removeprefix("file://")))

    async def repository(self) -> Repository:
        vault, project = await self.control.read(lambda tx: (tx.vaults.get("prj_1"), tx.projects.get("prj_1")))
        assert vault is not None
        assert project is not None
        return Repository(self.objects, VaultCipher(await self.vaults.key(vault, project)), "prj_1")


class Node(threading.Thread):
    """What a server and a node do about backups while the platform runs."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self._over = threading.Event()

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        platform = Platform(self._place)
        loop = BackupLoop(platform.control, platform.vaults)
        while not self._over.wait(0.02):
            await loop.step()
            for order in await platform.control.read(lambda tx: backup_orders(tx, "node_1")):
                disk = Disk(CONTENT[order.volume_id])
                taken = await (await platform.repository()).take(order, disk, nobody, wanted)
                seen = ObservedBackup(phase=BackupPhase.DONE, done_bytes=disk.size_bytes, digest=taken.digest)
                report = NodeReport(node_id="node_1", epoch=1, sequence=1, facts=FACTS, backups={order.backup_id: seen})
                await platform.control.commit(lambda unit, told=report: take_backups(unit, sample("nodes"), told))
        await platform.control.store.close()


@dataclass
class World:
    directory: Path
    target: str = ""

    def place(self, name: str, url: str = "") -> Place:
        repository = self.directory / f"{name}-repository"
        repository.mkdir(exist_ok=True)
        settings = UpSettings(data_dir=self.directory / name, backups_url=f"file://{repository}", database_url=url)
        return Place(settings=settings, config_file=self.directory / "config.toml")

    @property
    def here(self) -> Place:
        return self.place("here")

    @property
    def there(self) -> Place:
        return self.place("there", self.target)

    @property
    def backup(self) -> Path:
        return self.directory / "backup"

    def fill(self) -> None:
        """A platform with two volumes on one node, of which an instance has one."""
        (self.here.data_dir / "db").mkdir(parents=True)
        (self.here.data_dir / "keys").mkdir()
        platform = Platform(self.here)

        def work(tx: Transaction) -> None:
            for table in _KEPT:
                row = sample(table)
                getattr(tx, table).insert(replace(row, node_id="node_1") if table == "instances" else row)
            for id_, name, holder in (("vol_1", "data", "ins_1"), ("vol_2", "logs", "")):
                volume = replace(sample("volumes"), id=id_, name=name, instance_id=holder, sealed_key=None, move=None)
                seen = replace(volume.observed, reason="", snapshots={})
                tx.volumes.insert(replace(volume, snapshot_id="", encrypted=False, source_backup_id="", observed=seen))

        async def both() -> None:
            await platform.control.store.transact(work)
            await platform.control.store.close()

        asyncio.run(both())

    def held_by(self, place: Place) -> dict[str, bytes]:
        """What the volumes are made of that are to be made anew at this place."""
        return asyncio.run(self._held_by(place))

    async def _held_by(self, place: Place) -> dict[str, bytes]:
        platform, found = Platform(place), {}
        try:
            repository = await platform.repository()
            for volume in await platform.control.read(lambda tx: tx.volumes.select()):
                backup = await platform.control.read(lambda tx, id_=volume.source_backup_id: tx.backups.get(id_))
                if backup is not None:
                    content = bytearray(len(CONTENT[volume.id]))
                    async for at, data in repository.content(
                        await repository.manifest(backup.id, volume.id, backup.digest)
                    ):
                        content[at : at + len(data)] = data
                    found[volume.id] = bytes(content)
        finally:
            await platform.control.store.close()
        return found

    def left_there(self) -> list[str]:
        """Of what is to be there only when all of it is."""
        files = [path for path in (self.directory / "there-repository").rglob("*") if path.is_file()]
        return [str(path) for path in (*files, *self.directory.glob("there"), *self.directory.glob(".*"))]


def row(place: Place, id_: str) -> Volume:
    found = rows(place, lambda tx: tx.volumes.select(eq("id", id_)))
    return found[0]


def rows(place: Place, look: Any) -> Any:
    async def both() -> Any:
        store = opened(place.database)
        try:
            return await store.read(look)
        finally:
            await store.close()

    return asyncio.run(both())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform, and a backup of it with all its volumes, made while it ran; not to be changed."""
    world = World(tmp_path_factory.mktemp("world"))
    world.fill()
    with Node(world.here), pytest.MonkeyPatch.context() as patch:
        patch.setattr(platformvolumes, "STALLED_S", 30.0)
        create(world.here, world.backup, WORDS, 5.0, ["all"])
    return world.directory


@pytest.fixture
def world(filled: Path, tmp_path: Path) -> World:
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return World(tmp_path)


def test_volumes_are_made_anew_of_what_they_held_and_the_repository_need_not_be_there(world: World) -> None:
    shutil.rmtree(world.directory / "here-repository")
    restore(world.there, world.backup, WORDS, ["all"])
    assert world.held_by(world.there) == CONTENT
    for id_ in CONTENT:
        volume = row(world.there, id_)
        assert (volume.node_id, volume.made, volume.instance_id, volume.state) == ("", False, "", VolumeState.AVAILABLE)
        assert (volume.observed.presence, volume.promotion) == (Presence.ABSENT, None)
        assert volume.epoch == row(world.here, id_).epoch + 1, "whoever had it, and comes back, is late"
    holder, snapshots = rows(world.there, lambda tx: (tx.instances.get("ins_1"), tx.snapshots.select()))
    assert (holder.phase, snapshots) == (Phase.LOST, [])
    assert [replica.dropping for replica in rows(world.there, lambda tx: tx.replicas.select())] == [True]


@pytest.mark.nightly
def test_into_postgresql_as_well(world: World, postgres: PostgresServer) -> None:
    target: Location = postgres.new_database()
    assert not isinstance(target, Path)
    world.target = target.dsn
    restore(world.there, world.backup, WORDS, ["data"])
    assert world.held_by(world.there) == {"vol_1": CONTENT["vol_1"]}
    assert [path.name for path in (world.directory / "there").glob("*.db*")] == []


def test_what_is_not_chosen_stays_as_it_was(world: World) -> None:
    restore(world.there, world.backup, WORDS, ["logs"])
    assert world.held_by(world.there) == {"vol_2": CONTENT["vol_2"]}
    volume, holder = row(world.there, "vol_1"), rows(world.there, lambda tx: tx.instances.get("ins_1"))
    assert (volume.node_id, volume.made, volume.instance_id) == ("node_1", True, "ins_1")
    assert holder.phase is Phase.HEALTHY


def test_none_of_them_leaves_the_repository_alone(world: World) -> None:
    restore(world.there, world.backup, WORDS, ["none"])
    assert row(world.there, "vol_2").node_id == "node_1"
    assert list((world.directory / "there-repository").iterdir()) == []


def test_the_running_platform_keeps_nothing_of_it_but_a_word_in_its_audit(world: World) -> None:
    left: list[Backup] = rows(world.here, lambda tx: tx.backups.select())
    assert {each.state for each in left} <= {BackupState.DELETING}
    used = rows(world.here, lambda tx: tx.audit.select(eq("action", "backups:use")))
    assert {each.detail for each in used} == {f"for a backup of the platform, of {id_}" for id_ in CONTENT}


def test_nothing_of_what_volumes_hold_can_be_read_in_it(world: World) -> None:
    stored = b"".join(path.read_bytes() for path in world.backup.rglob("*") if path.is_file())
    for content in CONTENT.values():
        assert content[:64] not in stored
        assert content[-CHUNK_BYTES:].strip(b"\0")[:64] not in stored
    assert b"vol_1" in stored, "names are told"


class TestWhatIsRefused:
    def refused(self, world: World, code: str, *names: str, words: Sensitive = WORDS) -> str:
        with pytest.raises(ShellWeGoError) as caught:
            restore(world.there, world.backup, words, names or None)
        assert caught.value.code == code
        assert world.left_there() == []
        return caught.value.message

    def test_to_say_nothing_of_volumes(self, world: World) -> None:
        told = self.refused(world, "volumes-undecided")
        assert "data of p (vol_1)" in told

    def test_a_volume_that_is_not_in_it(self, world: World) -> None:
        assert "data" in self.refused(world, "no-such-volume", "photos")

    def test_another_passphrase(self, world: World) -> None:
        self.refused(world, "wrong-passphrase", "all", words=Sensitive.of("correct horse battery stable"))

    @pytest.mark.parametrize("harm", ["flip", "gone"])
    def test_a_damaged_chunk_is_named_with_its_volume(self, world: World, harm: str) -> None:
        path = max((world.backup / "volumes").rglob("chunks/*/*"), key=lambda path: path.stat().st_size)
        content = path.read_bytes()
        path.unlink()
        if harm == "flip":
            path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
        told = self.refused(world, "backup-damaged", "all")
        assert path.name in told
        assert "of the volume data" in told

    def test_a_repository_that_is_not_there_or_is_none(self, world: World) -> None:
        there = world.there
        (world.directory / "there-repository").rmdir()
        with pytest.raises(ShellWeGoError) as caught:
            restore(there, world.backup, WORDS, ["all"])
        assert caught.value.code == "objects-unavailable"
        assert world.left_there() == []

    def test_what_fails_after_the_volumes_leaves_none_of_them(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            assert len(world.left_there()) > 2, "they were there"
            raise ConflictError("broken", "it broke")

        monkeypatch.setattr(platform_backup, "make_anew", broken)
        self.refused(world, "broken", "all")

    def test_volumes_of_a_backup_without_any(self, world: World) -> None:
        create(world.here, world.directory / "plain", WORDS, 6.0)
        world.backup.rename(world.directory / "other")
        (world.directory / "plain").rename(world.backup)
        self.refused(world, "no-volumes", "all")
        restore(world.there, world.backup, WORDS)


def test_nothing_of_it_is_left_where_the_backups_of_the_volumes_cannot_be_let_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command is given again then, as is told."""

    async def away(control: Control, backups: Iterable[Backup]) -> None:
        raise UnavailableError("database-unavailable", "the database does not answer")

    monkeypatch.setattr(platformvolumes, "let_go", away)
    with Node(world.here), pytest.raises(UnavailableError):
        create(world.here, world.directory / "second", WORDS, 6.0, ["all"])
    assert not (world.directory / "second").exists()


class TestABackupThatATenantDeletesMeanwhile:
    """Of the volume `logs`; that of `data` is the operator's all the same."""

    def deleted(self, world: World) -> None:
        def let_go(unit: Unit) -> None:
            for volume in unit.tx.volumes.select(eq("id", "vol_2")):
                for backup in unit.tx.backups.select(eq("volume_id", "vol_2")):
                    let_backup_go(unit, volume, backup)

        async def both() -> None:
            store = opened(world.here.database)
            await Control(store, MemoryBus(), SystemClock()).commit(let_go)
            await store.close()

        thread = threading.Thread(target=lambda: asyncio.run(both()))
        thread.start()
        thread.join()

    def leaves_out_that_one(self, world: World) -> None:
        left: list[str] = []
        with Node(world.here):
            create(world.here, world.directory / "second", WORDS, 6.0, ["all"], left_out=left.extend)
        assert left == ["vol_2"]
        restore(world.there, world.directory / "second", WORDS, ["all"])
        assert world.held_by(world.there) == {"vol_1": CONTENT["vol_1"]}

    def test_while_it_is_asked_for(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = platformvolumes._taken

        async def delete_first(control: Control, ids: Iterable[str]) -> list[Backup]:
            self.deleted(world)
            return await taken(control, ids)

        monkeypatch.setattr(platformvolumes, "_taken", delete_first)
        self.leaves_out_that_one(world)

    def test_while_it_is_copied(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        carried = Keeper._carried

        async def delete_first(keeper: Keeper, backup: Backup, target: Objects) -> tuple[Held, bytes]:
            if backup.volume_id == "vol_2":
                self.deleted(world)
                (world.directory / f"here-repository/prj_1/backups/{backup.id}").unlink()
            return await carried(keeper, backup, target)

        monkeypatch.setattr(Keeper, "_carried", delete_first)
        self.leaves_out_that_one(world)

    def test_before_the_rows_are_read(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        of_one_moment = platform_backup._of_one_moment

        def delete_first(database: Location, keys: Path, end: ExitStack) -> object:
            self.deleted(world)
            return of_one_moment(database, keys, end)

        monkeypatch.setattr(platform_backup, "_of_one_moment", delete_first)
        self.leaves_out_that_one(world)


def test_nothing_is_made_of_a_backup_that_is_being_deleted(world: World) -> None:
    """As a backup of an earlier version may have it in its rows."""
    (backup,) = rows(world.here, lambda tx: tx.backups.select(eq("volume_id", "vol_2")))
    assert backup.state is BackupState.DELETING
    with pytest.raises(ConflictError, match=r"logs \(vol_2\) cannot be made anew"):
        make_anew(
            world.here.data_dir / DATABASE, [Held(volume_id="vol_2", backup_id=backup.id, project="p", name="logs")]
        )
    assert row(world.here, "vol_2").made


class TestABackupThatCannotBe:
    def refused(self, world: World, place: Place, code: str, *names: str) -> str:
        with pytest.raises(ShellWeGoError) as caught:
            create(place, world.directory / "second", WORDS, 6.0, names)
        assert caught.value.code == code
        assert not [path for path in world.directory.iterdir() if "second" in path.name]
        left: list[Backup] = rows(world.here, lambda tx: tx.backups.select())
        assert {each.state for each in left} <= {BackupState.DELETING}
        return caught.value.message

    def test_without_a_repository(self, world: World) -> None:
        place = replace(world.here, settings=replace(world.here.settings, backups_url=""))
        self.refused(world, place, "no-repository", "all")

    def test_without_the_keys_that_the_platform_is_given(self, world: World) -> None:
        keys = world.here.data_dir / "keys" / "master-keys.json"
        keys.unlink()
        self.refused(world, world.here, "no-key-file", "all")
        assert list(keys.parent.iterdir()) == []

    def test_of_a_volume_that_is_not_there(self, world: World) -> None:
        self.refused(world, world.here, "volume-not-found", "data", "photos")

    def test_while_nobody_takes_it(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platformvolumes, "STALLED_S", 0.0)
        monkeypatch.setattr(platformvolumes, "_POLL_S", 0.01)
        assert "vol_2" in self.refused(world, world.here, "backup-stalled", "logs")


def test_the_command_takes_names_with_commas_and_says_what_is_not_in_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backupcommands, "_place", lambda _: world.there)
    monkeypatch.setenv(PASSPHRASE, WORDS.reveal_text())
    for words, why in (((), "--volumes all"), (("--volumes", "all,data"), "neither all nor names")):
        result = CliRunner().invoke(backupcommands.backup, ["restore", str(world.backup), *words])
        assert (result.exit_code, why in result.output) == (2, True), result.output
        monkeypatch.setenv(PASSPHRASE, WORDS.reveal_text())
    result = CliRunner().invoke(backupcommands.backup, ["restore", str(world.backup), "--volumes", "data, logs"])
    assert result.exit_code == 0, result.output
    assert "what other volumes hold" in result.output


@pytest.mark.parametrize(("asked", "code"), [("logs,data", 1), ("all", 0)])
def test_the_command_fails_where_a_volume_that_was_named_is_not_in_it(
    world: World, monkeypatch: pytest.MonkeyPatch, asked: str, code: int
) -> None:
    """It keeps the backup: no tenant may keep the operator from one."""

    def without_logs(*given: Any, left_out: Callable[[Collection[str]], None], **more: Any) -> object:
        manifest = create(*given[:-1], **more)
        left_out(["vol_2"])
        return manifest

    monkeypatch.setattr(backupcommands, "_place", lambda _: world.here)
    monkeypatch.setattr(platform_backup, "create", without_logs)
    monkeypatch.setenv(PASSPHRASE, WORDS.reveal_text())
    fresh = world.directory / "fresh"
    result = CliRunner().invoke(backupcommands.backup, ["create", str(fresh), "--volumes", asked])
    assert (result.exit_code, "volumes vol_2" in result.output, fresh.is_dir()) == (code, True, True), result.output
