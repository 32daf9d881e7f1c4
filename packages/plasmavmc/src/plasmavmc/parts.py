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

from plasmavmc.blanks import Blanks
from plasmavmc.guest.boot import BootAssets, disk_template
from plasmavmc.guest.logs import LogStore
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.images.source import BlobSource
from plasmavmc.images.store import ImageStore
from plasmavmc.network.backend import NetworkBackend
from plasmavmc.records import Records
from plasmavmc.snapshots.files import SnapshotStore
from plasmavmc.storage.backend import StorageBackend
from plasmavmc.types import Acceleration


@dataclass(slots=True)
class EngineParts:
    images: ImageStore
    source: BlobSource
    """Where blobs of images come from that the store does not have."""
    storage: StorageBackend
    network: NetworkBackend
    registry: HypervisorRegistry
    assets: BootAssets
    cache: Path
    """The host's cache: disk templates."""
    logs: LogStore
    records: Records
    snapshots: SnapshotStore
    run_dir: Path
    """`/run/shellwego/<installation>/`: sockets of VMs lie below it."""
    nameservers: tuple[str, ...] = ()
    blanks: Blanks = field(default_factory=Blanks)
    """Guests that were booted ahead."""
    clock: Callable[[], float] = time.time
    entropy: Callable[[int], bytes] = secrets.token_bytes
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(os.cpu_count() or 1))

    async def disk_template(self, size_bytes: int) -> Path:
        """The formatted, sparse template of this size; made once per host."""
        return await disk_template(self.cache, size_bytes)

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
