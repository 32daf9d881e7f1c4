"""A content-addressed directory of blobs. It is a `BlobSource`, so nodes can pull from it.

    sha256/<first two digits>/<digest>     a whole blob, its digest checked when it was written
    partial/<digest>[.<asker>]             what arrived of a blob so far; a later `fetch` goes on from its end
    spool/                                 files of work under way; emptied by `sweep` at start

A name below `sha256/` appears by rename after fsync only, so whatever is there is whole. Disk work runs in threads.

Tenants share the directory, and none may get by a digest what is another's: an image of his own making may name it. So
who asks is told (`Asker`), and what he is not known to have must come from his own source, whole, whether it is here
or not. Each has partial files of his own too, and waits for nobody else's source.

Collection is mark and sweep: a blob stays while a kept manifest names it. What was written or asked for in the last
`grace_s` seconds stays too, for its manifest may not have reached the caller's list yet.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

from plasmavmc.errors import ImageError, UnavailableError
from plasmavmc.host.threads import in_thread
from plasmavmc.images.digests import digest_of, hex_of, mismatch
from plasmavmc.images.files import check_room, disk_errors, empty_directory, make_private, publish, sync_file, write_all
from plasmavmc.images.limits import MANIFEST_BYTES
from plasmavmc.images.locks import KeyedLocks
from plasmavmc.images.manifest import parse_manifest
from plasmavmc.images.source import BlobRef, BlobSource
from plasmavmc.images.stepping import reading
from plasmavmc.types import MIB

_CHUNK = MIB
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Asker:
    """For whom blobs are brought in."""

    name: str
    """Whose it will be: a project. Stable, so that what broke off is gone on with."""
    known: frozenset[str] = frozenset()
    """Digests of blobs that he has already (`BlobStore.parts`)."""


class BlobStore:
    """All blobs of one server or node. One process owns a directory."""

    def __init__(self, root: Path, *, grace_s: float = 3600.0, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._grace_s = grace_s
        self._clock = clock
        self._locks = KeyedLocks()
        self._had: dict[tuple[str, str], None] = {}
        """Who has had which blob from his own source, the latest last; it is not fetched again when another breaks off."""
        self._brought: set[str] | None = None
        for name in ("sha256", "partial", "spool"):
            make_private(root / name)

    def noting(self, brought: set[str]) -> BlobStore:
        """This store, which also enters in `brought` the digest of what comes in by way of the result, where that was not
        here, or the asker had brought it himself in an earlier try."""
        noting = copy.copy(self)
        noting._brought = brought
        return noting

    @property
    def spool(self) -> Path:
        """Where work under way may write files, to be taken in by `adopt`."""
        return self._root / "spool"

    def sweep(self) -> None:
        """Remove what a crash left in the spool. For the start, before any work."""
        empty_directory(self.spool)

    # What is here

    def path(self, digest: str) -> Path:
        """Where a blob lies, or would lie."""
        name = hex_of(digest)
        return self._root / "sha256" / name[:2] / name

    def local_path(self, ref: BlobRef) -> Path | None:
        """The file of a whole blob, for readers on this host (`LocalBlobs`)."""
        path = self.path(ref.digest)
        try:
            return path if path.stat().st_size == ref.size else None
        except FileNotFoundError:
            return None

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def touch(self, digest: str) -> bool:
        """True where the blob is here; it counts as used now."""
        try:
            os.utime(self.path(digest), (self._clock(), self._clock()))
        except FileNotFoundError:
            return False
        return True

    def has_image(self, digest: str) -> bool:
        """True where a manifest, its configuration and all its layers are here."""
        try:
            needed = self._needed(digest)
        except ImageError:
            return False
        return all(self.has(blob) for blob in needed)

    def size_of(self, digest: str) -> int:
        """Bytes of an image's manifest, configuration and layers, as far as they are here."""
        try:
            return sum(path.stat().st_size for path in map(self.path, self._needed(digest)) if path.exists())
        except (ImageError, OSError):
            return 0

    async def parts(self, digests: Iterable[str]) -> frozenset[str]:
        """Digests of all blobs of these images, themselves included; an image whose manifest is not here has none."""
        return await in_thread(self._parts, tuple(digests))

    async def manifest(self, digest: str) -> bytes:
        return await self.read(digest, MANIFEST_BYTES)

    async def read(self, digest: str, limit: int) -> bytes:
        """A small blob, whole.

        Raises:
            ImageError: `image-not-found`; `image-too-large` above `limit` bytes.
        """
        data = await in_thread(self._read, digest, limit + 1)
        if len(data) > limit:
            raise ImageError("image-too-large", f"blob {digest} has more than {limit} bytes")
        return data

    async def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
        file = await in_thread(self._open, ref.digest)
        with file:
            file.seek(offset)
            while chunk := await in_thread(file.read, _CHUNK):
                yield chunk

    # What comes in

    async def put(self, data: bytes) -> str:
        """Store a small blob; returns its digest.

        Raises:
            CapacityError: `disk-full`.
        """
        digest = digest_of(data)
        async with self._locks.hold(digest):
            if not self.touch(digest):
                await in_thread(self._write, digest, data)
        return digest

    async def adopt(self, file: Path, digest: str) -> None:
        """Take in a file of the spool whose digest the caller has computed, in place of what a disk may have damaged."""
        async with self._locks.hold(digest):
            await in_thread(self._publish, file, digest)

    async def fetch(self, ref: BlobRef, source: BlobSource, asker: Asker | None = None) -> None:
        """Bring a blob from a source, going on where an earlier try ended. What is here already, with the size that was
        told, is not asked for, unless `asker` is not known to have it. None: nobody needs to be known, for the digest
        comes from the platform itself.

        Raises:
            ImageError: from the source; `digest-mismatch`, after which the bytes that came are gone.
            UnavailableError: from the source; what arrived is kept for the next try.
            CapacityError: `disk-full`; nothing is kept.
        """
        known = asker is None or ref.digest in asker.known or (asker.name, ref.digest) in self._had
        async with self._locks.hold(self._partial(ref.digest, asker).name):
            if known and self.local_path(ref) is not None and self.touch(ref.digest):
                if asker is not None and (asker.name, ref.digest) in self._had:
                    self._note(ref.digest)
                return
            await self._download(ref, source, asker)
            if asker is not None:
                self._remember(asker.name, ref.digest)

    async def check(self, digest: str) -> bool:
        """Hash all blobs of an image again. Those that a failing disk changed are removed; True where none is missing."""
        if not await self._is_sound(digest):
            return False
        sound = [await self._is_sound(blob) for blob in self._needed(digest)]
        return all(sound)

    # What goes out

    async def remove(self, digests: Iterable[str]) -> None:
        """Remove blobs, whole or partial; what an asker's own download has of them stays. Unknown ones are fine."""
        for digest in digests:
            partial = self._partial(digest)
            async with self._locks.hold(partial.name), self._locks.hold(digest):
                self.path(digest).unlink(missing_ok=True)
                partial.unlink(missing_ok=True)

    async def collect(
        self, keep: frozenset[str], unused_since: float | None = None, *, among: frozenset[str] | None = None
    ) -> int:
        """Remove every blob, whole or partial, that no manifest in `keep` needs; returns the bytes won. What was written or
        asked for since that moment (seconds since the epoch) stays, beside what the grace period spares. `among`: look at
        no others than these, and at whole ones only.

        Raises:
            ImageError: a manifest in `keep` is damaged; nothing is removed.
        """
        before = self._clock() - self._grace_s
        before = before if unused_since is None else min(before, unused_since)
        needed = await in_thread(self._mark, keep)
        won = 0
        found = await in_thread(self._all_files) if among is None else [self.path(digest) for digest in among]
        for path in found:
            digest = f"sha256:{path.name.partition('.')[0]}"
            is_needed = digest in needed and (path == self.path(digest) or not self.has(digest))
            if not (is_needed or self._locks.is_held(digest) or self._locks.is_held(path.name)):
                won += _remove_stale(path, before)
        return won

    # Downloads

    async def _download(self, ref: BlobRef, source: BlobSource, asker: Asker | None) -> None:
        """Go on with what arrived before. Where that turns out to be rotten, begin anew, once."""
        partial = self._partial(ref.digest, asker)
        resumed = partial.exists()
        try:
            try:
                await self._fill(partial, ref, source)
            except ImageError as error:
                if not resumed or error.code != "digest-mismatch":
                    raise
                partial.unlink()
                await self._fill(partial, ref, source)
            await self.adopt(partial, ref.digest)
        except (UnavailableError, asyncio.CancelledError):
            raise
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    async def _fill(self, partial: Path, ref: BlobRef, source: BlobSource) -> None:
        with disk_errors(self._root), partial.open("ab", buffering=0) as file:
            hasher, offset = await in_thread(_rehash, partial, ref.size)
            file.truncate(offset)
            check_room(self._root, ref.size - offset)
            await self._receive(ref, source, file, hasher, offset)

    async def _receive(
        self, ref: BlobRef, source: BlobSource, file: RawIOBase, hasher: hashlib._Hash, offset: int
    ) -> None:
        async with reading(source.blob(ref, offset)) as chunks:
            async for chunk in chunks:
                offset += len(chunk)
                if offset > ref.size:
                    raise mismatch(f"blob {ref.digest}", f"{ref.size} bytes")
                await in_thread(_append, file, hasher, chunk)
        if offset != ref.size or f"sha256:{hasher.hexdigest()}" != ref.digest:
            raise mismatch(f"blob {ref.digest}", f"{ref.digest} of {ref.size} bytes")

    # Files

    async def _is_sound(self, digest: str) -> bool:
        async with self._locks.hold(digest):
            if not self.has(digest):
                return False
            sound = await in_thread(_is_what_it_was, self.path(digest), digest)
            if not sound:
                with disk_errors(self._root):
                    self.path(digest).unlink()
            return sound

    def _remember(self, name: str, digest: str) -> None:
        self._had[name, digest] = None
        if len(self._had) > _REMEMBERED:
            del self._had[next(iter(self._had))]

    def _partial(self, digest: str, asker: Asker | None = None) -> Path:
        suffix = "" if asker is None else f".{hashlib.sha256(asker.name.encode()).hexdigest()[:32]}"
        return self._root / "partial" / f"{hex_of(digest)}{suffix}"

    def _write(self, digest: str, data: bytes) -> None:
        with disk_errors(self._root):
            file = self.spool / hex_of(digest)
            try:
                file.write_bytes(data)
                self._publish(file, digest)
            finally:
                file.unlink(missing_ok=True)

    def _note(self, digest: str) -> None:
        if self._brought is not None:
            self._brought.add(digest)

    def _publish(self, file: Path, digest: str) -> None:
        if not self.has(digest):
            self._note(digest)
        with disk_errors(self._root):
            sync_file(file)
            publish(file, self.path(digest))

    def _open(self, digest: str) -> BinaryIO:
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            raise ImageError("image-not-found", f"blob {digest} is not in the store") from None

    def _read(self, digest: str, limit: int) -> bytes:
        with self._open(digest) as file:
            return file.read(limit)

    # Marking

    def _mark(self, keep: frozenset[str]) -> frozenset[str]:
        return frozenset(blob for digest in keep if self.has(digest) for blob in self._needed(digest))

    def _parts(self, digests: tuple[str, ...]) -> frozenset[str]:
        found: set[str] = set()
        for digest in digests:
            with suppress(ImageError, OSError):
                found.update(self._needed(digest))
        return frozenset(found)

    def _needed(self, digest: str) -> tuple[str, ...]:
        manifest = parse_manifest(self._read(digest, MANIFEST_BYTES))
        return (digest, manifest.config.digest, *(layer.digest for layer in manifest.layers))

    def _all_files(self) -> tuple[Path, ...]:
        return (*self._root.glob("sha256/*/*"), *self._root.glob("partial/*"))


def _rehash(partial: Path, limit: int) -> tuple[hashlib._Hash, int]:
    """The running hash of what arrived before, and where it ends (at most `limit`)."""
    hasher, offset = hashlib.sha256(), 0
    with partial.open("rb") as file:
        while chunk := file.read(min(_CHUNK, limit - offset)):
            hasher.update(chunk)
            offset += len(chunk)
    return hasher, offset


def _remove_stale(path: Path, before: float) -> int:
    """Remove a file that is no younger than that; returns the bytes won. What ended since the files were listed takes its
    own away: then there is nothing to do."""
    try:
        found = path.stat()
        if found.st_mtime > before:
            return 0
        path.unlink()
    except FileNotFoundError:
        return 0
    return found.st_size


def _is_what_it_was(path: Path, digest: str) -> bool:
    """Whether a blob can be read and has its digest."""
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
    except OSError:
        return False


def _append(file: RawIOBase, hasher: hashlib._Hash, chunk: bytes) -> None:
    hasher.update(chunk)
    write_all(file, chunk)
