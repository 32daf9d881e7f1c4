"""Where snapshots lie, and when they count.

    <directory>/<key>.new/           one under way; never read, swept at start
    <directory>/<key>/               a snapshot: `state`, `memory` (not for a copy's), `manifest`
    <directory>/<key>.used/          one whose VM runs again; never read, swept at start

Theory. A snapshot counts from the moment its directory gets its name, which is after every byte of it is on the disk;
and no longer from the moment it loses that name, which is before its VM runs on: from then on the VM's disk goes its
own way, and memory and disk no longer belong together. So a VM can never be restored twice from one snapshot.

Directories are 0700 and files 0600 of the platform's user. No VMM gets a path, nor a descriptor of the memory: it gets
a copy that was verified.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from plasmavmc.errors import HostError, InvalidSpecError, disk_full, is_disk_full
from plasmavmc.host.names import is_key
from plasmavmc.host.threads import in_thread
from plasmavmc.snapshots.manifest import Manifest, damaged, decode, encode

_NEW, _USED = ".new", ".used"
_MOST_MANIFEST = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Draft:
    """A snapshot under way: two empty files, open for writing."""

    key: str
    state: int
    memory: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot to read from. Nothing of it is verified but the manifest."""

    manifest: Manifest
    state: int
    memory: int


class SnapshotStore:
    """The snapshots of a node, at most one for each VM. One process owns the directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        for left in (*directory.glob(f"*{_NEW}"), *directory.glob(f"*{_USED}")):
            shutil.rmtree(left, ignore_errors=True)

    def has(self, key: str) -> bool:
        """There is a snapshot of this VM that counts."""
        return self._place(key).is_dir()

    def is_still(self, key: str, stored: Stored) -> bool:
        """What was opened counts; another one of this VM, which was taken since, is not the same."""
        try:
            now = (self._place(key) / "state").stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(now, os.fstat(stored.state))

    def keys(self) -> frozenset[str]:
        """The VMs with a snapshot."""
        return frozenset(path.name for path in self._directory.iterdir() if is_key(path.name))

    @asynccontextmanager
    async def draft(self, key: str) -> AsyncIterator[Draft]:
        """Begin a snapshot. At the end of the block nothing of it is left unless it was committed.

        Raises:
            CapacityError: `disk-full`.
            HostError: `snapshot-error`.
        """
        place = self._place(key, _NEW)
        await in_thread(shutil.rmtree, place, ignore_errors=True)
        try:
            with ExitStack() as stack:
                with _errors(place):
                    place.mkdir(mode=0o700)
                    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
                    state, memory = (_opened(place / name, flags, stack) for name in ("state", "memory"))
                yield Draft(key, state, memory)
        finally:
            if place.exists():  # else it was committed, and nobody may be cancelled here, where that counts
                await in_thread(shutil.rmtree, place, ignore_errors=True)

    async def commit(self, draft: Draft, manifest: Manifest) -> None:
        """Make the draft the VM's snapshot: durable first, then named. Who is cancelled when it has its name is not heard:
        the snapshot counts, and what counts must not run on.

        Raises:
            CapacityError: `disk-full`.
            HostError: `snapshot-error`; `snapshot-large`, its pieces are more than would be read again.
        """
        try:
            await in_thread(self._commit, draft, manifest)
        except asyncio.CancelledError:
            if not self.has(draft.key):
                raise

    def _commit(self, draft: Draft, manifest: Manifest) -> None:
        place, final = self._place(draft.key, _NEW), self._place(draft.key)
        with _errors(place), ExitStack() as stack:
            content = encode(manifest)
            if len(content) > _MOST_MANIFEST:  # it would not be read again
                raise HostError(
                    "snapshot-large",
                    f"the memory of VM {manifest.vm_id} lies in too many parts to be kept",
                    resolution="Stop the VM instead, or give it less memory.",
                )
            written = _opened(place / "manifest", os.O_WRONLY | os.O_CREAT | os.O_EXCL, stack)
            with os.fdopen(os.dup(written), "wb") as stream:
                stream.write(content)
            if manifest.memory is None:
                (place / "memory").unlink()
            else:
                os.fsync(draft.memory)
            os.fsync(draft.state)
            os.fsync(written)
            os.fsync(_opened(place, os.O_RDONLY | os.O_DIRECTORY, stack))
            try:
                self._rename(place, final)
            except OSError:
                if place.exists():
                    raise  # else it has its name for good, so it counts, if perhaps not after a power cut

    @contextmanager
    def open(self, key: str) -> Iterator[Stored]:
        """Read a snapshot.

        Raises:
            HostError: `snapshot-missing`, `snapshot-damaged`, `snapshot-version`, `snapshot-error`.
        """
        place = self._place(key)
        if not place.is_dir():
            raise HostError("snapshot-missing", "the VM has no snapshot", resolution="Delete it and start a new one.")
        with ExitStack() as stack:
            with _errors(place):
                manifest = decode(_content(place / "manifest", stack))
                state = _opened(place / "state", os.O_RDONLY, stack)
                memory = -1 if manifest.memory is None else _opened(place / "memory", os.O_RDONLY, stack)
            yield Stored(manifest, state, memory)

    async def use(self, key: str) -> None:
        """From now on it does not count, also after a power cut: its VM is about to run.

        Raises:
            HostError: `snapshot-error`; it counts as before.
        """
        await in_thread(self._use, key)

    def _use(self, key: str) -> None:
        place, used = self._place(key), self._place(key, _USED)
        shutil.rmtree(used, ignore_errors=True)
        with _errors(place):
            self._rename(place, used)

    def _rename(self, place: Path, final: Path) -> None:
        """Give a directory another name, which it has also after a power cut; or the one it had, and raise `OSError`."""
        with ExitStack() as stack:
            names = _opened(self._directory, os.O_RDONLY | os.O_DIRECTORY, stack)
            place.rename(final)
            try:
                os.fsync(names)
            except OSError:
                final.rename(place)
                raise

    async def clear(self, key: str) -> None:
        """Remove what was used. It may be large, and nobody needs to wait for it."""
        await in_thread(shutil.rmtree, self._place(key, _USED), ignore_errors=True)

    async def delete(self, key: str) -> None:
        """Remove whatever there is of this VM; it does not count any more, also after a power cut: what it had may be
        another's by then. Unknown keys are fine.

        Raises:
            CapacityError: `disk-full`.
            HostError: `snapshot-error`; it counts as before.
        """
        await in_thread(self._delete, key)

    def _delete(self, key: str) -> None:
        if self.has(key):
            self._use(key)
        for suffix in (_NEW, _USED):
            shutil.rmtree(self._place(key, suffix), ignore_errors=True)

    def _place(self, key: str, suffix: str = "") -> Path:
        if not is_key(key):
            raise InvalidSpecError("key", "a VM's key has 12 characters of base32")
        return self._directory / f"{key}{suffix}"


def _opened(path: Path, flags: int, stack: ExitStack) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    stack.callback(os.close, descriptor)
    return descriptor


def _content(path: Path, stack: ExitStack) -> bytes:
    with os.fdopen(os.dup(_opened(path, os.O_RDONLY, stack)), "rb") as stream:
        return stream.read(_MOST_MANIFEST)


@contextmanager
def _errors(place: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise damaged(f"{Path(str(error.filename)).name} is missing") from error
    except OSError as error:
        if is_disk_full(error):
            raise disk_full("no space left for a snapshot") from error
        raise HostError("snapshot-error", f"{place}: {error.strerror or error}") from error
