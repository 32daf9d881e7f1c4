"""One project's part of the repository of backups, as an agent reads and writes it.

A backup is taken chunk by chunk: what the repository has already is not sent again, whoever sent it. So one that was broken
off goes on by itself: it is begun anew, and finds what it had sent. Last of all its manifest is stored, and from then on
there is a backup; before it there is nothing that anybody would take for one.

What the parent's manifest names is looked up in one listing, and the rest one by one. Nobody removes a chunk meanwhile: the
control plane lets no backup run while it sweeps.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from shellwego.core.backups import BackupOrder
from shellwego.core.chunks import (
    CHUNK_BYTES,
    NONCE_BYTES,
    BrokenError,
    Manifest,
    VaultCipher,
    chunk_path,
    chunks_prefix,
    damaged_chunk,
    damaged_manifest,
    digest_of,
    entry,
    is_zeros,
    manifest_path,
)
from shellwego.core.errors import ConflictError, NotFoundError, UnavailableError
from shellwego.ports.engine import SnapshotSource
from shellwego.ports.objects import Objects

T = TypeVar("T")
AT_ONCE = 8
"""Chunks under way together: so many MiB of memory, a few times over."""

Progress = Callable[[int, int], None]
"""Called with how many bytes of the volume are done, and how many were added to the repository."""
StillWanted = Callable[[], Awaitable[None]]
"""Returns where a backup is still to be taken, and raises where it is not."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup that is in the repository."""

    digest: str
    stored_bytes: int


class Repository:
    """See the module's head. Raises `UnavailableError` where the store does not answer."""

    def __init__(self, objects: Objects, cipher: VaultCipher, project_id: str) -> None:
        self._objects = objects
        self._cipher = cipher
        self._project_id = project_id

    async def take(
        self, order: BackupOrder, source: SnapshotSource, progress: Progress, still_wanted: StillWanted
    ) -> Taken:
        """Store what a snapshot holds. One that is stored already is left alone; and `still_wanted` is asked just before its
        manifest is stored, of which the control plane would not know later.

        Raises:
            UnavailableError: the snapshot cannot be read.
            ShellWeGoError: as `still_wanted`.
        """
        path = manifest_path(self._project_id, order.backup_id)
        if await self._objects.has(path):
            return Taken(digest_of(await self._objects.get(path)), 0)
        known = set() if order.distrust else await self._of_parent(order)
        table, added = bytearray(), 0
        async for numbers in _together(_numbers(source)):
            kept = await _all(self._keep(source, number, known, distrust=order.distrust) for number in numbers)
            for number, chunk in zip(numbers, kept, strict=True):
                if chunk is not None:
                    table += entry(number, chunk[0])
                    known.add(chunk[0])
                    added += chunk[1]
            progress(numbers[-1] * CHUNK_BYTES, added)
        manifest = Manifest(
            order.backup_id, order.volume_id, order.parent_id, source.size_bytes, source.sealed, bytes(table)
        )
        stored = await asyncio.to_thread(self._cipher.seal_manifest, manifest, secrets.token_bytes(NONCE_BYTES))
        await still_wanted()
        await self._objects.put(path, stored)
        return Taken(digest_of(stored), added + len(stored))

    async def manifest(self, backup_id: str, volume_id: str, digest: str) -> Manifest:
        """The list of a backup's chunks.

        Raises:
            ConflictError: `backup-damaged`, it is missing, or is not what was stored.
        """
        try:
            stored = await self._objects.get(manifest_path(self._project_id, backup_id))
        except NotFoundError:
            raise damaged_manifest(backup_id, volume_id, "missing") from None
        if digest and digest_of(stored) != digest:
            raise damaged_manifest(backup_id, volume_id, "not the one that was stored")
        try:
            return await asyncio.to_thread(self._cipher.open_manifest, backup_id, stored)
        except BrokenError:
            raise damaged_manifest(backup_id, volume_id, "not what it was when it was stored") from None

    async def check(self, manifest: Manifest, progress: Progress) -> str:
        """Read every chunk back; returns what is damaged, empty where all is whole."""
        damage, count = "", 0
        for chunks in _batches(manifest.chunks()):
            for found in await _all(self._doubt(manifest, *chunk) for chunk in chunks):
                damage, count = damage or found, count + bool(found)
            progress(chunks[-1][0] * CHUNK_BYTES, 0)
        return damage if count < 2 else f"{damage}; and {count - 1} more"

    async def content(self, manifest: Manifest) -> AsyncGenerator[tuple[int, bytes]]:
        """What the backup holds: places in the volume and what is there, in order; zeros elsewhere.

        Raises:
            ConflictError: `backup-damaged`, naming what cannot be had.
        """
        for chunks in _batches(manifest.chunks()):
            found = await _all(self._fetched(manifest, *chunk) for chunk in chunks)
            for (number, _), (_, data) in zip(chunks, found, strict=True):
                yield number * CHUNK_BYTES, data

    async def stored(self, manifest: Manifest) -> AsyncGenerator[tuple[str, bytes]]:
        """The backup's objects as the store has them, each once, and the manifest last: what makes it whole elsewhere.

        Raises:
            ConflictError: `backup-damaged`, naming what cannot be had.
        """
        told: set[bytes] = set()
        for chunks in _batches(manifest.chunks()):
            found = await _all(self._fetched(manifest, *chunk) for chunk in chunks)
            for (_, chunk_id), (stored, _) in zip(chunks, found, strict=True):
                if chunk_id not in told:
                    yield chunk_path(self._project_id, chunk_id), stored
                told.add(chunk_id)
        path = manifest_path(self._project_id, manifest.backup_id)
        yield path, await self._objects.get(path)

    async def _of_parent(self, order: BackupOrder) -> set[bytes]:
        """Those chunks of the parent that the repository has."""
        if not order.parent_id:
            return set()
        try:
            ids = (await self.manifest(order.parent_id, order.volume_id, "")).ids()
        except ConflictError:  # then everything is looked up one by one
            return set()
        found = {path.rpartition("/")[2] async for path in self._objects.paths(chunks_prefix(self._project_id))}
        return {chunk_id for chunk_id in ids if chunk_id.hex() in found}

    async def _keep(
        self, source: SnapshotSource, number: int, known: set[bytes], *, distrust: bool
    ) -> tuple[bytes, int] | None:
        """Have a chunk of the volume in the repository: its id, and how many bytes that added; None: it is zeros."""
        start = number * CHUNK_BYTES
        size = min(CHUNK_BYTES, source.size_bytes - start)
        data = await source.read(start, size)
        if len(data) != size:
            raise UnavailableError("volume-read", f"the snapshot ends at byte {start + len(data)}, before its end")
        chunk_id = await asyncio.to_thread(self._name, data)
        if chunk_id is None or chunk_id in known:
            return None if chunk_id is None else (chunk_id, 0)
        if await self._has(chunk_id, distrust=distrust):
            return chunk_id, 0
        stored = await asyncio.to_thread(self._cipher.seal_chunk, chunk_id, data, secrets.token_bytes(NONCE_BYTES))
        await self._objects.put(chunk_path(self._project_id, chunk_id), stored)
        return chunk_id, len(stored)

    def _name(self, data: bytes) -> bytes | None:
        return None if is_zeros(data) else self._cipher.chunk_id(data)

    async def _has(self, chunk_id: bytes, *, distrust: bool) -> bool:
        if not distrust:
            return await self._objects.has(chunk_path(self._project_id, chunk_id))
        try:
            await self._opened(chunk_id)
        except (NotFoundError, BrokenError):
            return False
        return True

    async def _opened(self, chunk_id: bytes) -> tuple[bytes, bytes]:
        """A chunk as it is stored, and what is in it."""
        stored = await self._objects.get(chunk_path(self._project_id, chunk_id))
        return stored, await asyncio.to_thread(self._cipher.open_chunk, chunk_id, stored)

    async def _fetched(self, manifest: Manifest, number: int, chunk_id: bytes) -> tuple[bytes, bytes]:
        start, end = manifest.span(number)
        try:
            stored, data = await self._opened(chunk_id)
        except NotFoundError:
            raise damaged_chunk(manifest, number, chunk_id, "missing") from None
        except BrokenError:
            raise damaged_chunk(manifest, number, chunk_id, "not what they were when they were stored") from None
        if len(data) != end - start:
            raise damaged_chunk(manifest, number, chunk_id, "of another length")
        return stored, data

    async def _doubt(self, manifest: Manifest, number: int, chunk_id: bytes) -> str:
        try:
            await self._fetched(manifest, number, chunk_id)
        except ConflictError as error:
            return error.message
        return ""


async def _numbers(source: SnapshotSource) -> AsyncIterator[int]:
    """Numbers of the chunks in which there is data, in order."""
    after, end = 0, 0
    while (found := await source.next_data(end)) is not None:
        start, end = found
        for number in range(max(start // CHUNK_BYTES, after), -(-end // CHUNK_BYTES)):
            yield number
            after = number + 1


async def _together(numbers: AsyncIterator[int]) -> AsyncIterator[list[int]]:
    """So many of them at a time."""
    some: list[int] = []
    async for number in numbers:
        some.append(number)
        if len(some) == AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _batches(chunks: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    while some := list(islice(chunks, AT_ONCE)):
        yield some


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of it comes to, once all of it has ended; the first error, where there are any."""
    ended = await asyncio.gather(*work, return_exceptions=True)
    for result in ended:
        if isinstance(result, BaseException):
            raise result
    return [result for result in ended if not isinstance(result, BaseException)]
