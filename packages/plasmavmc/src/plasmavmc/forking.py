"""Copies of a running VM.

Theory. A template is what the VM was at one moment: its devices' state, its memory and its writable layer, all copied
while it stood still; then it goes on. Every copy begins with the template's memory and writes to pages of its own, so
what copies do not change they share. A copy has its own disk, address, MAC, name, machine id, time and entropy, and
learns them before anything of the user's runs (`restoring`). The template is closed when every copy has begun to run:
its memory then lives as long as a VMM that uses it, and its disk is gone.

Environment, files and memory of the origin, with whatever secrets are in them, are every copy's too. That, and values
which a program drew from its own generator before, is why a VM is forked only where its specification says that this
is safe.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from plasmavmc.backends import BackendCapabilities
from plasmavmc.booting import Booted, BootReport
from plasmavmc.errors import ConflictError
from plasmavmc.guest.api import GuestChannel
from plasmavmc.guest.boot import BootAssets
from plasmavmc.hypervisor.backend import MemoryPlan
from plasmavmc.parts import EngineParts
from plasmavmc.quiesce import SuspendableBackend, go_on, standing_still, suspendable
from plasmavmc.records import VmRecord
from plasmavmc.restoring import Origin, Restore
from plasmavmc.snapshots.content import copy_out, new_memory, seal
from plasmavmc.types import ForkIdentity, VmSpec


def copy_of(spec: VmSpec, identity: ForkIdentity) -> VmSpec:
    """The specification of a copy: the origin's, with its own names and its own place in the network. It publishes no ports:
    one of the host leads to one VM, and those stay the origin's."""
    networks = tuple(
        replace(network, id=f"{network.id}-{identity.vm_id}", mac="", ipv4=None) for network in spec.networks
    )
    return replace(
        spec,
        id=identity.vm_id,
        name=identity.name,
        hostname=identity.hostname or identity.name,
        networks=networks,
        published=(),
    )


def check_forkable(spec: VmSpec, capabilities: BackendCapabilities) -> None:
    """Accept a VM as one that may be copied.

    Raises:
        ConflictError: `not-snapshot-safe`, `cannot-fork`, `has-volumes`.
    """
    if not spec.snapshot_safe:
        raise ConflictError(
            "not-snapshot-safe",
            f"VM {spec.id} is not declared to be safe to copy",
            resolution="Copies share all that the program remembers, random values too. Declare snapshot_safe if it may.",
        )
    if not capabilities.fork:
        raise ConflictError("cannot-fork", f"the backend {capabilities.name} cannot copy running VMs")
    if any(not volume.read_only for volume in spec.volumes):
        raise ConflictError("has-volumes", f"VM {spec.id} has a volume that two VMs cannot write to")


@dataclass(slots=True)
class Template:
    """What copies are made from. A copy that has begun to run does not need it any more."""

    backend: SuspendableBackend
    assets: BootAssets
    """What the origin booted from."""
    memory: int
    state: int
    layer: str
    generation: int
    _closing: AsyncExitStack

    async def aclose(self) -> None:
        """Give it back. Its memory lives on in the copies."""
        await self._closing.aclose()

    async def copy(self, spec: VmSpec, key: str, parts: EngineParts, report: BootReport) -> Booted:
        """Run a copy.

        Raises:
            PlasmaError: what failed, with the reason.
        """
        origin = Origin(
            backend=self.backend,
            assets=self.assets,
            memory=MemoryPlan(self.memory, own=False),
            state=self.state,
            content=_nothing,
            generation=self.generation,
            layer=self.layer,
        )
        return await Restore(spec, key, parts, report, origin).run()


async def take_template(record: VmRecord, key: str, channel: GuestChannel, parts: EngineParts) -> Template:
    """Copy a VM as it stands, and let it go on. The caller closes the template.

    Raises:
        ConflictError: `copy-of-copy`, it is a copy itself and has no memory of its own.
        PlasmaError: what failed, with the reason; the VM goes on.
    """
    handle = record.handle
    assert handle is not None  # noqa: S101 - it runs
    backend = suspendable(parts.registry.get(handle.backend))
    async with AsyncExitStack() as undo:
        memory = new_memory(record.spec.resources.memory_bytes)
        undo.callback(os.close, memory)
        state = os.memfd_create("swg-state", os.MFD_CLOEXEC)
        undo.callback(os.close, state)
        layer = f"{key}-template"
        async with standing_still(backend, handle, channel, parts, state) as shared:
            if shared is None:
                raise ConflictError(
                    "copy-of-copy",
                    f"VM {record.spec.id} is a copy, and cannot be copied as it is",
                    resolution="Suspend and resume it first; then it has its own memory.",
                )
            undo.push_async_callback(parts.storage.delete, layer)
            await parts.storage.copy(key, layer)
            await copy_out(shared, memory)
            seal(memory)  # its copies' VMMs have it in their hands, and each may be taken over by its guest
        await go_on(backend, handle, channel, parts)
        assets = parts.assets_of(record.kernel, record.init)
        return Template(backend, assets, memory, state, layer, record.generation + 1, undo.pop_all())


async def _nothing() -> None:
    return
