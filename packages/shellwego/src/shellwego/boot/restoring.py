"""The last steps of a restore: a directory that was made whole beside its place takes it; and where the database is
elsewhere, that is filled just before.

Theory. Those two cannot be one step. So each attempt draws a mark: it lies in the directory, and comes into the database in
the transaction that fills it. Where both have the same one, an attempt ended between the two, killed or cut off from its
database, and nothing is missing but the directory's place: the same command goes on with that. A database that was empty is
filled by a new attempt; any other was not ours to fill, and is refused.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shellwego.boot.backupfiles import Manifest
from shellwego.core.errors import ConflictError
from shellwego.drivers.files import replace_file, sync_directory
from shellwego.drivers.store import dump
from shellwego.drivers.store.location import Location, PostgresUrl

MARK, STAGED = "restored", "staged"
"""In the directory, until it is in its place: the mark, and where rows are made ready for a database elsewhere."""


def make_beside(directory: Path) -> Path:
    """A new directory that is to take this one's place; what an earlier attempt left there goes. Raises `OSError`."""
    fresh = _beside(directory)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    return fresh


def take_place(directory: Path) -> None:
    """Put what was made beside a directory in its place. One that is there and empty gives way. Raises `OSError`."""
    _beside(directory).rename(directory)
    sync_directory(directory.parent)


@contextmanager
def made_whole(directory: Path) -> Iterator[Path]:
    """A directory made in the block, in its place at the end; where that is not reached, it goes."""
    fresh = make_beside(directory)
    try:
        yield fresh
        take_place(directory)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def check_room(directory: Path) -> None:
    """Raises `ConflictError`, `not-empty`."""
    if directory.exists() and any(directory.iterdir()):
        raise ConflictError(
            "not-empty",
            f"{directory} is not empty, and what is there is never written over",
            resolution="Restore to another --data-dir, or move that one away.",
        )


def chosen(manifest: Manifest, volumes: Sequence[str]) -> str:
    """What is restored, in a word: this backup, with these volumes of it made anew."""
    return hashlib.sha256(json.dumps([manifest.salt, *sorted(volumes)]).encode()).hexdigest()[:32]


def draw_mark(fresh: Path, choice: str) -> str:
    """Begin to fill a database elsewhere; all that is in the directory is there before. Raises `OSError`."""
    mark = f"{choice}-{secrets.token_hex(16)}"
    replace_file(fresh / MARK, mark.encode())
    return mark


@contextmanager
def filling(database: PostgresUrl, directory: Path, mark: str, undo: ExitStack) -> Iterator[None]:
    """The block fills the database, in one transaction. From then on nothing is undone, nor where that may have been."""
    for path in (*_beside(directory).rglob("*"), _beside(directory), directory.parent):
        if path.is_dir():
            sync_directory(path)
    try:
        yield
    except BaseException:
        if dump.may_be_marked(database, mark):
            undo.pop_all()
        raise
    undo.pop_all()


def gone_on(directory: Path, database: Location, choice: str) -> bool:
    """Whether an attempt at the same had come so far that only the directory's place was missing, or not even that. It has
    it now.

    Raises:
        ConflictError: `restore-unfinished`, it was of another backup or other volumes; `not-empty`.
        OSError: the directory cannot be put there.
    """
    if isinstance(database, Path):
        return False
    if _mark(directory, database).startswith(f"{choice}-"):
        (directory / MARK).unlink()
        return True
    mark = _mark(_beside(directory), database)
    if not mark:
        return False
    if not mark.startswith(f"{choice}-"):
        raise ConflictError(
            "restore-unfinished",
            f"a restore of another backup, or of other volumes, filled the database {database} and did not end",
            resolution=f"Give that command again. Or let it go: empty the database, and remove {_beside(directory)}.",
        )
    check_room(directory)
    finish(directory)
    return True


def _mark(directory: Path, database: PostgresUrl) -> str:
    """The mark that both have; empty: there is none."""
    path = directory / MARK
    mark = path.read_text() if path.exists() else ""
    return mark if mark and dump.marked(database) == mark else ""


def finish(directory: Path) -> None:
    """As `take_place`, with nothing left in it of how it was made."""
    shutil.rmtree(_beside(directory) / STAGED, ignore_errors=True)
    take_place(directory)
    (directory / MARK).unlink(missing_ok=True)


def _beside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.new")
