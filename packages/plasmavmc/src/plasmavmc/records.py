"""What the engine remembers of a VM across its own restarts: one small file a VM, written whole and swapped in.

Environment and files of a spec are left out: they may hold secrets, and no secret is written to a disk in clear. A VM is
one-shot, so they are not needed again once the guest has them; a record knows that there were some, for a restart needs
them.

No fsync while a VM has a process: it does not outlive the host's page cache, and its record is worth nothing then. One that
is suspended outlives the host, or is about to: its record is on the disk before it has its name.

A disk that takes no record must not keep a VM from going on, or from ending. So what a VM has become is `keep`t: where it
cannot be written now it is tried again, and until then a restart of the engine finds the record before. That one is older,
and what comes of it is safe: a VM whose process it does not know is swept, one whose process is gone has ended, and one
whose snapshot counts sleeps (`sleeping`).
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import msgspec
import structlog

from plasmavmc.errors import CapacityError, HostError, PlasmaError
from plasmavmc.states import VmState
from plasmavmc.types import VmHandle, VmSpec, VmStatus, vm_key

COPYING = "copy"
"""The step of a VM that stands still to be copied: no snapshot of it comes to count."""
RETRY_S = 5.0
"""From an attempt to write what could not be written to the next."""
_ADDRESSES = (IPv4Address, IPv4Network, IPv6Address, IPv6Network)
_FULL = {errno.ENOSPC, errno.EDQUOT}
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
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _path(self, vm_id: str) -> Path:
        return self._directory / f"{vm_key(vm_id)}.json"

    def save(self, record: VmRecord) -> None:
        """Store a record, atomically; without environment and files.

        Raises:
            CapacityError: `disk-full`.
            HostError: `record-error`, what the file system refused. The record before is there as it was.
        """
        try:
            self._write(record)
        except OSError as error:
            raise _refused(record.spec.id, error) from error
        self._owed.pop(record.spec.id, None)

    def keep(self, record: VmRecord) -> None:
        """As `save`; where it cannot be written now that is logged once, and tried again until it can."""
        vm_id = record.spec.id
        try:
            self.save(record)
        except PlasmaError as error:
            if vm_id not in self._owed:
                log.error("record.not_written", vm=vm_id, reason=str(error))
            self._owed[vm_id] = record
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(RETRY_S, self.catch_up)

    def catch_up(self) -> None:
        """Try again to write what could not be written; what still cannot is tried again later."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for record in tuple(self._owed.values()):
            self.keep(record)
            if record.spec.id not in self._owed:
                log.info("record.written", vm=record.spec.id)

    def close(self) -> None:
        """Try once more to write what could not be written."""
        self.catch_up()
        if self._retry is not None:
            self._retry.cancel()

    def _write(self, record: VmRecord) -> None:
        forgotten = record.forgotten or bool(record.spec.env or record.spec.files)
        redacted = replace(record, spec=replace(record.spec, env={}, files=()), forgotten=forgotten)
        path = self._path(record.spec.id)
        fresh = path.with_suffix(".new")
        try:
            with fresh.open("wb") as stream:
                os.fchmod(stream.fileno(), 0o600)
                stream.write(msgspec.json.encode(redacted, enc_hook=_encode_address))
                if _outlives_host(record.status):
                    stream.flush()
                    os.fsync(stream.fileno())
            fresh.replace(path)
        except OSError:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
        if record.status.state is VmState.SUSPENDED:
            self._sync_names()

    def _sync_names(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def delete(self, vm_id: str) -> None:
        """Forget a VM."""
        self._owed.pop(vm_id, None)
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


def _refused(vm_id: str, error: OSError) -> PlasmaError:
    words = f"what VM {vm_id} has become cannot be written down"
    if error.errno in _FULL:
        resolution = "Free space, or give the data directory a larger disk."
        return CapacityError("disk-full", f"{words}: no space is left", resolution=resolution)
    return HostError(
        "record-error", f"{words}: {error.strerror or error}", resolution="See to the data directory's disk."
    )
