"""Datasets, by root's `zfs`: one method for each order, and the words of the port for what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from plasmavmc.errors import HostError, PlasmaError, UnavailableError
from plasmavmc.host import zfs
from plasmavmc.host.operations import Zfs
from plasmavmc.storage.volumes.errors import volumes_full
from plasmavmc.storage.volumes.zfs.listing import Dataset, Listing, Snapshot, parse_listing

_FULL = ("out of space", "no space left", "quota exceeded")


class Datasets:
    """Raises `CapacityError`, `disk-full`, and `HostError`, `storage-error`; an order that fails so changed nothing. Of one
    that took too long, `UnavailableError`, `storage-slow`, it is not known what it did, or is still to do."""

    def __init__(self, host: Zfs, root: Path) -> None:
        self._host = host
        self._root = root
        self._known: Listing | None = None
        self._changes = 0
        self._given_up: set[str] = set()
        self._left: set[str] = set()
        self._clearing = asyncio.Lock()

    def place(self, name: str) -> Path:
        """Where a dataset is mounted."""
        return self._root / name

    async def look(self) -> Listing:
        """All there is now."""
        changes = self._changes
        with _told("look at the volumes"):
            listing = parse_listing(await self._host.zfs_look())
        if changes == self._changes:
            self._known = listing
        return listing

    async def known(self) -> Listing:
        """As `look`, or what that told last where nothing was changed since: what is used, and what is free, may be of then.
        Nobody but us makes or removes anything, so an order need not look at each of its questions."""
        return self._known or await self.look()

    async def create_dataset(self, name: str, size_bytes: int, *, sealed: bool) -> None:
        """Make one, mounted."""
        await self._do(zfs.ZfsCreate(name, size_bytes, sealed))

    async def clone(self, origin: Dataset, snapshot: Snapshot, name: str, size_bytes: int, *, whole: bool) -> None:
        """Make one of a snapshot, mounted; it shares what neither changes. A whole one is a volume from here on."""
        await self._do(zfs.ZfsClone(origin.name, snapshot.name, name, size_bytes, origin.sealed, whole))

    async def snapshot(self, name: str, snapshot: str, size_bytes: int) -> None:
        """Keep one as it is now, with all that was written to it."""
        await self._do(zfs.ZfsSnapshot(name, snapshot, size_bytes))

    async def set_size(self, name: str, size_bytes: int) -> None:
        """Write down the size that its volume is to have."""
        await self._do(zfs.ZfsResize(name, size_bytes))

    async def mount(self, name: str) -> None:
        """Have it mounted."""
        await self._do(zfs.ZfsMount(name))

    async def finish(self, name: str) -> None:
        """Write down that it is whole: from here on it is a volume."""
        await self._do(zfs.ZfsMark(name, "yes"))
        self._given_up.discard(name)

    async def renounce(self, name: str) -> None:
        """Write down that it is none any more, with all of its snapshots; after a crash it is swept."""
        await self._do(zfs.ZfsMark(name, "no"))

    @asynccontextmanager
    async def given_up(self, name: str, base: str) -> AsyncIterator[None]:
        """In the block what a volume itself holds may be changed in part; if it fails the volume is what its youngest
        snapshot, `base`, is. After a crash `recover` sees to that."""
        await self._do(zfs.ZfsMark(name, "receiving"))
        self._given_up.add(name)
        try:
            await self.rollback(name, base)
            yield
        except BaseException:
            await asyncio.shield(self.take_back(name, (base,)))
            raise
        await self.finish(name)

    async def take_back(self, name: str, snapshots: Iterable[str]) -> None:
        """Have a volume that was given up be what the youngest of these snapshots is. Where there is no way back to any of
        them now it stays given up: what it holds is half of one thing and half of another."""
        self._given_up.add(name)
        for snapshot in snapshots:
            with suppress(HostError, UnavailableError):  # another one is younger; or ZFS is too slow now
                await self.rollback(name, snapshot)
                await self.finish(name)
                return

    def is_given_up(self, name: str) -> bool:
        """What a volume itself holds is of no use to anybody."""
        return name in self._given_up

    async def rollback(self, name: str, snapshot: str) -> None:
        """Make it what it was in its youngest snapshot; where another is younger that is an error."""
        await self._do(zfs.ZfsRollback(name, snapshot))

    async def drop_snapshot(self, name: str, snapshot: str) -> None:
        """Remove a snapshot, now or with the last clone that needs it."""
        await self._do(zfs.ZfsDestroySnapshot(name, snapshot))

    async def destroy(self, name: str) -> None:
        """Remove one; where it is no volume any more, or was none yet, with its snapshots. What was cloned from removed ones
        takes those over first."""
        dataset = (await self.look()).datasets.get(name)
        if dataset is None:
            return
        for snapshot in () if dataset.whole else dataset.kept:
            await self.drop_snapshot(name, snapshot.name)
        while clones := (await self.known()).clones(name):
            await self._do(zfs.ZfsPromote(clones[0].name))
        await self._do(zfs.ZfsDestroy(name))

    @asynccontextmanager
    async def undone(self, name: str) -> AsyncIterator[None]:
        """Whatever the block made under this name is gone if it fails."""
        try:
            yield
        except BaseException:
            await asyncio.shield(self.clear_away(name))
            raise

    async def clear_away(self, name: str) -> None:
        """Remove what is no volume, now or, where it is in use or ZFS fails, at one of the next looks (`clear_left`)."""
        self._left.add(name)
        async with self._clearing:
            await self._clear_away(name)

    async def _clear_away(self, name: str) -> None:
        with suppress(PlasmaError):
            if name in self._left:
                await self.destroy(name)
                self._left.discard(name)

    async def wanted(self, name: str) -> None:
        """From here on nothing that has this name is cleared away: it is about to be made."""
        async with self._clearing:
            self._left.discard(name)

    async def clear_left(self) -> None:
        """Try again to remove what could not be."""
        for name in tuple(self._left):
            async with self._clearing:
                await self._clear_away(name)

    async def _do(self, order: zfs.ZfsOrder) -> None:
        try:
            with _told(f"{type(order).__name__.lower().removeprefix('zfs')} {order.child}"):
                await self._host.zfs_do(order)
        finally:
            self._known, self._changes = None, self._changes + 1


@contextmanager
def _told(doing: str) -> Iterator[None]:
    try:
        yield
    except HostError as error:
        if error.code != "zfs-failed":
            raise
        if any(words in error.details for words in _FULL):
            raise volumes_full(doing) from error
        raise HostError("storage-error", f"cannot {doing}: {error.brief}", details=error.details) from error
