"""What a machine is made of and lives on: the engine's parts, joined once at its start."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from plasmavmc.backends import Acceleration
from plasmavmc.blanks import Blanks
from plasmavmc.fences import Fences
from plasmavmc.guest.boot import BootAssets, disk_template, find_assets
from plasmavmc.guest.logs import LogStore
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.images.source import BlobSource
from plasmavmc.images.store import ImageStore
from plasmavmc.network.backend import NetworkBackend
from plasmavmc.records import Records
from plasmavmc.snapshots.files import SnapshotStore
from plasmavmc.snapshots.room import Room
from plasmavmc.storage.backend import StorageBackend
from plasmavmc.volumes import Volumes


@dataclass(slots=True)
class EngineParts:
    images: ImageStore
    source: BlobSource
    """Where blobs of images come from that the store does not have."""
    storage: StorageBackend
    volumes: Volumes
    """What outlives VMs."""
    network: NetworkBackend
    registry: HypervisorRegistry
    assets: BootAssets
    """What guests boot from that are started now."""
    cache: Path
    """The host's cache: disk templates, and what earlier guests booted from."""
    logs: LogStore
    records: Records
    snapshots: SnapshotStore
    run_dir: Path
    """`/run/shellwego/<installation>/`: sockets of VMs lie below it."""
    nameservers: tuple[str, ...] = ()
    blanks: Blanks = field(default_factory=Blanks)
    """Guests that were booted ahead."""
    fences: Fences = field(default_factory=Fences)
    """Volumes that VMs may have for a time only."""
    room: Room = field(default_factory=Room)
    """What snapshots under way may come to."""
    clock: Callable[[], float] = time.time
    entropy: Callable[[int], bytes] = secrets.token_bytes
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(os.cpu_count() or 1))

    async def disk_template(self, size_bytes: int) -> Path:
        """The formatted, sparse template of this size; made once per host."""
        return await disk_template(self.cache, size_bytes)

    def assets_of(self, kernel: str, init: str) -> BootAssets:
        """What a guest booted from that began with these; what is in use now where that cannot be had any more."""
        if (kernel, init) == (self.assets.kernel_hash, self.assets.initrd_hash):
            return self.assets
        return find_assets(self.cache, kernel, init) or self.assets

    def runtime_dir(self, key: str) -> Path:
        """Where the sockets of a VM lie."""
        return self.run_dir / "vm" / key

    @asynccontextmanager
    async def boot_slot(self, acceleration: Acceleration) -> AsyncIterator[None]:
        """Room to boot. Emulated guests boot one per core: more at once would only slow each other past deadlines."""
        if acceleration is not Acceleration.TCG:
            yield
            return
        async with self._slots:
            yield
