"""Port: where writable layers live.

A writable layer is a clone of a pre-made, formatted, sparse template (one per size, in the host's cache): cloning takes
milliseconds, formatting per boot would take seconds. A disk is handed to a VMM as an open descriptor, never as a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Disk:
    key: str
    """The VM's key; one writable layer a VM."""
    size_bytes: int
    used_bytes: int


class StorageBackend(Protocol):
    """Raises `CapacityError` where the disk is full and `HostError` for what the file system refuses.

    A failed clone leaves nothing behind.
    """

    @property
    def name(self) -> str: ...

    async def clone(self, template: Path, key: str) -> Disk:
        """Make disk `key` from the template. `ConflictError` where it exists."""

    async def copy(self, source: str, key: str) -> Disk:
        """Make disk `key` from disk `source`, which nobody writes to meanwhile. `NotFoundError` where there is no source,
        `ConflictError` where `key` exists."""

    async def create(self, key: str, size_bytes: int) -> Disk:
        """Make disk `key`, all zeros, for content from elsewhere. `ConflictError` where it exists."""

    async def open(self, key: str) -> int:
        """A read-write descriptor of the disk, owned by the caller. `NotFoundError` where there is none."""

    async def make_durable(self, key: str) -> None:
        """Return when all of the disk is there also after a power cut of the host. `NotFoundError` where there is none."""

    async def delete(self, key: str) -> None:
        """Remove the disk. Unknown keys are fine."""

    async def used_bytes(self, key: str) -> int:
        """What the disk takes of the host's; 0 where there is none."""

    async def disks(self) -> tuple[Disk, ...]:
        """All disks, for adoption and sweeping."""

    async def free_bytes(self) -> int:
        """Room left for disks."""
