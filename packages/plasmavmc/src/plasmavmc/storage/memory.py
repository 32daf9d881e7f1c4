"""Driver `memory`: disks in anonymous memory (memfd_create(2)). For tests and simulation; a VMM can use its descriptors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from plasmavmc.errors import CapacityError, ConflictError, HostError, NotFoundError
from plasmavmc.storage.backend import Disk
from plasmavmc.storage.directory import check_key
from plasmavmc.storage.sparse import allocated_bytes, sparse_copy
from plasmavmc.types import GIB


class MemoryStorage:
    """`StorageBackend` that forgets everything with the process. `capacity_bytes` bounds what is written by clones."""

    def __init__(self, capacity_bytes: int = GIB) -> None:
        self._capacity = capacity_bytes
        self._disks: dict[str, int] = {}

    @property
    def name(self) -> str:
        return "memory"

    async def clone(self, template: Path, key: str) -> Disk:
        try:
            with template.open("rb") as source:
                return self._made(source.fileno(), key)
        except OSError as error:
            raise HostError("storage-error", f"{template}: {error.strerror}") from error

    async def copy(self, source: str, key: str) -> Disk:
        descriptor = await self.open(source)
        try:
            return self._made(descriptor, key)
        finally:
            os.close(descriptor)

    async def create(self, key: str, size_bytes: int) -> Disk:
        return self._new(key, lambda descriptor: os.ftruncate(descriptor, size_bytes))

    def _made(self, source: int, key: str) -> Disk:
        return self._new(key, lambda descriptor: self._fill(descriptor, source))

    def _new(self, key: str, fill: Callable[[int], None]) -> Disk:
        if check_key(key) in self._disks:
            raise ConflictError("disk-exists", f"disk {key} exists already")
        descriptor = os.memfd_create(key, os.MFD_CLOEXEC)
        try:
            fill(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._disks[key] = descriptor
        return self._describe(key)

    async def open(self, key: str) -> int:
        if check_key(key) not in self._disks:
            raise NotFoundError("disk-not-found", f"there is no disk {key}")
        return os.open(f"/proc/self/fd/{self._disks[key]}", os.O_RDWR | os.O_CLOEXEC)

    async def make_durable(self, key: str) -> None:
        os.close(await self.open(key))

    async def delete(self, key: str) -> None:
        descriptor = self._disks.pop(check_key(key), None)
        if descriptor is not None:
            os.close(descriptor)

    async def used_bytes(self, key: str) -> int:
        return self._describe(key).used_bytes if check_key(key) in self._disks else 0

    async def disks(self) -> tuple[Disk, ...]:
        return tuple(self._describe(key) for key in sorted(self._disks))

    async def free_bytes(self) -> int:
        return self._capacity - sum(self._describe(key).used_bytes for key in self._disks)

    def _fill(self, descriptor: int, source: int) -> None:
        sparse_copy(source, descriptor)
        used = sum(self._describe(key).used_bytes for key in self._disks)
        if used + allocated_bytes(descriptor) > self._capacity:
            raise CapacityError("disk-full", "no memory left for disks", resolution="use a storage driver with a disk")

    def _describe(self, key: str) -> Disk:
        descriptor = self._disks[key]
        return Disk(key, os.fstat(descriptor).st_size, allocated_bytes(descriptor))
