"""What the engine remembers of a VM across its own restarts: one small file a VM, written whole and swapped in.

Environment and files of a spec are left out: they may hold secrets, and no secret is written to a disk in clear. A VM is
one-shot, so they are not needed again once the guest has them; a record knows that there were some, for a restart needs
them.

No fsync while a VM has a process: it does not outlive the host's page cache, and its record is worth nothing then. One that
is suspended outlives the host, or is about to: its record is on the disk before it has its name. The disk may take long for
that, so a thread waits for it and not the event loop; what is written meanwhile is newer, and stands. Whoever does what only
that record explains waits for it (`settled`): before a guest that is to sleep is held, for nobody lets one go on that by its
record runs; before a snapshot comes to count, and before one is used up.

A disk that takes no record must not keep a VM from going on, or from ending. So what a VM has become is `keep`t: where it
cannot be written now it is tried again, and until then a restart of the engine finds the record before. That one is older,
and what comes of it is safe: a VM whose process it does not know is swept, one whose process is gone has ended, and one
whose snapshot counts sleeps (`sleeping`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import msgspec
import structlog

from plasmavmc.errors import HostError, PlasmaError, disk_full, is_disk_full
from plasmavmc.host.files import sync_directory
from plasmavmc.host.threads import in_thread
from plasmavmc.states import VmState
from plasmavmc.types import VmHandle, VmSpec, VmStatus, vm_key

COPYING = "copy"
"""The step of a VM that stands still to be copied: no snapshot of it comes to count."""
RETRY_S = 5.0
"""From an attempt to write what could not be written to the next."""
_ADDRESSES = (IPv4Address, IPv4Network, IPv6Address, IPv6Network)
_OUTLIVES_HOST = frozenset({VmState.SUSPENDING, VmState.SUSPENDED, VmState.RESUMING})
"""There is, or may be, a snapshot that counts."""

log = structlog.get_logger("plasmavmc.records")


def _encode_address(value: object) -> str:
    if isinstance(value, _ADDRESSES):
        return str(value)
    raise TypeError(type(value).__name__)


def _decode_address(kind: type, value: object) -> object:
    if kind in _ADDRESSES and isinstance(value, str):
        return kind(value)
    raise TypeError(kind.__name__)


@dataclass(frozen=True, slots=True)
class VmRecord:
    spec: VmSpec
    status: VmStatus
    handle: VmHandle | None = None
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    asked: bool = False
    """Somebody asked for its end."""
    forgotten: bool = False
    """Environment or files were given, and are lost: this was read from the disk."""
    generation: int = 0
    """How often it was restored from a snapshot."""
    kernel: str = ""
    """Digest of the kernel that it booted from, which need not be the one in use now. Empty before a boot."""
    init: str = ""
    """Names the initramfs that it booted from."""


class Records:
    """The directory of records."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._owed: dict[str, VmRecord] = {}
        """Those that could not be written yet, by VM."""
        self._retry: asyncio.TimerHandle | None = None
        self._numbers = itertools.count()
        self._newest: dict[str, int] = {}
        """Which of the records that threads write is the newest of its VM; none where a newer one was written at once."""
        self._storing: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in directory.glob("*.new"):  # an engine was killed as it wrote
            left.unlink(missing_ok=True)

    def _path(self, vm_id: str) -> Path:
        return self._directory / f"{vm_key(vm_id)}.json"

    def save(self, record: VmRecord) -> None:
        """Store a record at once, atomically; without environment and files. A power cut may take it away.

        Raises:
            CapacityError: `disk-full`.
            HostError: `record-error`, what the file system refused. The record before is there as it was.
        """
        vm_id = record.spec.id
        self._newest.pop(vm_id, None)
        path = self._path(vm_id)
        fresh = path.with_suffix(".new")
        try:
            self._lay(fresh, record, sync=False)
            fresh.replace(path)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise _refused(vm_id, error) from error
        self._is_written(vm_id)

    async def store(self, record: VmRecord) -> None:
        """As `save`; of a VM that outlives its host it is on the disk when this returns, unless a newer one stands then. A
        cancelled caller does not take it back: what was kept before it is not written any more."""
        if _outlives_host(record.status):
            await asyncio.shield(self._enter(record, self._store))
        else:
            self.save(record)

    def _enter(
        self, record: VmRecord, write: Callable[[VmRecord, int], Coroutine[None, None, None]]
    ) -> asyncio.Task[None]:
        """Begin to write it; `settled` waits for that."""
        vm_id = record.spec.id
        storing = self._storing[vm_id]
        task = asyncio.create_task(write(record, self._begin(record)), name=f"record {vm_id}")
        storing.add(task)
        task.add_done_callback(storing.discard)
        return task

    def _begin(self, record: VmRecord) -> int:
        vm_id = record.spec.id
        number = self._newest[vm_id] = next(self._numbers)
        if vm_id in self._owed:
            self._owed[vm_id] = record
        return number

    async def _store(self, record: VmRecord, number: int) -> None:
        vm_id = record.spec.id
        path = self._path(vm_id)
        fresh = path.with_suffix(f".{number}.new")
        try:
            await in_thread(self._lay, fresh, record, sync=True)
            if self._newest.get(vm_id) == number:
                fresh.replace(path)
                await in_thread(sync_directory, self._directory)
        except (OSError, RuntimeError) as error:  # the latter where no thread can be had
            if self._newest.get(vm_id) == number:
                raise _refused(vm_id, error) from error
        else:
            if self._newest.get(vm_id) == number:
                self._is_written(vm_id)
        finally:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            if self._newest.get(vm_id) == number:
                del self._newest[vm_id]

    def keep(self, record: VmRecord) -> None:
        """As `store`, soon (`settled` tells when); where it cannot be written now that is logged once, and tried again until
        it can."""
        if not _outlives_host(record.status):
            try:
                self.save(record)
            except PlasmaError as error:
                self._owe(record, error)
            return
        _ = self._enter(record, self._keep)  # who needs it written waits by `settled`

    async def _keep(self, record: VmRecord, number: int) -> None:
        try:
            await self._store(record, number)
        except PlasmaError as error:
            self._owe(record, error)

    async def settled(self, vm_id: str) -> None:
        """Return when the record of this VM that was kept or stored last is on the disk, or cannot be written now."""
        while storing := self._storing.get(vm_id):
            await asyncio.wait(storing)

    def _owe(self, record: VmRecord, error: PlasmaError) -> None:
        vm_id = record.spec.id
        if vm_id not in self._owed:
            log.error("record.not_written", vm=vm_id, reason=str(error))
        self._owed[vm_id] = record
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self.catch_up)

    def _is_written(self, vm_id: str) -> None:
        if self._owed.pop(vm_id, None) is not None:
            log.info("record.written", vm=vm_id)

    def catch_up(self) -> None:
        """Try again to write what could not be written; what still cannot is tried again later."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for record in tuple(self._owed.values()):
            self.keep(record)

    async def aclose(self) -> None:
        """Try once more to write what could not be written, and wait for what is being written."""
        self.catch_up()
        for vm_id in tuple(self._storing):
            await self.settled(vm_id)
        if self._retry is not None:
            self._retry.cancel()

    def _lay(self, fresh: Path, record: VmRecord, *, sync: bool) -> None:
        forgotten = record.forgotten or bool(record.spec.env or record.spec.files)
        redacted = replace(record, spec=replace(record.spec, env={}, files=()), forgotten=forgotten)
        with fresh.open("wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(msgspec.json.encode(redacted, enc_hook=_encode_address))
            if sync:
                stream.flush()
                os.fsync(stream.fileno())

    def delete(self, vm_id: str) -> None:
        """Forget a VM."""
        self._owed.pop(vm_id, None)
        self._newest.pop(vm_id, None)
        if not self._storing.get(vm_id):
            self._storing.pop(vm_id, None)
        self._path(vm_id).unlink(missing_ok=True)

    def load(self) -> list[VmRecord]:
        """All records that can be read; a damaged one is moved aside (its VM is then swept as unknown)."""
        records = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                records.append(msgspec.json.decode(path.read_bytes(), type=VmRecord, dec_hook=_decode_address))
            except (msgspec.DecodeError, ValueError):
                path.replace(path.with_suffix(".damaged"))
        return records


def _outlives_host(status: VmStatus) -> bool:
    return status.state in _OUTLIVES_HOST and status.reason_code != COPYING


def _refused(vm_id: str, error: OSError | RuntimeError) -> PlasmaError:
    words = f"what VM {vm_id} has become cannot be written down"
    if isinstance(error, RuntimeError):
        return HostError("record-error", f"{words}: {error}", resolution="See to how many processes the host allows.")
    if is_disk_full(error):
        return disk_full(f"{words}: no space is left")
    return HostError(
        "record-error", f"{words}: {error.strerror or error}", resolution="See to the data directory's disk."
    )
