"""A running VM to disk, and back from there.

Theory. To suspend: the guest holds its workload with nothing unwritten, its vCPUs stop, the devices' state and the
memory are copied with a digest of each piece, the writable layer is brought to the host's disk, and the snapshot is named:
that is the moment at which the VM is suspended and no longer running. Whatever fails or is cancelled before lets the guest
go on, with the right time; nothing is left. Afterwards the VMM is ended and gives back what the host lent; the writable
layer stays, for it is the snapshot's disk, and after a power cut it must be the one that the memory knows.

That the guest has nothing unwritten says nothing of the host's cache: Firecracker passes no flush on. QEMU flushes all
disks when it stops the vCPUs for good, volumes too, and does not save the state of a guest for which it could not; only
its VMs have volumes.

To resume: the manifest is held against this host, memory and state are verified as they are copied, and `restoring`
does the rest. Nothing that is not what was written, or was taken elsewhere, is ever loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from plasmavmc.booting import Booted, BootReport
from plasmavmc.guest.api import GuestChannel
from plasmavmc.hypervisor.backend import MemoryPlan
from plasmavmc.parts import EngineParts
from plasmavmc.quiesce import standing_still, suspendable, traits_of
from plasmavmc.records import VmRecord
from plasmavmc.restoring import Origin, Restore
from plasmavmc.snapshots.content import copy_in, copy_out, digest, new_memory
from plasmavmc.snapshots.files import Stored
from plasmavmc.snapshots.manifest import VERSION, Manifest, check


async def take_snapshot(record: VmRecord, key: str, channel: GuestChannel, parts: EngineParts) -> None:
    """Suspend: returns when the snapshot counts, and the VM stands still for good; else raises, and it goes on.

    Raises:
        CapacityError: `disk-full`; told before, the VM has not stood still for it.
        PlasmaError: what failed, with the reason.
    """
    spec, handle = record.spec, record.handle
    assert handle is not None  # noqa: S101 - it runs
    backend = suspendable(parts.registry.get(handle.backend))
    assets = parts.assets
    booted = (record.kernel, record.init) if record.kernel else (assets.kernel_hash, assets.initrd_hash)
    traits = await traits_of(backend, spec, *booted)
    wanted, free = await backend.state_bytes(spec, handle), await parts.storage.free_bytes()
    with parts.room.claim(wanted, free):
        await parts.records.settled(spec.id)  # an engine that finds a guest held must find that it is to let it go on
        async with (
            parts.snapshots.draft(key) as draft,
            standing_still(backend, handle, channel, parts, draft.state) as memory,
        ):
            manifest = Manifest(
                version=VERSION,
                vm_id=spec.id,
                image=spec.image,
                backend=handle.backend,
                memory_bytes=spec.resources.memory_bytes,
                generation=record.generation,
                created=parts.clock(),
                traits=traits,
                state=await digest(draft.state),
                memory=None if memory is None else await copy_out(memory, draft.memory),
            )
            await parts.storage.make_durable(key)
            await parts.records.settled(spec.id)  # whoever finds the snapshot after a power cut must find the VM too
            await parts.snapshots.commit(draft, manifest)


async def resume(
    record: VmRecord, key: str, parts: EngineParts, report: BootReport, commit: Callable[[], None]
) -> Booted:
    """Run a suspended VM again from its snapshot. `commit` is called when all is ready: whoever cancels from then on loses
    what the VM was.

    Raises:
        HostError: `snapshot-missing`, `snapshot-damaged`, `snapshot-version`.
        ConflictError: `snapshot-foreign`.
        PlasmaError: what else failed, with the reason.
    """
    spec = record.spec
    with ExitStack() as stack:
        stored = stack.enter_context(parts.snapshots.open(key))
        manifest = stored.manifest
        backend = suspendable(parts.registry.get(record.status.backend))
        assets = parts.assets_of(manifest.traits.get("kernel", ""), manifest.traits.get("init", ""))
        traits = await traits_of(backend, spec, assets.kernel_hash, assets.initrd_hash)
        size = spec.resources.memory_bytes
        check(
            manifest, vm_id=spec.id, image=spec.image, backend=record.status.backend, memory_bytes=size, traits=traits
        )
        memory, state = new_memory(size), os.memfd_create("swg-state", os.MFD_CLOEXEC)
        stack.callback(os.close, memory)
        stack.callback(os.close, state)
        origin = Origin(
            backend=backend,
            assets=assets,
            memory=MemoryPlan(memory, filled=manifest.memory is not None),
            state=state,
            content=lambda: _content(stored, memory, state),
            generation=manifest.generation + 1,
            ipv4=record.ipv4,
            renamed=bool(manifest.origin),
            point_of_no_return=lambda: _use(spec.id, key, parts, commit),
        )
        return await Restore(spec, key, parts, report, origin).run()


async def _use(vm_id: str, key: str, parts: EngineParts, commit: Callable[[], None]) -> None:
    """The snapshot counts no more. By the record alone the next engine finds the process from here on."""
    await parts.records.settled(vm_id)
    commit()
    await parts.snapshots.use(key)


async def _content(stored: Stored, memory: int, state: int) -> None:
    manifest = stored.manifest
    await copy_in(stored.state, manifest.state, state)
    await copy_in(stored.memory, manifest.memory or (), memory)
