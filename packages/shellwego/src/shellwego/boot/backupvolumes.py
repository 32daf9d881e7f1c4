"""What chosen volumes hold, in a backup of the whole platform, and out of it again.

    volumes/<project>/…          the objects of their backups, as they lie in the repository: ciphertext
    piece `volumes`              which volumes, and where the repository was
    piece `objects/<volume>`     a line for each object: its path and SHA-256

So it needs no repository to be whole. To make a platform of it they are put back into one, from which nodes make the volumes
as of any backup. Under which key they are lies in the database, and so in the same backup.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shellwego.agent.repository import Repository
from shellwego.boot.backupfiles import Backup, Writer, damaged
from shellwego.boot.database import open_location
from shellwego.boot.masterkeys import KEY_DIRECTORY, read_source
from shellwego.boot.repository import read_repository
from shellwego.boot.settings import UpSettings
from shellwego.control import platformvolumes
from shellwego.control.backups import no_repository
from shellwego.control.platformvolumes import ALL
from shellwego.control.scopes import project_of
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control
from shellwego.control.vaults import Vaults
from shellwego.core.backups import Backup as VolumeBackup
from shellwego.core.backups import BackupState, RepositoryPlace
from shellwego.core.chunks import VaultCipher
from shellwego.core.errors import InvalidError, NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.tenancy import Project
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.objects.choose import open_objects
from shellwego.drivers.objects.directory import DirectoryObjects
from shellwego.drivers.store import dump
from shellwego.drivers.store.location import Location
from shellwego.ports.objects import Objects, check_path
from shellwego.ports.store import Transaction

VOLUMES, OBJECTS = "volumes", "objects/"
NONE = "none"
_PLACE = ("backups_url", "backups_endpoint", "backups_region", "backups_credentials_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A volume that is in a backup of the platform."""

    volume_id: str
    backup_id: str
    project: str
    name: str


class Keeper:
    """Has volumes backed up by a platform that runs, and writes what their backups are of into a backup of that platform.
    Used as a context: at its end those backups are let go."""

    def __init__(self, settings: UpSettings, database: Location) -> None:
        """Raises as `read_repository`, `read_source` and `KmsSource.open_existing`; `ConflictError`: there is no repository,
        or the database is of another version."""
        place = _repository(settings)
        with dump.snapshot(database):
            pass  # it is of our version, so to open it changes nothing
        clock = SystemClock()
        self._settings = settings
        self._objects = open_objects(place)
        self._kms = read_source(settings).open_existing(settings.data_dir.absolute() / KEY_DIRECTORY, clock.now)
        self._control = Control(open_location(database, clock), MemoryBus(), clock)
        self._vaults = Vaults(self._control, Sealer(self._control, self._kms), place)
        self._taken: list[VolumeBackup] = []
        self._held: list[Held] = []
        self._left_out: set[str] = set()
        self._runner = asyncio.Runner()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._runner.run(self._end())
        finally:
            self._runner.close()

    def keep(self, names: Collection[str], directory: Path, writer: Writer) -> None:
        """Write the objects of all that is chosen, and can be had.

        Raises:
            ConflictError: `backup-failed`, `backup-damaged`.
            InvalidError, NotFoundError, UnavailableError: as `platformvolumes.back_up`.
        """
        (directory / VOLUMES).mkdir(mode=0o700)
        target = DirectoryObjects(directory / VOLUMES)
        found = self._runner.run(platformvolumes.back_up(self._control, names))
        self._left_out = {volume_id for volume_id, backup in found.items() if backup is None}
        self._taken = [backup for backup in found.values() if backup is not None]
        for backup in self._taken:
            try:
                held, lines = self._runner.run(self._carried(backup, target))
            except ShellWeGoError:
                if self._runner.run(platformvolumes.is_there(self._control, backup)):
                    raise
                self._left_out.add(backup.volume_id)
            else:
                writer.add(f"{OBJECTS}{backup.volume_id}", [lines])
                self._held.append(held)

    def index(self, tables: Mapping[str, Callable[[], Iterator[bytes]]], writer: Writer) -> set[str]:
        """Write which volumes are in it: those that can be made anew by the rows that are in it. Returns the ids of the
        others, of which somebody deleted the backup meanwhile."""
        rows = (json.loads(line) for line in tables["backups"]())
        there = {row["id"] for row in rows if row["state"] == BackupState.AVAILABLE}
        held = [each for each in self._held if each.backup_id in there]
        place = {name: str(getattr(self._settings, name) or "") for name in _PLACE}
        index = {"repository": place, "volumes": [asdict(each) for each in held]}
        writer.add(VOLUMES, [json.dumps(index).encode()])
        return self._left_out | {each.volume_id for each in self._held if each.backup_id not in there}

    async def _carried(self, backup: VolumeBackup, target: Objects) -> tuple[Held, bytes]:
        """Copy a backup's objects; returns what it is, and a line for each of them."""
        project, name = await self._control.read(lambda tx: _named(tx, backup))
        vault = await self._control.read(lambda tx: tx.vaults.get(backup.project_id))
        if vault is None:
            raise NotFoundError("no-vault", f"the project {project.name} has no key for backups")
        cipher = VaultCipher(await self._vaults.key(vault, project))
        repository, lines = Repository(self._objects, cipher, project.id), bytearray()
        manifest = await repository.manifest(backup.id, backup.volume_id, backup.digest)
        async for path, stored in repository.stored(manifest):
            await target.put(path, stored)
            lines += json.dumps([path, _digest(stored)]).encode() + b"\n"
        return Held(volume_id=backup.volume_id, backup_id=backup.id, project=project.name, name=name), bytes(lines)

    async def _end(self) -> None:
        try:
            await platformvolumes.let_go(self._control, self._taken)
        finally:
            await self._control.store.close()
            await self._kms.close()


@dataclass(frozen=True, slots=True)
class Holding:
    """The volumes of a backup of a platform that are to be had of it."""

    backup: Backup
    volumes: tuple[Held, ...]
    settings: UpSettings
    """With the repository that there is now, or else was."""

    def verify(self) -> None:
        """Read all of it; raises `InvalidError`, `backup-damaged`, naming what is not whole."""
        for held, path, digest in self._objects():
            try:
                whole = _digest(self._place(path).read_bytes()) == digest
            except OSError:
                whole = False
            if not whole:
                raise damaged(self.backup.directory, f"{VOLUMES}/{path}, of the volume {held.name},")

    def put_back(self, owner: tuple[int, int] | None) -> Callable[[], None]:
        """Have the repository hold all of it; what removes again what it did not hold before. Where this fails, nothing of
        it is left.

        Raises:
            PreflightError: the credentials for the repository cannot be had.
            ConflictError, InvalidError, UnavailableError: there is none, or it cannot be written.
        """
        objects = open_objects(_repository(self.settings), owner)
        put: list[str] = []

        def take_back() -> None:
            asyncio.run(_removed(objects, put))

        try:
            asyncio.run(self._put_back(objects, put))
        except BaseException:
            with suppress(UnavailableError):  # it is ciphertext, and is swept
                take_back()
            raise
        return take_back

    async def _put_back(self, objects: Objects, put: list[str]) -> None:
        for _, path, digest in self._objects():
            there = await objects.has(path)
            if there and _digest(await objects.get(path)) == digest:
                continue
            put += [] if there else [path]
            await objects.put(path, self._place(path).read_bytes())

    def _objects(self) -> Iterator[tuple[Held, str, str]]:
        """Volume, path and digest of each object, manifests last."""
        pieces = self.backup.pieces()
        for held in self.volumes:
            for line in self.backup.lines(pieces[f"{OBJECTS}{held.volume_id}"]):
                path, digest = json.loads(line)
                yield held, check_path(path), digest

    def _place(self, path: str) -> Path:
        return self.backup.directory / VOLUMES / path


def holding(backup: Backup, settings: UpSettings, names: Collection[str] | None) -> Holding:
    """The volumes of a backup that are chosen by ids or names, or `all`, or `none`.

    Raises:
        InvalidError: nothing is said of volumes, and there are some; there is no such one, or several of this name.
    """
    if VOLUMES not in backup.pieces():
        if names and NONE not in names:
            raise InvalidError("no-volumes", f"{backup.directory} holds no volumes", resolution="Leave --volumes out.")
        return Holding(backup, (), settings)
    index = json.loads(backup.content(backup.pieces()[VOLUMES]))
    there = [Held(**each) for each in index["volumes"]]
    if names is None:
        raise InvalidError(
            "volumes-undecided",
            f"{backup.directory} holds the volumes {_listed(there)}",
            resolution="Say which are made anew of it: --volumes all, NAME,… or, where their nodes have them still, none.",
        )
    if not settings.backups_url:
        place = index["repository"]
        credentials = Path(place["backups_credentials_file"]) if place["backups_credentials_file"] else None
        settings = replace(
            settings,
            backups_url=place["backups_url"],
            backups_endpoint=place["backups_endpoint"],
            backups_region=place["backups_region"],
            backups_credentials_file=settings.backups_credentials_file or credentials,
        )
    if ALL in names:
        return Holding(backup, tuple(there), settings)
    picked = {each.volume_id: each for name in names if name != NONE for each in [_picked(there, name)]}
    return Holding(backup, tuple(picked.values()), settings)


def make_anew(database: Path, volumes: Sequence[Held]) -> None:
    """Have the platform of this database make those volumes of their backups."""
    asyncio.run(_made_anew(database, volumes))


async def _made_anew(database: Path, volumes: Sequence[Held]) -> None:
    clock = SystemClock()
    control = Control(open_location(database, clock), MemoryBus(), clock)
    try:
        await platformvolumes.make_anew(control, {each.volume_id: each.backup_id for each in volumes})
    finally:
        await control.store.close()


def _picked(there: Sequence[Held], name: str) -> Held:
    found = [each for each in there if name in (each.volume_id, each.name)]
    if not found:
        raise InvalidError("no-such-volume", f"the backup holds no volume {name:.80}, but {_listed(there)}")
    if len(found) > 1:
        raise InvalidError(
            "ambiguous-volume", f"the backup holds {_listed(found)}", resolution="Give the id of one, or of each."
        )
    return found[0]


def _listed(volumes: Sequence[Held]) -> str:
    return ", ".join(f"{each.name} of {each.project} ({each.volume_id})" for each in volumes) or "none"


def _named(tx: Transaction, backup: VolumeBackup) -> tuple[Project, str]:
    volume = tx.volumes.get(backup.volume_id)
    return project_of(tx, backup.project_id), volume.name if volume else backup.volume_id


async def _removed(objects: Objects, paths: Sequence[str]) -> None:
    for path in paths:
        await objects.delete(path)


def _repository(settings: UpSettings) -> RepositoryPlace:
    place = read_repository(settings)
    if place is None:
        raise no_repository()
    return place


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
