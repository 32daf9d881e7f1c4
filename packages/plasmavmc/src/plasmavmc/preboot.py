"""Boots a blank guest (`blanks`): one that stands for nobody, held before it heard whose it is to be."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

from plasmavmc.blanks import Blank, Shape
from plasmavmc.errors import GuestError, HostError
from plasmavmc.guest.api import GuestChannel, GuestHello
from plasmavmc.hypervisor.backend import DiskPlan, NicPlan, VmPlan
from plasmavmc.parts import EngineParts
from plasmavmc.quiesce import SuspendableBackend, standing_still, traits_of
from plasmavmc.snapshots.content import copy_out, new_memory
from plasmavmc.types import MIB, NetworkSpec, Scope, VmHandle, VmSpec, vm_key

_DISKS = 2
_DISK_BYTES = MIB
_NETWORK = "blank"
_SCOPE = Scope("system", "blank")


async def shape_of(spec: VmSpec, backend: SuspendableBackend, parts: EngineParts) -> Shape:
    """The shape of a VM."""
    traits = await traits_of(backend, spec, parts.assets.kernel_hash, parts.assets.initrd_hash)
    return Shape(backend.capabilities.name, spec.resources.memory_bytes, frozenset(traits.items()))


async def make_blank(spec: VmSpec, backend: SuspendableBackend, parts: EngineParts) -> Blank:
    """Boot a guest of the shape of this VM, hold it and keep it. The caller owns the result.

    Raises:
        PlasmaError: what failed, with the reason.
    """
    networks = tuple(NetworkSpec(f"nic-{secrets.token_hex(8)}", _NETWORK) for _ in spec.networks)
    own = VmSpec(
        id=f"vm_blank_{secrets.token_hex(8)}",
        scope=_SCOPE,
        name=_NETWORK,
        image=spec.image,
        resources=spec.resources,
        networks=networks,
        snapshot_safe=spec.snapshot_safe,  # a VM that may be copied has another set of devices
    )
    with ExitStack() as undo:
        memory = new_memory(spec.resources.memory_bytes)
        undo.callback(os.close, memory)
        state = os.memfd_create("swg-state", os.MFD_CLOEXEC)
        undo.callback(os.close, state)
        async with (
            parts.boot_slot(backend.capabilities.acceleration),
            _booted(own, backend, parts) as (handle, channel),
            standing_still(backend, handle, channel, parts, state) as shared,
        ):
            if shared is None:
                raise HostError("no-memory", "the memory of a guest that was just booted cannot be had")
            await copy_out(shared, memory)
        undo.pop_all()
    return Blank(memory, state)


@asynccontextmanager
async def _booted(
    spec: VmSpec, backend: SuspendableBackend, parts: EngineParts
) -> AsyncIterator[tuple[VmHandle, GuestChannel]]:
    """A guest that waits for its configuration; ended with the block."""
    key = vm_key(spec.id)
    runtime_dir = parts.runtime_dir(key)
    async with AsyncExitStack() as undo:
        disks = tuple(_nothing(f"disk{number}", read_only=number == 0, undo=undo) for number in range(_DISKS))
        nics: tuple[NicPlan, ...] = ()
        if spec.networks:
            await parts.network.make_room(spec.networks[0])
            attachment = await parts.network.setup_tap(key, spec.networks[0])
            undo.push_async_callback(parts.network.release, key)
            undo.callback(os.close, attachment.fd)
            nics = (NicPlan("n0", attachment.fd, attachment.lease.mac),)
        runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        undo.callback(shutil.rmtree, runtime_dir, ignore_errors=True)
        plan = VmPlan(key, runtime_dir, parts.assets.kernel, parts.assets.initrd, disks, nics)
        handle = await backend.create_vm(spec, plan)
        undo.push_async_callback(backend.delete_vm, handle)
        undo.push_async_callback(backend.stop_vm, handle)
        channel = await backend.start_vm(handle)
        undo.push_async_callback(channel.aclose)
        await _asked_for_configuration(channel)
        yield handle, channel


def _nothing(name: str, *, read_only: bool, undo: AsyncExitStack) -> DiskPlan:
    """A disk in the place of another; what it holds is never read, and its size is forgotten."""
    file = os.memfd_create(name, os.MFD_CLOEXEC)
    undo.callback(os.close, file)
    os.ftruncate(file, _DISK_BYTES)
    if not read_only:
        return DiskPlan(name, file, read_only)
    descriptor = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)  # QEMU takes no other for such a disk
    undo.callback(os.close, descriptor)
    return DiskPlan(name, descriptor, read_only)


async def _asked_for_configuration(channel: GuestChannel) -> None:
    async for event in channel.events():
        if isinstance(event, GuestHello) and not event.configured:
            return
    raise GuestError("guest-channel", "the guest closed its channel while it was starting")
