"""Driver `directory`: objects as files below one directory, which may be a share that several hosts have mounted.

A file is written beside its place, brought to the disk and renamed into it; so it is there whole or not at all, also after
the power failed. The directory itself is never made: where it is missing a share is not mounted, and what was written then
would lie on the wrong disk.

A share may hang, and with it every thread that is on it, for hours and against signals. So it has threads of its own, which
keep no other work of the process waiting, nor its end.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from plasmavmc.host.threads import DaemonThreads
from shellwego.core.errors import InvalidError
from shellwego.drivers.files import sync_directory
from shellwego.drivers.objects.errors import no_object, unavailable
from shellwego.ports.objects import check_path, check_prefix

T = TypeVar("T")
_PART = ".part"
"""Ends what is being written; it begins with a dot, which no path does."""
_THREADS = DaemonThreads(32, "objects")
"""Two backups and a sweep are under way at a time, each with up to 16 objects."""


class DirectoryObjects:
    """See `ports.objects.Objects`.

    Raises:
        InvalidError: the path is not absolute.
    """

    def __init__(self, root: Path, owner: tuple[int, int] | None = None) -> None:
        """`owner`: whose what is made is to be; None: whoever runs this."""
        if not root.is_absolute():
            raise InvalidError("bad-repository", f"{root} is not an absolute path")
        self._root = root
        self._owner = owner

    async def put(self, path: str, data: bytes) -> None:
        place = self._root / check_path(path)
        await self._done("store an object", lambda: self._put(place, data))

    def _put(self, place: Path, data: bytes) -> None:
        self._make(place.parent)
        part = place.parent / f".{secrets.token_hex(8)}{_PART}"
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                self._give_away(part)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
        sync_directory(place.parent)

    def _make(self, directory: Path) -> None:
        if directory != self._root and not directory.is_dir():
            self._make(directory.parent)
            directory.mkdir(mode=0o700, exist_ok=True)
            self._give_away(directory)
            sync_directory(directory.parent)

    def _give_away(self, path: Path) -> None:
        if self._owner is not None:
            os.chown(path, *self._owner, follow_symlinks=False)

    async def get(self, path: str) -> bytes:
        place = self._root / check_path(path)
        try:
            return await self._done("read an object", place.read_bytes)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise no_object(path) from None

    async def has(self, path: str) -> bool:
        place = self._root / check_path(path)
        return await self._done("look for an object", place.is_file)

    async def delete(self, path: str) -> None:
        place = self._root / check_path(path)
        await self._done("remove an object", lambda: place.unlink(missing_ok=True))

    async def paths(self, prefix: str) -> AsyncIterator[str]:
        walk = os.walk(self._root / check_prefix(prefix), onerror=_unless_gone)
        while found := await self._done("list objects", lambda: list(_some(walk))):
            for directory, name in found:
                yield (Path(directory) / name).relative_to(self._root).as_posix()

    async def _done(self, doing: str, work: Callable[[], T]) -> T:
        """The result of work in a thread. That there is no file is passed on; but the root has to be there."""
        run = asyncio.get_running_loop().run_in_executor
        try:
            if not await run(_THREADS, self._root.is_dir):
                raise unavailable(doing, f"there is no directory {self._root}")
            return await run(_THREADS, work)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise
        except OSError as error:
            raise unavailable(doing, error.strerror or "the file system failed") from error


def _unless_gone(error: OSError) -> None:
    """What cannot be listed is not taken for empty: whoever clears away would take all of it for garbage."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def _some(walk: Iterator[tuple[str, list[str], list[str]]]) -> Iterator[tuple[str, str]]:
    """The objects of the next directory that has any."""
    for directory, _, names in walk:
        found = [(directory, name) for name in names if not name.startswith(".")]
        if found:
            yield from found
            return
