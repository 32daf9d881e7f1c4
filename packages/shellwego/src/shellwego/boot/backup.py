"""A backup of the whole platform, and a platform made of one: its database, master keys, identity and configuration.

In it: every row of the database, of one moment, while servers go on; the file of master keys as it lies, if this host keeps
one; the installation's id; the configuration, and the files of the API's certificate and key that it names. The authority
over nodes and edges lies sealed in the database. Of volumes what they hold, where they are chosen (`backupvolumes`). Not
in it, and told: what other volumes hold, images, logs, passphrases, and a master key that is kept elsewhere.

A restore makes a platform where there is none, of a backup that was read to its end before: the data directory is made
beside its place and renamed into it, and the database is filled in one transaction. Where that is elsewhere it is filled
just before the renaming, and what ends between the two is gone on with by the same command (`restoring`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shellwego.boot.backupfiles import PLAIN, WITH_VOLUMES, Backup, Manifest, Writer, open_backup
from shellwego.boot.backupvolumes import Holding, Keeper, holding, make_anew
from shellwego.boot.configfile import values_of
from shellwego.boot.databaseurl import read_url
from shellwego.boot.masterkeys import KEY_DIRECTORY, KEY_FILE
from shellwego.boot.restoring import (
    STAGED,
    check_room,
    chosen,
    draw_mark,
    filling,
    finish,
    gone_on,
    made_whole,
    make_beside,
    take_place,
)
from shellwego.boot.settings import UpSettings
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.files import replace_file
from shellwego.drivers.kms.keyfile import key_names
from shellwego.drivers.store import dump, migrate
from shellwego.drivers.store.location import Location, PostgresUrl, parse_url

ROWS, KEYS, INSTALLATION, FILES = "rows/", "master-keys", "installation", "files"
DATABASE = Path("db") / "state.db"
Tables = Mapping[str, Callable[[], Iterator[bytes]]]
Files = Mapping[str, Mapping[str, Any]]
"""Those of the operator, by path: `mode`, `text`, and the names `owner` and `group`, where they have some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a platform is, or is to be."""

    settings: UpSettings
    config_file: Path
    owner: tuple[int, int] | None = None
    """Whose its files are to be; None: whoever runs this."""

    @property
    def data_dir(self) -> Path:
        return self.settings.data_dir.absolute()

    @property
    def database(self) -> Location:
        """Raises `InvalidError`."""
        url = read_url(self.settings)
        return parse_url(url) if url else self.data_dir / DATABASE

    @property
    def files(self) -> tuple[Path, ...]:
        """What of the operator's own belongs to it."""
        named = (self.settings.api_cert, self.settings.api_key)
        return (self.config_file, *(path.absolute() for path in named if path is not None))


def _nobody(_volumes: Collection[str]) -> None:
    """Wants to know."""


def create(
    place: Place,
    directory: Path,
    passphrase: Sensitive,
    now: float,
    volumes: Collection[str] = (),
    *,
    left_out: Callable[[Collection[str]], None] = _nobody,
) -> Manifest:
    """Write a backup into a directory that must not be there; nothing of it is where this fails.

    `volumes`: names or ids of those that are to be in it, or `all`; the platform has to run for that.
    `left_out` is told the ids of those whose backups were deleted meanwhile, if there are any.

    Raises:
        ConflictError: `backup-exists`; or the database is of another version; of volumes: as `backupvolumes.Keeper`.
        NotFoundError: there is no such platform, or volume.
        InvalidError: the URL of the database cannot be used; or as `backupvolumes.Keeper`.
        UnavailableError: nobody goes on backing a volume up.
        OSError: something cannot be read or written.
    """
    if directory.exists():
        raise ConflictError("backup-exists", f"{directory} is there already", resolution="Name a new one.")
    keys = place.data_dir / KEY_DIRECTORY / KEY_FILE
    form = WITH_VOLUMES if volumes else PLAIN
    manifest = Manifest(made_at=now, version=version("shellwego"), revision=migrate.HEAD, format=form)
    with made_whole(directory) as fresh, ExitStack() as end:
        writer = Writer(fresh, manifest, passphrase)
        keeper = end.enter_context(Keeper(place.settings, place.database)) if volumes else None
        if keeper is not None:
            keeper.keep(volumes, fresh, writer)
        tables, key_file = _of_one_moment(place.database, keys, end)
        if keeper is not None and (missed := keeper.index(tables, writer)):
            left_out(missed)
        for name, read in tables.items():
            writer.add(f"{ROWS}{name}", read())
        if key_file is not None and not _are_used(key_names(keys, key_file), tables):
            key_file = None
        for name, content in ((KEYS, key_file), (INSTALLATION, _content(place.data_dir / "installation"))):
            if content is not None:
                writer.add(name, [content])
        writer.add(FILES, [json.dumps(_operators(place.files)).encode()])
        return writer.finish("given" if place.settings.kms == "local" and key_file is None else place.settings.kms)


def _of_one_moment(database: Location, keys: Path, end: ExitStack) -> tuple[Tables, bytes | None]:
    """The rows, and the file of master keys as it was then: with an older one those do not open that are under a key made
    since, and with a younger one those under a key that was retired. Where the file changes both are looked at anew."""
    while True:
        before = _content(keys)
        with ExitStack() as attempt:
            tables = attempt.enter_context(dump.snapshot(database))
            if _content(keys) == before:
                end.push(attempt.pop_all())
                return tables, before


def _are_used(keys: Collection[str], tables: Tables) -> bool:
    """Whether what is sealed is under any of these master keys. A file may lie there beside keys that are given or kept
    elsewhere; whoever had its keys in the backup would take them for those that he is to keep."""
    needed = {json.loads(line)["master_key"] for line in tables["data_keys"]()}
    return not needed.isdisjoint(keys) or not needed


def _content(path: Path) -> bytes | None:
    """None: there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def restore(
    place: Place,
    directory: Path,
    passphrase: Sensitive,
    volumes: Collection[str] | None = None,
    *,
    configuration: bool = True,
) -> Manifest:
    """Make a platform of a backup: all of it, or nothing. One that was interrupted may be given again.

    `volumes`: which of those that are in it are to be made anew, by names or ids, or `all`, or `none`; None: it holds none.
    `configuration`: whether the file of that is to come back too. Without it the API's certificate and key do, where there
    are none.

    Raises:
        InvalidError: `no-backup`, `wrong-passphrase`, `backup-damaged`; or as `backupvolumes.holding`.
        ConflictError: `backup-too-new`, `schema-too-new`; `not-empty`, `file-differs` or `database-not-empty`, there is
            something already; `data-dir-differs`, `database-differs`, the configuration names another;
            `restore-unfinished`, of another backup.
        PreflightError, UnavailableError: the repository for the volumes cannot be had.
        OSError: something cannot be written.
    """
    backup, database = open_backup(directory, passphrase), place.database
    _check_known(backup)
    held = holding(backup, place.settings, volumes)
    backup.verify()
    held.verify()
    files: dict[str, Mapping[str, Any]] = json.loads(backup.content(backup.pieces()[FILES]))
    if not configuration:
        files = {
            path: file for path, file in files.items() if path != str(place.config_file) and not Path(path).exists()
        }
    _check_leads_to(place, files)
    choice = chosen(backup.manifest, [each.volume_id for each in held.volumes])
    if not gone_on(place.data_dir, database, choice):
        check_room(place.data_dir)
        dump.check_empty(database)
        _make(place, backup, held, choice, files)
    return backup.manifest


def _check_known(backup: Backup) -> None:
    manifest = backup.manifest
    if not migrate.is_known(manifest.revision):
        raise ConflictError(
            "schema-too-new",
            f"the backup {backup.directory} has schema {manifest.revision}, which this version of ShellWeGo does not know",
            resolution=f"Restore it with the version that made it ({manifest.version}), or a later one.",
        )


def _check_leads_to(place: Place, files: Files) -> None:
    """Raises `ConflictError` where the platform would be started by the configuration that comes with it on another data
    directory, which would be made anew, or on another database: most likely that of the platform which the backup is of.
    Both would run all of its apps, as one installation."""
    try:
        named = values_of(place.config_file, files[str(place.config_file)]["text"])
    except (KeyError, InvalidError):
        return  # there is none, or one with which nothing is started
    directory = Path(str(named.get("data_dir") or place.data_dir)).absolute()
    if directory != place.data_dir:
        raise ConflictError(
            "data-dir-differs",
            f"the configuration in the backup names the data directory {directory}, and this would restore into "
            f"{place.data_dir}",
            resolution=f"Restore into that one, by --data-dir {directory}. Or leave the file out with --no-config; then "
            f"write {place.config_file} anew.",
        )
    try:
        path = Path(str(named["database_url_file"])) if "database_url_file" in named else None
        url = read_url(UpSettings(database_url=str(named.get("database_url", "")), database_url_file=path))
        database = parse_url(url) if url else place.database
    except InvalidError:
        return
    if _where(database) != _where(place.database):
        raise ConflictError(
            "database-differs",
            f"the configuration in the backup names the database {database}, and this would restore into {place.database}",
            resolution="Restore into that one, by --database-url-file. Or, for a drill, or where the database has another "
            f"host now, leave the file out with --no-config; then write {place.config_file} anew, with this one in "
            "[database].",
        )


def _where(database: Location) -> object:
    """What two ways to the same database have in common: its password may have changed, or how its server is verified."""
    return database if isinstance(database, Path) else database.place


def _make(place: Place, backup: Backup, held: Holding, choice: str, files: Files) -> None:
    pieces, database = backup.pieces(), place.database
    missing = _missing_files(files)
    with ExitStack() as undo:
        fresh = make_beside(place.data_dir)
        undo.callback(shutil.rmtree, fresh, ignore_errors=True)
        for name, path in ((KEYS, Path(KEY_DIRECTORY) / KEY_FILE), (INSTALLATION, Path("installation"))):
            if name in pieces:
                (fresh / path).parent.mkdir(mode=0o700, exist_ok=True)
                replace_file(fresh / path, backup.content(pieces[name]))
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            undo.callback(path.unlink, missing_ok=True)
            _bring_back(path, files[str(path)])
        (fresh / DATABASE).parent.mkdir(mode=0o700)
        if held.volumes:
            undo.callback(held.put_back(place.owner))
        if isinstance(database, Path):
            _load_file(fresh / DATABASE, backup, held)
            _give_away(fresh, place.owner)
            take_place(place.data_dir)
            undo.pop_all()
            return
        mark = draw_mark(fresh, choice)
        _give_away(fresh, place.owner)
        with filling(database, place.data_dir, mark, undo):
            _load(database, backup, held, fresh / STAGED / DATABASE.name, mark)
        finish(place.data_dir)


def _load(database: PostgresUrl, backup: Backup, held: Holding, staged: Path, mark: str) -> None:
    """Fill a database elsewhere; where volumes are made anew, with the rows of one in a file, in which that was done."""
    if not held.volumes:
        dump.load(database, backup.manifest.revision, _rows(backup), mark)
        return
    staged.parent.mkdir(mode=0o700)
    _load_file(staged, backup, held)
    with dump.snapshot(staged) as tables:
        dump.load(database, migrate.HEAD, tables, mark)


def _load_file(path: Path, backup: Backup, held: Holding) -> None:
    dump.load(path, backup.manifest.revision, _rows(backup))
    if held.volumes:
        make_anew(path, held.volumes)


def _rows(backup: Backup) -> dict[str, partial[Iterator[bytes]]]:
    pieces = backup.manifest.pieces
    return {each.name.removeprefix(ROWS): partial(backup.lines, each) for each in pieces if each.name.startswith(ROWS)}


def _operators(paths: tuple[Path, ...]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for path in paths:
        if path.exists():
            found[str(path)] = {"mode": path.stat().st_mode & 0o777, "text": path.read_text()}
            with suppress(KeyError):
                found[str(path)] |= {"owner": path.owner(), "group": path.group()}
    return found


def _bring_back(path: Path, file: Mapping[str, Any]) -> None:
    """Whose it was, where there is somebody of that name: a key is its user's alone to read."""
    replace_file(path, file["text"].encode(), file["mode"])
    with suppress(LookupError):
        shutil.chown(path, file["owner"], file["group"])


def _missing_files(files: Files) -> list[Path]:
    """Those of the operator's files that are not there; raises `ConflictError` where one is, and is another."""
    for name, file in files.items():
        path = Path(name)
        if path.exists() and path.read_text() != file["text"]:
            raise ConflictError(
                "file-differs",
                f"{path} is there, and is not as in the backup",
                resolution="Move it away; compare the two afterwards.",
            )
    return [Path(name) for name in files if not Path(name).exists()]


def _give_away(directory: Path, owner: tuple[int, int] | None) -> None:
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if owner is not None:
            os.chown(path, *owner, follow_symlinks=False)
