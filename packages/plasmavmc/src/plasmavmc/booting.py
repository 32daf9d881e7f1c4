"""One VM's way from a specification to a running workload: image, disks, network, VMM, guest.

Theory. Host work goes onto an undo stack, which is thrown away when the workload runs and unwound when anything fails
before: a failed or cancelled boot leaves no disk, address, process, cgroup or socket. Descriptors are the manager's only
until the guest runs; the VMM has its own by then.

What takes long is done side by side: disks and tap; the firewall's rules and the VMM's coming up. A VMM runs no guest
before `start_vm`, and that is called when the rules are in force.

Where the engine has a blank guest of the right shape (`blanks`), the VM begins as a copy of it instead of booting a kernel;
from the guest's question for its configuration on there is no difference. A copy that does not come up is a boot after all.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from plasmavmc.backends import GuestKind
from plasmavmc.blanks import BlankCopy
from plasmavmc.errors import GuestError, InvalidSpecError, PlasmaError, WorkloadError
from plasmavmc.guest.api import (
    AttachableChannel,
    GuestChannel,
    GuestConfig,
    GuestEvent,
    GuestFailed,
    GuestHello,
    GuestReady,
)
from plasmavmc.guest.boot import BootAssets
from plasmavmc.guest.configuration import guest_config
from plasmavmc.hypervisor.backend import DiskPlan, HypervisorBackend, MemoryPlan, NicPlan, VmmExit, VmmLeftError, VmPlan
from plasmavmc.images.source import ImageConfig
from plasmavmc.images.store import BuiltImage
from plasmavmc.network.backend import Attachment
from plasmavmc.parts import EngineParts
from plasmavmc.preboot import make_blank, shape_of
from plasmavmc.quiesce import SuspendableBackend, can_suspend, plain_card
from plasmavmc.types import Lease, NetworkSpec, Stdio, TerminalSize, VmHandle, VmSpec

BOOT_DEADLINE_S = 90.0
"""From the guest's first word to the workload's start. Emulated CPUs on a busy host are slow; a hang must be found."""
_COMPLAINT_LINES = 5

log = structlog.get_logger("plasmavmc.booting")


def service_port(spec: VmSpec, image: ImageConfig) -> int | None:
    """The port that a WebAssembly module answers requests on, by its `PORT` or by what is published; None: it is a command.

    Raises:
        InvalidSpecError: `PORT` is none, or another one is published: it has one only.
    """
    given = {**image.env, **spec.env}.get("PORT")
    if given is not None and not (given.isascii() and given.isdigit() and 1 <= int(given[:6]) <= 65535):
        raise InvalidSpecError("env.PORT", "a port is a number from 1 to 65535")
    ports = ({int(given)} if given is not None else set()) | {port.guest_port for port in spec.published}
    if len(ports) > 1:
        raise InvalidSpecError(
            "published",
            f"a WebAssembly module answers on one port, and {', '.join(map(str, sorted(ports)))} are asked for",
            resolution="Publish the one of its PORT.",
        )
    return next(iter(ports), None)


class BootReport(Protocol):
    """Told as the boot goes on."""

    def step(self, name: str) -> None:
        """What is done now: `image`, `disks` (and network), `boot`."""

    def attached(self, lease: Lease) -> None:
        """The VM has these addresses."""

    def spawning(self) -> None:
        """The VMM is about to be started."""

    def spawned(self, handle: VmHandle, assets: BootAssets) -> None:
        """The VMM exists, with this to boot from; from here on it can be found again."""

    def console(self, lines: tuple[str, ...]) -> None:
        """The guest's console, where the boot failed."""

    def held(self, network: NetworkSpec) -> NetworkSpec:
        """Its interface with what it may open and what may be opened to it, as of now: that may have changed since the start
        was ordered."""

    @property
    def terminal_size(self) -> TerminalSize:
        """Of whoever is attached already."""

    async def heard(self, event: GuestEvent) -> None:
        """The guest said something that is not of the boot itself."""


@dataclass(frozen=True, slots=True)
class Booted:
    """A VM whose workload runs."""

    handle: VmHandle
    channel: GuestChannel
    events: AsyncIterator[GuestEvent]


def nic_plan(attachment: Attachment) -> NicPlan:
    """A VM's one interface, for its VMM."""
    return NicPlan("n0", attachment.fd, attachment.lease.mac, attachment.tap)


class Boot:
    """One boot. `run` it once."""

    def __init__(self, spec: VmSpec, key: str, parts: EngineParts, report: BootReport) -> None:
        self._spec = spec
        self._key = key
        self._parts = parts
        self._report = report

    async def run(self) -> Booted:
        """All of it; cancelled or failed it undoes what it did.

        Raises:
            PlasmaError: what failed, with the reason.
        """
        parts = self._parts
        self._report.step("image")
        with ExitStack() as descriptors:
            async with AsyncExitStack() as undo:
                image = await parts.images.ensure(self._spec.image, parts.source)
                parts.images.hold(self._spec.image, self._key)
                undo.callback(parts.images.release, self._key)
                backend = parts.registry.select(self._spec, image.kind)
                self._report.step("disks")
                port = None
                if image.kind is GuestKind.WASM:
                    port = service_port(self._spec, image.config)
                    disks, attachment = self._module(image, descriptors), None
                else:
                    disks, attachment = await self._prepare(backend, image.rootfs, undo, descriptors)
                self._report.step("boot")
                plan = self._plan(backend, disks, attachment, port)
                async with parts.boot_slot(backend.capabilities.acceleration):
                    booted = await self._begun(backend, plan, attachment, undo)
                    await self._await_ready(backend, booted, image.config, attachment)
                undo.pop_all()
        return booted

    def _module(self, image: BuiltImage, descriptors: ExitStack) -> tuple[DiskPlan, ...]:
        """What a WebAssembly module gets: itself. It has no interface, and its files lie in its worker's memory."""
        module = os.open(image.rootfs, os.O_RDONLY | os.O_CLOEXEC)
        descriptors.callback(os.close, module)
        return (DiskPlan("image", module, read_only=True),)

    async def _prepare(
        self, backend: HypervisorBackend, rootfs: Path, undo: AsyncExitStack, descriptors: ExitStack
    ) -> tuple[tuple[DiskPlan, ...], Attachment | None]:
        """Disks and network side by side: neither needs the other, and a cold start waits for both."""
        disks = asyncio.create_task(self._disks(rootfs, undo, descriptors))
        try:
            attachment = await self._attach(backend, undo, descriptors)
            return await disks, attachment
        finally:
            disks.cancel()
            await asyncio.wait([disks])

    async def _disks(self, rootfs: Path, undo: AsyncExitStack, descriptors: ExitStack) -> tuple[DiskPlan, ...]:
        storage, volumes = self._parts.storage, self._parts.volumes
        volumes.holdings.hold(self._spec.id, self._spec.volumes)
        undo.callback(volumes.holdings.release, self._spec.id)
        template = await self._parts.disk_template(self._spec.resources.disk_bytes)
        await storage.clone(template, self._key)
        undo.push_async_callback(storage.delete, self._key)
        layer = await storage.open(self._key)
        descriptors.callback(os.close, layer)
        root = os.open(rootfs, os.O_RDONLY | os.O_CLOEXEC)
        descriptors.callback(os.close, root)
        limit = self._spec.resources.disk_limit
        own = (DiskPlan("image", root, True, limit), DiskPlan("layer", layer, False, limit))
        return own + await volumes.attach(self._spec.volumes, descriptors)

    async def _attach(
        self, backend: HypervisorBackend, undo: AsyncExitStack, descriptors: ExitStack
    ) -> Attachment | None:
        if not self._spec.networks:
            return None
        opened, network = not backend.capabilities.opens_taps, self._parts.network
        await network.make_room(self._spec.networks[0])
        wanted = self._report.held(self._spec.networks[0])  # a change while room was made found no VM on the network
        attachment = await network.setup_tap(self._key, wanted, opened=opened)
        undo.push_async_callback(network.release, self._key)
        if opened:
            descriptors.callback(os.close, attachment.fd)
        self._report.attached(attachment.lease)
        return attachment

    def _plan(
        self,
        backend: HypervisorBackend,
        disks: tuple[DiskPlan, ...],
        attachment: Attachment | None,
        port: int | None,
    ) -> VmPlan:
        nics = () if attachment is None else (nic_plan(attachment),)
        assets, runtime_dir = self._parts.assets, self._parts.runtime_dir(self._key)
        initrd = assets.initrd_for(backend.capabilities.channel)
        return VmPlan(self._key, runtime_dir, assets.kernel, initrd, disks, nics, service_port=port)

    async def _begun(
        self, backend: HypervisorBackend, plan: VmPlan, attachment: Attachment | None, undo: AsyncExitStack
    ) -> Booted:
        """A guest that asks for its configuration: copied where there is one like it, else booted."""
        spec, parts, blanks = self._spec, self._parts, self._parts.blanks
        if not blanks.wanted or not can_suspend(backend) or spec.volumes:
            return await self._spawn(backend, plan, attachment, undo)
        shape = await shape_of(spec, backend, parts)
        if blank := blanks.find(shape):
            try:
                return await self._copied(backend, blank.copy(), plan, attachment, undo)
            except PlasmaError as error:
                log.warning("blank.not_taken", vm=spec.id, reason=str(error))
                blanks.drop(shape)
        booted = await self._spawn(backend, plan, attachment, undo)
        blanks.want(shape, lambda: make_blank(spec, backend, parts))
        return booted

    async def _spawn(
        self, backend: HypervisorBackend, plan: VmPlan, attachment: Attachment | None, undo: AsyncExitStack
    ) -> Booted:
        handle = await self._create(backend, plan, attachment, undo)
        return self._joined(handle, await backend.start_vm(handle), undo)

    async def _copied(
        self,
        backend: SuspendableBackend,
        origin: BlankCopy,
        plan: VmPlan,
        attachment: Attachment | None,
        undo: AsyncExitStack,
    ) -> Booted:
        """As `_spawn`; a failure undoes all of it, so that the VM may be booted after all."""
        async with AsyncExitStack() as ours, origin:
            plan = replace(plan, memory=MemoryPlan(origin.memory))
            handle = await self._create(backend, plan, attachment, ours)
            await origin.filled()
            await backend.load_state(handle, origin.state)
            channel = await backend.wake_vm(handle, plain_card(self._parts))
            booted = self._joined(handle, channel, ours)
            undo.push_async_exit(ours.pop_all().__aexit__)
        return booted

    async def _create(
        self, backend: HypervisorBackend, plan: VmPlan, attachment: Attachment | None, undo: AsyncExitStack
    ) -> VmHandle:
        plan.runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        undo.callback(shutil.rmtree, plan.runtime_dir, ignore_errors=True)
        self._report.spawning()
        await self._parts.fences.arm(self._key, self._spec.volumes)
        undo.push_async_callback(self._parts.fences.lift, self._key)
        try:
            handle = await backend.create_vm(self._spec, plan)
        except VmmLeftError as left:
            self._report.spawned(left.handle, self._parts.assets)
            raise
        undo.push_async_callback(backend.delete_vm, handle)
        undo.push_async_callback(backend.stop_vm, handle)
        self._report.spawned(handle, self._parts.assets)
        if attachment is not None:
            await self._parts.network.admit(self._key)
        return handle

    def _joined(self, handle: VmHandle, channel: GuestChannel, undo: AsyncExitStack) -> Booted:
        undo.push_async_callback(channel.aclose)
        if self._spec.stdio is not Stdio.LOGGED and not isinstance(channel, AttachableChannel):
            raise InvalidSpecError(
                "stdio",
                f"the backend {handle.backend} lets nobody attach",
                resolution="Use another, or run it detached.",
            )
        return Booted(handle, channel, channel.events())

    async def _await_ready(
        self, backend: HypervisorBackend, booted: Booted, image: ImageConfig, attachment: Attachment | None
    ) -> None:
        lease = None if attachment is None else attachment.lease
        ready = asyncio.create_task(self._converse(booted, image, lease))
        died = asyncio.create_task(backend.wait_vm(booted.handle))
        try:
            await asyncio.wait({ready, died}, timeout=BOOT_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                return
            timed_out = not died.done()
            if timed_out:
                await backend.stop_vm(booted.handle)
            raise self._error(await died, timed_out=timed_out)
        finally:
            ready.cancel()
            died.cancel()

    async def _converse(self, booted: Booted, image: ImageConfig, lease: Lease | None) -> None:
        """Hear the guest's init, tell it what to run, and hear that it runs."""
        async for event in booted.events:
            match event:
                case GuestHello(configured=False):
                    await booted.channel.configure(self._configuration(image, lease))
                case GuestReady():
                    return
                case GuestFailed(code, message):
                    raise WorkloadError(code, f"the workload could not be started: {message}")
                case _:
                    await self._report.heard(event)
        raise GuestError("guest-channel", "the guest closed its channel while it was starting")

    def _configuration(self, image: ImageConfig, lease: Lease | None) -> GuestConfig:
        return guest_config(
            self._spec,
            image,
            lease=lease,
            nameservers=self._parts.nameservers,
            entropy=self._parts.entropy(64),
            unix_time_ns=int(self._parts.clock() * 1e9),
            terminal_size=self._report.terminal_size,
        )

    def _error(self, ended: VmmExit, *, timed_out: bool) -> GuestError:
        self._report.console(ended.console)
        details = ended.complaint or "\n".join(ended.console[-_COMPLAINT_LINES:])
        if timed_out:
            brief = f"the guest did not start its workload within {BOOT_DEADLINE_S:.0f} s"
            return GuestError("boot-timeout", brief, details=details)
        return GuestError("boot-failed", "the VMM ended while the guest was starting", details=details)
