"""A suspended VM to another host: its snapshot and its disk out of here, and in there under a new name.

Theory. What is exported is a VM that sleeps, so nothing changes while it is read; should it be woken meanwhile, the
stream ends without its last word, and is nothing. Exporting takes nothing away: whoever has both decides which of the
two lives, and deletes the other before one runs.

What is imported is held against this host before any content comes: owner, image and the image's very bytes, backend,
memory, devices, processor, program, kernel. The VM is there from the moment at which its record is; all that came before is
undone when anything fails, and is nobody's, thus swept, when the engine dies. It is a new VM with another's past: it
gets an address, a name and a machine id of its own, and learns them when it is resumed, before anything of the user's
runs (`restoring`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace

import msgspec

from plasmavmc.backends import SnapshotHost
from plasmavmc.errors import ConflictError, HostError
from plasmavmc.guest.boot import disk_size
from plasmavmc.host.threads import in_thread
from plasmavmc.hypervisor.backend import HypervisorBackend
from plasmavmc.images.store import BUILDER
from plasmavmc.parts import EngineParts
from plasmavmc.quiesce import can_suspend, suspendable, traits_of
from plasmavmc.records import VmRecord
from plasmavmc.snapshots.content import pieces_of, read_piece, set_size, write_piece
from plasmavmc.snapshots.files import Draft, Stored
from plasmavmc.snapshots.manifest import Manifest, Piece, check
from plasmavmc.snapshots.parcel import END, VERSION, Parcel, ParcelReader, encode_header, pack, unpack
from plasmavmc.states import VmState
from plasmavmc.types import MIB, SYSTEM_SCOPE, NetworkSpec, VmResources, VmSpec, VmStatus

_ANY_VM = VmSpec(
    "vm_any",
    SYSTEM_SCOPE,
    "any",
    f"sha256:{'0' * 64}",
    resources=VmResources(memory_bytes=256 * MIB),
    networks=(NetworkSpec("nic_any", "net_any"),),
)
"""What depends on the VM is the same on both hosts, so any will do to tell hosts apart."""


async def snapshot_host(backend: HypervisorBackend, parts: EngineParts) -> SnapshotHost | None:
    """What snapshots of VMs that begin now on this backend depend on here; None where it takes none.

    Raises:
        HostError: it cannot be told.
    """
    if not can_suspend(backend):
        return None
    assets = parts.assets
    traits = await traits_of(backend, _ANY_VM, assets.kernel_hash, assets.initrd_hash)
    return SnapshotHost(backend.capabilities.name, {**traits, "images": str(BUILDER)})


# Out


async def export_snapshot(record: VmRecord, key: str, parts: EngineParts) -> AsyncGenerator[bytes]:
    """A suspended VM as a stream.

    Raises:
        ConflictError: `has-volumes`; `vm-woken`, it was resumed or ended meanwhile.
        HostError: `snapshot-missing`, `snapshot-damaged`, `snapshot-version`, `snapshot-too-large`.
    """
    _refuse_volumes(record.spec)
    with ExitStack() as stack:
        stored = stack.enter_context(parts.snapshots.open(key))
        layer = await parts.storage.open(key)
        stack.callback(os.close, layer)
        parcel = await _parcel(record, stored.manifest, layer, parts)
        yield await in_thread(encode_header, parcel)
        for source, pieces in _contents(stored, layer, parcel):
            for piece in pieces:
                try:
                    yield await in_thread(_packed, source, piece)
                except HostError:
                    _refuse_woken(record, key, stored, parts)
                    raise
        _refuse_woken(record, key, stored, parts)
        yield END


async def _parcel(record: VmRecord, manifest: Manifest, layer: int, parts: EngineParts) -> Parcel:
    scope = record.spec.scope
    return Parcel(
        version=VERSION,
        organization=scope.org,
        project=scope.project,
        rootfs=parts.images.content_digest(record.spec.image),
        layer_bytes=os.fstat(layer).st_size,
        layer=await pieces_of(layer),
        snapshot=manifest,
    )


def _contents(stored: Stored, layer: int, parcel: Parcel) -> tuple[tuple[int, Sequence[Piece]], ...]:
    snapshot = parcel.snapshot
    return (stored.state, snapshot.state), (stored.memory, snapshot.memory or ()), (layer, parcel.layer)


def _packed(source: int, piece: Piece) -> bytes:
    return pack(read_piece(source, piece))


def _refuse_woken(record: VmRecord, key: str, stored: Stored, parts: EngineParts) -> None:
    if not parts.snapshots.is_still(key, stored):
        raise ConflictError("vm-woken", f"VM {record.spec.id} has not slept all the while, so it cannot be sent")


def _refuse_volumes(spec: VmSpec) -> None:
    if spec.volumes:
        raise ConflictError("has-volumes", f"VM {spec.id} has volumes, which stay where they are")


# In


async def import_snapshot(spec: VmSpec, key: str, stream: AsyncIterable[bytes], parts: EngineParts) -> VmRecord:
    """A suspended VM from a stream, whole and recorded, or nothing.

    Raises:
        ConflictError: `snapshot-foreign`, naming what differs; `has-volumes`.
        HostError: `snapshot-damaged`, `snapshot-version`.
        CapacityError: `disk-full`.
        PlasmaError: what else failed, with the reason.
    """
    _refuse_volumes(spec)
    reader = ParcelReader(stream)
    parcel = await reader.header()
    await _accept(parcel, spec, parts)
    async with AsyncExitStack() as claimed, AsyncExitStack() as undo:
        claimed.enter_context(parts.room.claim(parcel.content_bytes, await parts.storage.free_bytes()))
        await _ensure_image(parcel, spec, key, parts, undo)
        async with parts.snapshots.draft(key) as draft:
            await _receive_memory(parcel, reader, draft)
            await parts.storage.create(key, parcel.layer_bytes)
            undo.push_async_callback(parts.storage.delete, key)
            await _receive_disk(parcel, reader, key, parts)
            snapshot = msgspec.structs.replace(parcel.snapshot, vm_id=spec.id, origin=parcel.snapshot.vm_id)
            undo.push_async_callback(parts.snapshots.delete, key)
            await parts.snapshots.commit(draft, snapshot)
        parts.logs.begin(key, spec.scope)
        record = _record_of(spec, snapshot, parts)
        undo.callback(parts.records.delete, spec.id)  # it may have its name already where it is refused
        await parts.records.store(record)
        undo.pop_all()
    return record


async def _accept(parcel: Parcel, spec: VmSpec, parts: EngineParts) -> None:
    """The stream is of the same owner, and of a VM that this one could be, on a host like this one."""
    snapshot, scope = parcel.snapshot, spec.scope
    if (parcel.organization, parcel.project) != (scope.org, scope.project):
        raise ConflictError("snapshot-foreign", "the snapshot that was sent is another owner's")
    name = spec.backend or snapshot.backend
    backend = suspendable(parts.registry.select(replace(spec, backend=name), parts.images.kind_of(spec.image)))
    assets = parts.assets_of(snapshot.traits.get("kernel", ""), snapshot.traits.get("init", ""))
    traits = await traits_of(backend, spec, assets.kernel_hash, assets.initrd_hash)
    check(
        snapshot,
        vm_id=snapshot.vm_id,
        image=spec.image,
        backend=name,
        memory_bytes=spec.resources.memory_bytes,
        traits=traits,
    )
    if parcel.layer_bytes > disk_size(spec.resources.disk_bytes):
        raise ConflictError("snapshot-foreign", "the disk that was sent is larger than the VM's may be")


async def _ensure_image(parcel: Parcel, spec: VmSpec, key: str, parts: EngineParts, undo: AsyncExitStack) -> None:
    await parts.images.ensure(spec.image, parts.source)
    parts.images.hold(spec.image, key)
    undo.callback(parts.images.release, key)
    if parts.images.content_digest(spec.image) != parcel.rootfs:
        raise ConflictError(
            "snapshot-foreign", "the image was built differently where the snapshot was taken: image differs"
        )


async def _receive_memory(parcel: Parcel, reader: ParcelReader, draft: Draft) -> None:
    snapshot = parcel.snapshot
    await _fill(draft.state, snapshot.state, reader)
    set_size(draft.memory, snapshot.memory_bytes)
    await _fill(draft.memory, snapshot.memory or (), reader)


async def _receive_disk(parcel: Parcel, reader: ParcelReader, key: str, parts: EngineParts) -> None:
    """To the end of the stream; it is durable then, as the snapshot will be."""
    layer = await parts.storage.open(key)
    try:
        await _fill(layer, parcel.layer, reader)
        await reader.end()
        await parts.storage.make_durable(key)
    finally:
        os.close(layer)


async def _fill(target: int, pieces: Sequence[Piece], reader: ParcelReader) -> None:
    async for piece, packed in reader.pieces(pieces):
        await in_thread(_place, target, piece, packed)


def _place(target: int, piece: Piece, packed: bytes) -> None:
    write_piece(target, piece, unpack(packed, piece))


def _record_of(spec: VmSpec, snapshot: Manifest, parts: EngineParts) -> VmRecord:
    return VmRecord(
        spec,
        VmStatus(VmState.SUSPENDED, parts.clock(), backend=snapshot.backend),
        generation=snapshot.generation,
        kernel=snapshot.traits.get("kernel", ""),
        init=snapshot.traits.get("init", ""),
    )
