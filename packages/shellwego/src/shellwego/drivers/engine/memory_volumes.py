"""Volumes of the memory engine: what a volume holds is a text, which a test writes and reads."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shellwego.core.errors import ConflictError, InvalidError, NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.core.volumes import SnapshotView, VolumeView
from shellwego.wire.codec import decode, encode

BLOCK = 4096
_LENGTH = struct.Struct(">I")
_DIGEST = hashlib.sha256().digest_size


@dataclass(slots=True)
class MemoryVolume:
    size_bytes: int
    holds: str = ""
    source: str = ""
    """The snapshot that it is a clone of."""
    key: Sensitive | None = field(default=None, repr=False)
    """What opens it, where that is known; None also where it is in clear."""
    header: bytes = field(default=b"", repr=False)
    """Tells which key opens it; empty: it is in clear."""
    snapshots: dict[str, str] = field(default_factory=dict)
    """What it held when each was taken."""

    def __post_init__(self) -> None:
        self.header = self.header or _header(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parcel:
    """What a snapshot on its way begins with; then comes its text behind what it has in common with the earlier one, and
    the sum of the whole."""

    size_bytes: int
    header: bytes
    common: int
    """So many characters are those of the earlier one."""
    based: bool
    length: int


class MemorySource:
    """`ports.engine.SnapshotSource`: the text from the first byte on, and zeros behind it; where there is a key, behind a
    block that tells which opens it."""

    def __init__(self, text: bytes, volume_bytes: int, header: bytes) -> None:
        self._content = header + text
        self.volume_bytes = volume_bytes
        self.size_bytes = volume_bytes + len(header)
        self.sealed = bool(header)

    async def next_data(self, offset: int) -> tuple[int, int] | None:
        return (offset, len(self._content)) if offset < len(self._content) else None

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size].ljust(min(size, self.size_bytes - offset), b"\0")


def _header(key: Sensitive | None) -> bytes:
    return b"" if key is None else hashlib.sha256(key.reveal()).digest().ljust(BLOCK, b"\1")


class MemoryVolumes:
    """The volumes of one host. Fault: `fails_with`, which the next calls meet while it is set."""

    def __init__(self, disk_bytes: int, holders: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """`holders`: the volumes that VMs have now, each with its VM."""
        self._disk_bytes = disk_bytes
        self._holders = holders
        self.kept: dict[str, MemoryVolume] = {}
        self._unlocked: set[str] = set()
        self.fails_with: ShellWeGoError | None = None

    def views(self) -> tuple[VolumeView, ...]:
        held = dict(self._holders())
        return tuple(
            VolumeView(
                volume_id=id_,
                size_bytes=volume.size_bytes,
                used_bytes=BLOCK * (1 + len(volume.snapshots)),
                vm_id=held.get(id_, ""),
                encrypted=bool(volume.header),
                locked=self._is_locked(id_),
                snapshots=tuple(SnapshotView(snapshot_id=each, used_bytes=BLOCK) for each in volume.snapshots),
            )
            for id_, volume in self.kept.items()
        )

    def create(self, volume_id: str, size_bytes: int, *, key: Sensitive | None = None) -> None:
        self._may_fail()
        known = self.kept.get(volume_id)
        if known is None:
            self._need_room(size_bytes)
            self.kept[volume_id] = MemoryVolume(size_bytes, key=key)
        elif known.size_bytes != size_bytes or bool(known.header) != (key is not None):
            raise ConflictError("volume-exists", f"there is a volume {volume_id} of another size or kind")
        if key is not None:
            self.unlock(volume_id, key)

    def unlock(self, volume_id: str, key: Sensitive) -> None:
        self._may_fail()
        volume = self._find(volume_id)
        if not volume.header:
            raise ConflictError("not-encrypted", f"the volume {volume_id} is not encrypted")
        if volume.header != _header(key):
            raise ConflictError("wrong-key", f"the key does not open the volume {volume_id}")
        volume.key = key
        self._unlocked.add(volume_id)

    def lock(self) -> None:
        """Forget all keys, as an engine that ends."""
        self._unlocked.clear()

    def clone(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        self._may_fail()
        if volume_id not in self.kept:
            source = self._of_snapshot(snapshot_id)
            size = max(size_bytes, source.size_bytes)
            self._need_room(size)
            self.kept[volume_id] = MemoryVolume(
                size, source.snapshots[snapshot_id], snapshot_id, key=source.key, header=source.header
            )

    def source(self, snapshot_id: str) -> MemorySource:
        self._may_fail()
        volume = self._of_snapshot(snapshot_id)
        return MemorySource(volume.snapshots[snapshot_id].encode(), volume.size_bytes, volume.header)

    def fill(self, volume_id: str, stored_bytes: int, stored: bytes, key: Sensitive | None) -> None:
        header = _header(key)
        if not stored.startswith(header):
            raise ConflictError("wrong-key", f"the key does not open what the volume {volume_id} is to be made of")
        self.create(volume_id, stored_bytes - len(header), key=key)
        self.kept[volume_id].holds = stored[len(header) :].rstrip(b"\0").decode()

    def resize(self, volume_id: str, size_bytes: int) -> None:
        self._may_fail()
        volume = self._find(volume_id)
        self._need_room(max(size_bytes - volume.size_bytes, 0))
        volume.size_bytes = max(size_bytes, volume.size_bytes)

    def snapshot(self, volume_id: str, snapshot_id: str) -> None:
        self._may_fail()
        volume = self._find(volume_id)
        volume.snapshots.setdefault(snapshot_id, volume.holds)

    def restore(self, volume_id: str, snapshot_id: str) -> None:
        self._may_fail()
        volume = self._free(volume_id)
        if snapshot_id not in volume.snapshots:
            raise NotFoundError("snapshot-not-found", f"the volume {volume_id} has no snapshot {snapshot_id}")
        volume.holds = volume.snapshots[snapshot_id]

    def send(self, snapshot_id: str, since: str) -> bytes:
        self._may_fail()
        volume = self._of_snapshot(snapshot_id)
        if since and since not in volume.snapshots:
            raise NotFoundError("snapshot-not-found", f"there is no snapshot {since}")
        text, earlier = volume.snapshots[snapshot_id], volume.snapshots.get(since, "")
        pairs = enumerate(zip(text, earlier, strict=False))
        common = next((at for at, (one, other) in pairs if one != other), min(len(text), len(earlier)))
        rest = text[common:].encode()
        parcel = _Parcel(
            size_bytes=volume.size_bytes, header=volume.header, common=common, based=bool(since), length=len(rest)
        )
        head = encode(parcel)
        return _LENGTH.pack(len(head)) + head + rest + hashlib.sha256(text.encode()).digest()

    def receive(self, volume_id: str, snapshot_id: str, sent: bytes, since: str) -> str:
        self._may_fail()
        if volume_id in self.kept and snapshot_id in self.kept[volume_id].snapshots:
            self.restore(volume_id, snapshot_id)
            return ""
        parcel, rest, digest = _opened(sent)
        if parcel.based != bool(since):
            raise InvalidError("invalid-since", "the stream was made with another snapshot")
        earlier = self._earlier(volume_id, since) if since else ""
        text = earlier[: parcel.common] + rest.decode(errors="replace")
        if hashlib.sha256(text.encode()).digest() != digest:
            raise InvalidError("invalid-stream", "what it makes here is not what was sent")
        if not since:
            if volume_id in self.kept:
                raise ConflictError("volume-exists", f"there is a volume {volume_id}")
            self._need_room(parcel.size_bytes)
            self.kept[volume_id] = MemoryVolume(parcel.size_bytes, header=parcel.header)
        self.kept[volume_id].snapshots[snapshot_id] = self.kept[volume_id].holds = text
        return digest.hex()

    def _earlier(self, volume_id: str, since: str) -> str:
        volume = self._free(volume_id)
        if list(volume.snapshots)[-1:] != [since]:
            raise NotFoundError("snapshot-not-found", f"{since} is not the youngest snapshot of {volume_id}")
        return volume.snapshots[since]

    def delete(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        self._may_fail()
        if volume_id not in self.kept:
            return
        snapshots = self._free(volume_id).snapshots
        if snapshots and not with_snapshots:
            raise ConflictError("volume-has-snapshots", f"the volume {volume_id} has snapshots")
        for snapshot_id in snapshots:
            self._need_no_clones(snapshot_id)
        del self.kept[volume_id]
        self._unlocked.discard(volume_id)

    def delete_snapshot(self, snapshot_id: str) -> None:
        self._may_fail()
        self._need_no_clones(snapshot_id)
        for volume in self.kept.values():
            volume.snapshots.pop(snapshot_id, None)

    def take(self, volume_id: str, vm_id: str) -> None:
        """Refuse a VM a volume that is not there, or that another one has."""
        self._find(volume_id)
        self._need_nobody_else(volume_id, vm_id)
        if self._is_locked(volume_id):
            raise ConflictError("volume-locked", f"the volume {volume_id} is encrypted, and its key was not given")

    def _need_nobody_else(self, volume_id: str, vm_id: str) -> None:
        holder = dict(self._holders()).get(volume_id, vm_id)
        if holder != vm_id:
            raise ConflictError("volume-held", f"the volume {volume_id} is held by the VM {holder}")

    def _is_locked(self, volume_id: str) -> bool:
        return bool(self.kept[volume_id].header) and volume_id not in self._unlocked

    def _may_fail(self) -> None:
        if self.fails_with is not None:
            raise self.fails_with

    def _find(self, volume_id: str) -> MemoryVolume:
        if volume_id not in self.kept:
            raise NotFoundError("volume-not-found", f"there is no volume {volume_id}")
        return self.kept[volume_id]

    def _free(self, volume_id: str) -> MemoryVolume:
        volume = self._find(volume_id)
        self._need_nobody_else(volume_id, "")
        return volume

    def _of_snapshot(self, snapshot_id: str) -> MemoryVolume:
        for volume in self.kept.values():
            if snapshot_id in volume.snapshots:
                return volume
        raise NotFoundError("snapshot-not-found", f"there is no snapshot {snapshot_id}")

    def _need_no_clones(self, snapshot_id: str) -> None:
        clones = sorted(id_ for id_, volume in self.kept.items() if volume.source == snapshot_id)
        if clones:
            raise ConflictError("snapshot-has-clones", f"{', '.join(clones)} began as a copy of {snapshot_id}")

    def _need_room(self, more: int) -> None:
        if sum(volume.size_bytes for volume in self.kept.values()) + more > self._disk_bytes:
            raise UnavailableError("no-room", "the host has no room for so large a volume")


def _opened(sent: bytes) -> tuple[_Parcel, bytes, bytes]:
    """What a stream holds: its beginning, the text that differs, the sum."""
    cut = UnavailableError("stream-cut", "the snapshot ended on its way", resolution="Send it again.")
    if len(sent) < _LENGTH.size:
        raise cut
    end = _LENGTH.size + _LENGTH.unpack_from(sent)[0]
    if len(sent) < end:
        raise cut
    try:
        parcel = decode(_Parcel, sent[_LENGTH.size : end])
    except ValueError:
        raise InvalidError("invalid-stream", "this is no snapshot on its way") from None
    if len(sent) < end + parcel.length + _DIGEST:
        raise cut
    return parcel, sent[end : end + parcel.length], sent[end + parcel.length :]
