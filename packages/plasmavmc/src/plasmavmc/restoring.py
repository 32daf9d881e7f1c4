"""From a guest's saved state to a running VM: what resuming a VM and making a copy of one have in common.

Theory. As in a boot, host work goes onto an undo stack. The guest stands still in what is loaded; it is let run only
when everything of its new life is there, and finds in its port what it must know before anything of the user's runs:
the time, fresh entropy, and for a copy who it is. From that moment on a resumed VM's snapshot does not count any more,
for its disk goes its own way: so a failure before leaves it suspended, and a failure after ends it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from plasmavmc.booting import Booted, BootReport, nic_plan
from plasmavmc.errors import ConflictError
from plasmavmc.guest.api import GuestCard, GuestNetwork
from plasmavmc.guest.boot import BootAssets
from plasmavmc.hypervisor.backend import DiskPlan, MemoryPlan, VmmLeftError, VmPlan
from plasmavmc.network.backend import Attachment
from plasmavmc.parts import EngineParts
from plasmavmc.quiesce import SuspendableBackend, plain_card
from plasmavmc.types import NetworkSpec, VmHandle, VmSpec

MACHINE_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Origin:
    """What a VM is restored from."""

    backend: SuspendableBackend
    assets: BootAssets
    """What the guest booted from once."""
    memory: MemoryPlan
    state: int
    content: Callable[[], Awaitable[None]]
    """Fills memory and state; done beside the rest."""
    generation: int
    """How often it was restored, this time counted."""
    ipv4: IPv4Address | None = None
    """The address that the guest believes to have; None for a copy, which gets its own."""
    layer: str = ""
    """The disk that its own is a copy of; empty: its own is there."""
    renamed: bool = False
    """Its own disk is there, but the memory was another VM's."""
    point_of_no_return: Callable[[], Awaitable[None]] | None = None
    """Called when all is ready, before the guest runs."""

    @property
    def is_copy(self) -> bool:
        return bool(self.layer)


class Restore:
    """One restore. `run` it once."""

    def __init__(self, spec: VmSpec, key: str, parts: EngineParts, report: BootReport, origin: Origin) -> None:
        self._spec = spec
        self._key = key
        self._parts = parts
        self._report = report
        self._origin = origin

    async def run(self) -> Booted:
        """All of it; cancelled or failed it undoes what it did.

        Raises:
            PlasmaError: what failed, with the reason.
        """
        origin = self._origin
        content = asyncio.create_task(_settled(origin.content))
        with ExitStack() as descriptors:
            async with AsyncExitStack() as undo:
                undo.push_async_callback(_end, content)
                disks = await self._disks(undo, descriptors)
                attachment = await self._attach(undo, descriptors)
                self._report.spawning()
                handle = await self._create(disks, attachment, undo)
                self._report.spawned(handle, origin.assets)
                if attachment is not None:
                    await self._parts.network.admit(self._key)
                await content
                await origin.backend.load_state(handle, origin.state)
                if origin.point_of_no_return is not None:
                    await origin.point_of_no_return()
                channel = await origin.backend.wake_vm(handle, self._card(attachment))
                undo.pop_all()
        return Booted(handle, channel, channel.events())

    async def _disks(self, undo: AsyncExitStack, descriptors: ExitStack) -> tuple[DiskPlan, ...]:
        parts = self._parts
        image = await parts.images.ensure(self._spec.image, parts.source)
        if self._origin.is_copy:
            parts.images.hold(self._spec.image, self._key)
            undo.callback(parts.images.release, self._key)
            await parts.storage.copy(self._origin.layer, self._key)
            undo.push_async_callback(parts.storage.delete, self._key)
        parts.volumes.holdings.hold(self._spec.id, self._spec.volumes)
        if self._origin.is_copy:
            undo.callback(parts.volumes.holdings.release, self._spec.id)
        layer = await parts.storage.open(self._key)
        descriptors.callback(os.close, layer)
        root = os.open(image.rootfs, os.O_RDONLY | os.O_CLOEXEC)
        descriptors.callback(os.close, root)
        limit = self._spec.resources.disk_limit
        own = (DiskPlan("image", root, True, limit), DiskPlan("layer", layer, False, limit))
        return own + await parts.volumes.attach(self._spec.volumes, descriptors)

    async def _attach(self, undo: AsyncExitStack, descriptors: ExitStack) -> Attachment | None:
        """The address that it had, or any where that one is another's now."""
        if not self._spec.networks:
            return None
        wanted = self._spec.networks[0]
        opened = not self._origin.backend.capabilities.opens_taps
        try:
            attachment = await self._seated(replace(wanted, ipv4=wanted.ipv4 or self._origin.ipv4), opened=opened)
        except ConflictError as error:
            if error.code != "address-conflict" or wanted.ipv4 is not None:
                raise
            attachment = await self._seated(wanted, opened=opened)
        undo.push_async_callback(self._parts.network.release, self._key)
        if opened:
            descriptors.callback(os.close, attachment.fd)
        self._report.attached(attachment.lease)
        return attachment

    async def _seated(self, wanted: NetworkSpec, *, opened: bool) -> Attachment:
        network = self._parts.network
        await network.make_room(wanted)
        held = self._report.held(wanted)  # a change while room was made found no VM on the network
        return await network.setup_tap(self._key, held, opened=opened)

    async def _create(
        self, disks: tuple[DiskPlan, ...], attachment: Attachment | None, undo: AsyncExitStack
    ) -> VmHandle:
        runtime_dir, backend = self._parts.runtime_dir(self._key), self._origin.backend
        runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        undo.callback(shutil.rmtree, runtime_dir, ignore_errors=True)
        nics = () if attachment is None else (nic_plan(attachment),)
        assets = self._origin.assets
        initrd = assets.initrd_for(backend.capabilities.channel)
        plan = VmPlan(self._key, runtime_dir, assets.kernel, initrd, disks, nics, self._origin.memory)
        await self._parts.fences.arm(self._key, self._spec.volumes)
        undo.push_async_callback(self._parts.fences.lift, self._key)
        try:
            handle = await backend.create_vm(self._spec, plan)
        except VmmLeftError as left:
            self._report.spawned(left.handle, self._origin.assets)
            raise
        undo.push_async_callback(backend.delete_vm, handle)
        undo.push_async_callback(backend.stop_vm, handle)
        return handle

    def _card(self, attachment: Attachment | None) -> GuestCard:
        """What the guest is told. Its place in the network always, even where that is the old one: the bridge may have
        another MAC by now, and a neighbour that it remembers wrongly would cost it half a minute."""
        renamed = self._origin.is_copy or self._origin.renamed
        card = plain_card(self._parts, self._origin.generation)
        lease = None if attachment is None else attachment.lease
        if lease is not None:
            card = replace(card, network=GuestNetwork.of(lease, self._parts.nameservers))
        if renamed or (lease is not None and lease.ipv4 != self._origin.ipv4):
            card = replace(card, hostname=self._spec.hostname or self._spec.name)
        if renamed:
            card = replace(card, machine_id=self._parts.entropy(MACHINE_ID_BYTES))
        return card


async def _settled(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # told where it was awaited, or of less weight than what failed first
