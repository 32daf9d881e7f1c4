"""Uploads under way: chunks of a tar, appended to a file in the spool directory until the client says that is all.

A part that did not arrive can be sent again from where it broke off, since the file knows its length. Everything is
bounded: how many uploads a project has, their size, a chunk's size, how long one may rest, and how full the disk may get.
Nothing outlives a restart: the directory is emptied when the API starts.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from shellwego.control.scopes import missing
from shellwego.core.errors import ConflictError, InvalidError, MalformedError, QuotaError, UnavailableError
from shellwego.ports.clock import Clock

if TYPE_CHECKING:
    from _hashlib import HASH

MAX_UPLOAD = 16 * 1024**3
MAX_CHUNK = 32 * 1024**2
MAX_PER_PROJECT = 4
RESTS_S = 3600.0
EXPIRE_EVERY_S = 60.0
_KEEP_FREE, _KEEP_FREE_AT_MOST = 512 * 1024**2, 16 * 1024**3
_KEPT_PART = 20
"""A twentieth of the disk stays free, within these bounds: the platform's database may lie on the same one."""
_READ = 1024**2
_RANGE = re.compile(r"(?:bytes )?(\d{1,15})-(\d{1,15})(?:/(?:\*|\d{1,15}))?", re.ASCII)


@dataclass(slots=True)
class Upload:
    """One upload. `busy` while a request works on it."""

    id: str
    project_id: str
    path: Path
    touched: float
    name: str | None = None
    """What it is to be loaded as, instead of the names in it."""
    size: int = 0
    digest: HASH = field(default_factory=hashlib.sha256)
    busy: bool = False


def parse_range(text: str) -> tuple[int, int]:
    """First and last byte of a Content-Range such as `bytes 0-1023/*` or `0-1023`.

    Raises:
        MalformedError: it is not one.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise MalformedError("bad-content-range", "Content-Range has the form “bytes first-last/*”")
    return int(match[1]), int(match[2])


class Spool:
    """All uploads of this API server."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._uploads: dict[str, Upload] = {}

    def open(self) -> None:
        """Make the directory, or empty it. Raises `OSError`."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._directory.glob("upl_*"):
            leftover.unlink()

    def begin(self, project_id: str, name: str | None = None) -> Upload:
        """A new, empty upload.

        Raises:
            QuotaError: the project has as many as it may.
        """
        self.expire()
        if sum(upload.project_id == project_id for upload in self._uploads.values()) >= MAX_PER_PROJECT:
            raise QuotaError(
                "too-many-uploads",
                f"a project has at most {MAX_PER_PROJECT} uploads at a time",
                resolution="Finish one, or wait: an upload that rests is removed after an hour.",
            )
        id_ = self._clock.new_id("upl")
        upload = Upload(id_, project_id, self._directory / id_, self._clock.monotonic(), name)
        try:
            os.close(os.open(upload.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise _no_room(error) from error
        self._uploads[id_] = upload
        return upload

    def get(self, id_: str, project_id: str) -> Upload:
        """An upload of this project; raises `NotFoundError`."""
        upload = self._uploads.get(id_)
        if upload is None or upload.project_id != project_id:
            raise missing("upload", id_)
        return upload

    async def keep_expiring(self) -> None:
        """Remove what rests too long, for ever."""
        while True:
            await self._clock.sleep(EXPIRE_EVERY_S)
            with suppress(OSError):  # a disk that cannot be read now may be in a minute
                self.expire()

    async def append(self, upload: Upload, first: int, last: int, chunks: AsyncIterator[bytes]) -> int:
        """Write one part; returns the new size. A part that breaks off leaves what was there before it.

        Raises:
            ConflictError: it does not begin where the upload ends, or another request works on the upload.
            InvalidError: the part is larger than allowed, or not as long as announced.
            UnavailableError: the disk is full.
        """
        length = last - first + 1
        if first != upload.size:
            raise ConflictError("bad-offset", f"the upload has {upload.size} bytes, so a part begins there")
        if length > MAX_CHUNK or last >= MAX_UPLOAD:
            raise InvalidError("part-too-large", f"a part has at most {MAX_CHUNK} bytes, an upload {MAX_UPLOAD}")
        async with self.claimed(upload):
            self.expire()
            self._check_room(length)
            await self._write(upload, length, chunks)
        return upload.size

    def _check_room(self, length: int) -> None:
        disk = shutil.disk_usage(self._directory)
        kept = max(_KEEP_FREE, min(disk.total // _KEPT_PART, _KEEP_FREE_AT_MOST))
        if disk.free < length + kept:
            raise UnavailableError(
                "spool-full",
                f"the server's disk has no room for the upload: {disk.free >> 20} MiB are free, and {kept >> 20} stay so",
                resolution="Free space on it: swg images rm removes images that no app needs.",
            )

    async def _write(self, upload: Upload, length: int, chunks: AsyncIterator[bytes]) -> None:
        digest = upload.digest.copy()
        written = 0
        with await asyncio.to_thread(upload.path.open, "r+b") as file:
            await asyncio.to_thread(_rewind, file, upload.size)
            async for chunk in chunks:
                written += len(chunk)
                if written > length:
                    break
                self._check_room(len(chunk))
                await asyncio.to_thread(_write_and_hash, file, digest, chunk)
        if written != length:
            raise InvalidError("bad-length", f"the part has another length than the {length} bytes announced")
        upload.size += written
        upload.digest = digest

    async def read(self, upload: Upload) -> AsyncIterator[bytes]:
        """The whole of it, in pieces."""
        with await asyncio.to_thread(upload.path.open, "rb") as file:
            while chunk := await asyncio.to_thread(file.read, _READ):
                yield chunk

    @asynccontextmanager
    async def claimed(self, upload: Upload) -> AsyncIterator[None]:
        """Keep other requests away from it; raises `ConflictError` where one is at work."""
        if upload.busy:
            raise ConflictError("upload-busy", "another request works on this upload", resolution="Wait for it.")
        upload.busy = True
        try:
            yield
        finally:
            upload.busy = False
            upload.touched = self._clock.monotonic()

    def remove(self, upload: Upload) -> None:
        """Forget it and its file."""
        self._uploads.pop(upload.id, None)
        with suppress(FileNotFoundError):
            upload.path.unlink()

    def expire(self) -> None:
        """Remove what has rested for an hour."""
        deadline = self._clock.monotonic() - RESTS_S
        for upload in [u for u in self._uploads.values() if not u.busy and u.touched < deadline]:
            self.remove(upload)


def check_digest(upload: Upload, digest: str) -> None:
    """Refuse an upload that is not what the client says it sent; raises `InvalidError`."""
    if digest != f"sha256:{upload.digest.hexdigest()}":
        raise InvalidError("digest-mismatch", "the upload's SHA-256 is another than the digest given")


def _rewind(file: IO[bytes], size: int) -> None:
    """Drop what a part that broke off has left behind."""
    file.truncate(size)
    file.seek(size)


def _write_and_hash(file: IO[bytes], digest: HASH, chunk: bytes) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise _no_room(error) from error
    digest.update(chunk)


def _no_room(error: OSError) -> UnavailableError:
    return UnavailableError("spool-failed", f"the server could not store the upload: {error.strerror}")
