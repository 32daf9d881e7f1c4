"""What the engine remembers of a VM across its own restarts: one small file a VM, written whole and swapped in.

Environment and files of a spec are left out: they may hold secrets, and no secret is written to a disk in clear. A VM is
one-shot, so they are not needed again once the guest has them; a record knows that there were some, for a restart needs
them.

No fsync: a record is only worth something while its VM lives, and no VM outlives the host's page cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import msgspec

from plasmavmc.types import VmHandle, VmSpec, VmStatus, vm_key

_ADDRESSES = (IPv4Address, IPv4Network, IPv6Address, IPv6Network)


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
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _path(self, vm_id: str) -> Path:
        return self._directory / f"{vm_key(vm_id)}.json"

    def save(self, record: VmRecord) -> None:
        """Store a record, atomically; without environment and files."""
        forgotten = record.forgotten or bool(record.spec.env or record.spec.files)
        redacted = replace(record, spec=replace(record.spec, env={}, files=()), forgotten=forgotten)
        path = self._path(record.spec.id)
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(msgspec.json.encode(redacted, enc_hook=_encode_address))
        fresh.replace(path)

    def delete(self, vm_id: str) -> None:
        """Forget a VM."""
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
