"""What all that is done to a node's volumes stands on: their driver, one order at a time for each, the keys of those that
are sealed, and who has which.

What is on the disk is the driver's and is truth; what is remembered here dies with the engine. See `volumes`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os

from plasmavmc.errors import ConflictError, InvalidSpecError
from plasmavmc.guest.filesystem import MIN_VOLUME_BYTES
from plasmavmc.holdings import Holdings, held
from plasmavmc.host.threads import in_thread
from plasmavmc.storage import luks
from plasmavmc.storage.volumes.backend import StoredVolume, VolumeDriver
from plasmavmc.storage.volumes.errors import no_snapshot, no_volume
from plasmavmc.types import GIB, MIB, check_id

MAX_VOLUME_BYTES = 16 * 1024 * GIB
"""The largest file of ext4, which volumes may lie on (ext4(5))."""


class VolumeStock:
    """One per engine. Errors are those of `volumes.Volumes`."""

    def __init__(self, driver: VolumeDriver) -> None:
        self.driver = driver
        self.holdings = Holdings()
        self._keys: dict[str, bytes] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def alone(self, volume_id: str) -> asyncio.Lock:
        """Orders for one volume follow each other. Raises `InvalidSpecError` for what is no id."""
        return self._locks.setdefault(check_id("volume_id", volume_id), asyncio.Lock())

    async def existing(self, volume_id: str) -> StoredVolume:
        """A volume as it is now; `volume-not-found`."""
        volume = await self.driver.find(volume_id)
        if volume is None:
            raise no_volume(volume_id)
        return volume

    async def origin(self, snapshot_id: str) -> StoredVolume:
        """The volume that a snapshot is of; `snapshot-not-found`."""
        volume = await self.driver.origin(check_id("snapshot_id", snapshot_id))
        if volume is None:
            raise no_snapshot(snapshot_id)
        return volume

    async def take_for_same(self, present: StoredVolume, size_bytes: int, key: bytes | None) -> None:
        """A volume that was to be made is there already: `volume-exists` of another size or kind, `wrong-key`."""
        check_same_size(present, size_bytes)
        if present.sealed != (key is not None):
            kind = "encrypted" if present.sealed else "not encrypted"
            raise ConflictError("volume-exists", f"volume {present.volume_id} exists, and is {kind}")
        if key is not None:
            await self.unlock(present, key)

    # Keys

    async def unlock(self, volume: StoredVolume, key: bytes) -> None:
        """Remember the key of a sealed volume; `wrong-key`."""
        file = await self.driver.open(volume.volume_id)
        try:
            await in_thread(luks.master_key, file, key)
        finally:
            os.close(file)
        self.remember(volume.volume_id, key)

    def remember(self, volume_id: str, key: bytes) -> None:
        """The key of a volume that was made with it."""
        self._keys[volume_id] = key

    def forget(self, volume_id: str) -> None:
        """There is no such volume any more."""
        self._keys.pop(volume_id, None)

    def key_of(self, volume_id: str) -> bytes | None:
        """None: it is not known, or there is none."""
        return self._keys.get(volume_id)

    # Who has it

    async def check_free(self, volume_id: str, done: str) -> None:
        """Nobody has a volume that is to be `done`; `volume-held`."""
        for holding in self.holdings.of(volume_id):
            raise held(volume_id, holding.vm_id, done)
        if await self.is_open(volume_id, fcntl.LOCK_EX):
            raise held(volume_id, "", done)

    async def is_open(self, volume_id: str, lock: int) -> bool:
        """A process has it in a way that does not go with this lock."""
        file = await self.driver.open(volume_id)
        try:
            return not locked(file, lock)
        finally:
            os.close(file)


def check_size(size_bytes: int) -> None:
    """A volume can have this size; raises `InvalidSpecError`."""
    if not MIN_VOLUME_BYTES <= size_bytes <= MAX_VOLUME_BYTES or size_bytes % MIB:
        raise InvalidSpecError(
            "size_bytes",
            f"a volume has {MIN_VOLUME_BYTES // MIB} MiB to {MAX_VOLUME_BYTES // GIB} GiB, in whole MiB",
        )


def check_same_size(present: StoredVolume, size_bytes: int) -> None:
    """Raises `ConflictError`, `volume-exists`."""
    if present.size_bytes - overhead(present) != size_bytes:
        raise ConflictError("volume-exists", f"volume {present.volume_id} exists with another size")


def check_key(key: bytes | None) -> None:
    """It can be one, where there is one; raises `InvalidSpecError`."""
    if key is not None and len(key) != luks.KEY_BYTES:
        raise InvalidSpecError("key", f"a key has {luks.KEY_BYTES} bytes")


def overhead(volume: StoredVolume) -> int:
    """Bytes that its user does not see."""
    return luks.HEADER_BYTES if volume.sealed else 0


def locked(file: int, how: int) -> bool:
    """Take a lock that lives as long as the last descriptor of this opening."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
