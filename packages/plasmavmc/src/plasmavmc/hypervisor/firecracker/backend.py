"""Backend `firecracker`: one Firecracker a VM, in a jail that the root helper makes.

Theory. Firecracker takes paths, so the helper gives each VM a root directory with further names of its files, and starts
the jailer there; we see nothing of it but the directory with its sockets. `create_vm` spawns the VMM and tells it all that
makes the VM; `start_vm` lets it run and returns when the guest's init has said hello over the vsock. From there the VM is a
process to watch, as with QEMU; it is found again after a restart by number and start time, and its sockets by its key.

There is no way to ask Firecracker to end (SIGTERM would end it as SIGKILL does, and Ctrl-Alt-Del asks the guest, whose init
was asked before): `stop_vm` kills it. What it wrote is in the host's page cache and not lost. A reset of the guest, which is
how its init switches off, ends it with 0.

Its tap it opens by name, in the network namespace that the helper makes for its jail.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Protocol

from plasmavmc.backends import Acceleration, BackendCapabilities, Isolation
from plasmavmc.errors import ConflictError, GuestError, HostError, UnavailableError
from plasmavmc.guest.api import GuestCard, GuestChannel
from plasmavmc.guest.channel import Connect
from plasmavmc.guest.opening import open_channel_over, wake_channel_over
from plasmavmc.host.configuration import FIRECRACKER
from plasmavmc.host.operations import Host, Jails, TapRequest, UnendedError
from plasmavmc.host.threads import in_thread
from plasmavmc.hypervisor.backend import VmmExit, VmmLeftError, VmPlan
from plasmavmc.hypervisor.bootfiles import open_boot_files
from plasmavmc.hypervisor.firecracker import memory as files
from plasmavmc.hypervisor.firecracker.client import Phase
from plasmavmc.hypervisor.firecracker.requests import (
    CHANNEL_PORT,
    SOCKET_DIRECTORY,
    boot_requests,
    drive_id,
    pause_request,
    resume_request,
    start_request,
)
from plasmavmc.hypervisor.firecracker.snapshots import keep, load
from plasmavmc.hypervisor.firecracker.sockets import JailSockets
from plasmavmc.hypervisor.firecracker.traits import traits_of
from plasmavmc.hypervisor.firecracker.vm import JailedVm
from plasmavmc.hypervisor.held import HeldVms
from plasmavmc.hypervisor.limits import limits_of
from plasmavmc.hypervisor.process import VmmProcess, process_of, usage_of
from plasmavmc.storage.sparse import sparse_copy
from plasmavmc.types import GIB, MIB, OWN_DISKS, VmHandle, VmSpec, VmUsage, vm_key

NAME = "firecracker"
HELLO_DEADLINE_S = 30.0
"""From the first instruction to the guest's hello, on KVM."""
WAKE_DEADLINE_S = 8.0
"""From a restored guest's first instruction to its word that it goes on as its card says. Less than the 10 s after which
its init, were nobody to come, would let it go on as what it was."""
RECOVER_DEADLINE_S = 30.0
"""For the API, and for the guest, of a VM to adopt."""
_CHANNEL = f"port {CHANNEL_PORT} of the VM's vsock"
LATER_S = 1.0
"""By so much the channel's deadline is later than the vsock's, which says more of what it met."""
CAPABILITIES = BackendCapabilities(
    name=NAME,
    acceleration=Acceleration.KVM,
    isolation=Isolation.HARDWARE_VM,
    max_vcpus=32,
    max_memory_bytes=256 * GIB,
    max_disks=OWN_DISKS,
    max_nics=1,
    pause=True,
    suspend=True,
    fork=True,
    channel="vsock",
    rate_limits=True,
    opens_taps=True,
)
"""No volumes: it opens none that is sealed, and its file systems could not follow one that grows."""


class VsockOpener(Protocol):
    """Attaches to a guest's channel: `guest.opening.open_channel_over`."""

    async def __call__(
        self, connect: Connect, where: str, *, fresh: bool, deadline_s: float, renewable: bool
    ) -> GuestChannel: ...


class FirecrackerBackend:
    """Firecracker on this host, in jails."""

    def __init__(
        self,
        host: Host,
        jails: Jails,
        *,
        program: Path = Path(FIRECRACKER),
        channel: VsockOpener = open_channel_over,
        recover_deadline_s: float = RECOVER_DEADLINE_S,
    ) -> None:
        self._host = host
        self._jails = jails
        self._program = program
        self._open_channel = channel
        self._recover_deadline_s = recover_deadline_s
        self._vms: HeldVms[JailedVm] = HeldVms()

    @property
    def capabilities(self) -> BackendCapabilities:
        return CAPABILITIES

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        """Spawn the VMM and tell it all that makes the VM.

        Raises:
            HostError: `vmm-refused`, Firecracker or the jailer ended, with what it said; `firecracker-refused`;
                `firecracker-version`; what the host says.
        """
        self._vms.check_new(spec.id)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._host.uid_free, plan.key)
            await self._host.uid_take(plan.key)
            undo.push_async_callback(self._jails.jail_remove, plan.key)
            sockets = JailSockets(await self._prepare(plan))
            undo.callback(sockets.close)
            try:
                vm, state = await self._begin(spec, plan, sockets)
            except UnendedError as left:
                undo.pop_all()
                sockets.close()
                raise VmmLeftError(spec, NAME, plan, left) from left
            undo.pop_all()
        self._vms[spec.id] = vm
        return VmHandle(spec.id, NAME, str(plan.runtime_dir), vm.process.id.pid, vm.process.id.start_time, state)

    async def _begin(self, spec: VmSpec, plan: VmPlan, sockets: JailSockets) -> tuple[JailedVm, Mapping[str, str]]:
        """A VMM in the VM's jail that knows all, and the state of its handle."""
        taps = [TapRequest(nic.tap, nic.mac) for nic in plan.nics]
        spawned = await self._jails.jail_spawn(plan.key, limits_of(spec.resources), *taps[:1])
        process = VmmProcess.spawned(self._host, plan.key, spawned)
        async with AsyncExitStack() as undo:
            undo.callback(process.close)
            undo.push_async_callback(process.kill)
            vm = JailedVm(process, sockets, Phase.NOT_STARTED, plan.memory)
            version = await self._configure(vm, spec, plan)
            undo.pop_all()
        state = {"confinement": spawned.confinement, "version": version, "acceleration": Acceleration.KVM.value}
        return vm, state

    async def start_vm(self, handle: VmHandle) -> GuestChannel:
        """Let the guest run; returns when its init has said hello.

        Raises:
            HostError: `firecracker-refused`, its kernel cannot be loaded, with what Firecracker said.
            UnavailableError: the VMM does not answer.
            GuestError: `boot-failed`, the VMM ended first; `boot-timeout`, no hello within `HELLO_DEADLINE_S`. The
                console's last lines are in the details.
        """
        vm = self._vms.of(handle)
        if vm.phase is not Phase.NOT_STARTED or vm.memory is not None:
            raise ConflictError("vm-started", f"VM {handle.vm_id} was started already")
        async with vm.client() as client:
            await client.perform(start_request())
        try:
            return await self._channel(vm, fresh=True, deadline_s=HELLO_DEADLINE_S)
        except (GuestError, UnavailableError) as error:
            raise await vm.boot_error(error) from error

    async def stop_vm(self, handle: VmHandle) -> None:
        vm = self._vms.get(handle.vm_id)
        await self._vms.end(handle, vm.process if vm is not None else self._living(handle), VmmProcess.kill)

    async def wait_vm(self, handle: VmHandle) -> VmmExit:
        return await self._vms.of(handle).process.wait()

    async def delete_vm(self, handle: VmHandle) -> None:
        """Forget a VM; one that still runs is ended first, so that none is left without a name."""
        await self.stop_vm(handle)
        key = vm_key(handle.vm_id)
        vm = self._vms.pop(handle.vm_id, None)
        if vm is None:  # it ended while nobody watched: its cgroup is still there
            await self._host.vm_reap(key, process_of(handle))
        else:
            vm.close()
        await self._jails.jail_remove(key)
        await self._host.uid_free(key)

    async def recover(self, handle: VmHandle) -> GuestChannel | None:
        """Adopt a VM. One that was created and never started holds no workload: it is ended, and gone. One that was paused
        runs on, for its guest must answer.

        Raises:
            UnavailableError: the process lives but does not answer; it is left as it is.
            GuestError: the VMM answers but the guest does not.
        """
        self._vms.check_unheld(handle)
        process = self._living(handle)
        if process is None:
            return None
        async with AsyncExitStack() as undo:
            undo.callback(process.close)
            sockets = JailSockets(await self._jails.jail_open(vm_key(handle.vm_id)))
            undo.callback(sockets.close)
            vm = JailedVm(process, sockets, Phase.UNKNOWN)
            channel = await self._adopt(vm)
            if channel is not None:
                self._vms[handle.vm_id] = vm
                undo.pop_all()
        return channel

    async def usage(self, handle: VmHandle) -> VmUsage:
        return usage_of(self._vms.of(handle).process.id)

    def snapshot_traits(self, spec: VmSpec) -> Mapping[str, str]:
        return traits_of(self._program, spec)

    async def state_bytes(self, spec: VmSpec, handle: VmHandle) -> int:
        """All of the memory, twice: Firecracker writes it whole into the jail, and is read from there."""
        return 2 * spec.resources.memory_bytes

    async def save_state(self, handle: VmHandle, state: int) -> int | None:
        """Stop the vCPUs and write state and memory; a VM whose state cannot be written runs on.

        Raises:
            HostError: `firecracker-refused`, `state-not-saved`.
        """
        vm = self._vms.of(handle)
        async with vm.client() as client:
            await keep(client, _in_jail(files.STATE), _in_jail(files.MEMORY))
        written = files.take(vm.sockets.directory, files.STATE, least=1, most=files.LARGEST_STATE)
        try:
            await in_thread(sparse_copy, written, state)
        finally:
            os.close(written)
        return files.take(vm.sockets.directory, files.MEMORY, least=MIB, most=CAPABILITIES.max_memory_bytes)

    async def go_on(self, handle: VmHandle) -> None:
        await self._vms.of(handle).go_on()

    async def load_state(self, handle: VmHandle, state: int) -> None:
        """Give a VM that waits for it its state and memory. The memory is copied into the VM's jail, also where it is
        other VMs' too: they share no page of it.

        Raises:
            ConflictError: `vm-started`, it waits for none.
            HostError: `state-refused`, with Firecracker's own words.
        """
        vm = self._vms.of(handle)
        if vm.memory is None:
            raise ConflictError("vm-started", f"VM {handle.vm_id} does not wait for a state")
        directory, fd = vm.sockets.directory, vm.memory.fd
        try:
            await in_thread(files.give, directory, files.STATE, state, os.fstat(state).st_size)
            await in_thread(files.give, directory, files.MEMORY, fd, -(-os.fstat(fd).st_size // MIB) * MIB)
            async with vm.client() as client:
                await load(client, _in_jail(files.STATE), _in_jail(files.MEMORY), ended=vm.process.ended)
        except HostError as error:
            if error.code != "snapshot-unusable":
                raise
            raise HostError("state-refused", error.brief, details=error.details) from error
        finally:
            files.forget(directory)
        vm.memory, vm.asleep = None, True

    async def wake_vm(self, handle: VmHandle, card: GuestCard) -> GuestChannel:
        """Let a loaded guest run on. Its init holds all else until it has its card.

        Raises:
            ConflictError: it has no state, or runs.
            GuestError: `boot-failed`, the VMM ended; `boot-timeout`, no answer; `thaw-…`, it could not become that.
        """
        vm = self._vms.of(handle)
        if not vm.asleep:
            raise ConflictError("vm-not-loaded", f"VM {handle.vm_id} has no state that waits")
        vm.asleep = False
        async with vm.client() as client:
            await client.perform(resume_request())
        try:
            return await wake_channel_over(vm.connect(WAKE_DEADLINE_S), _CHANNEL, card, deadline_s=WAKE_DEADLINE_S)
        except (GuestError, UnavailableError) as error:
            if error.code.startswith("thaw-"):
                raise
            raise await vm.boot_error(error) from error

    async def pause_vm(self, handle: VmHandle) -> None:
        async with self._vms.of(handle).client() as client:
            await client.perform(pause_request())

    async def unpause_vm(self, handle: VmHandle) -> None:
        """Trap: 1.16 may deliver nothing to the guest over connections from before; whoever gets no answer reconnects."""
        async with self._vms.of(handle).client() as client:
            await client.perform(resume_request())

    def close(self) -> None:
        """Let go of all VMs; they run on, and another backend may adopt them."""
        for vm in self._vms.values():
            vm.close()
        self._vms.clear()

    async def _prepare(self, plan: VmPlan) -> int:
        with ExitStack() as ours:
            files = open_boot_files(plan, ours) | {drive_id(index): disk.fd for index, disk in enumerate(plan.disks)}
            return await self._jails.jail_prepare(plan.key, files)

    async def _configure(self, vm: JailedVm, spec: VmSpec, plan: VmPlan) -> str:
        try:
            async with vm.client() as client:
                version = await client.version()
                if plan.memory is not None:  # all comes with its state, and nothing may come before that
                    return str(version)
                for request in boot_requests(spec, plan.disks, plan.nics):
                    await client.perform(request)
                return str(version)
        except UnavailableError as error:
            if not await vm.process.ended(1.0):
                raise
            raise await vm.start_error() from error

    async def _adopt(self, vm: JailedVm) -> GuestChannel | None:
        try:
            await vm.go_on(self._recover_deadline_s)
            if vm.phase is Phase.NOT_STARTED:
                await vm.process.kill()
                return None
            return await self._channel(vm, fresh=False, deadline_s=self._recover_deadline_s)
        except (GuestError, UnavailableError):
            if await vm.process.ended(1.0):  # it ended just now
                return None
            raise

    async def _channel(self, vm: JailedVm, *, fresh: bool, deadline_s: float) -> GuestChannel:
        connect = vm.connect(deadline_s)
        return await self._open_channel(connect, _CHANNEL, fresh=fresh, deadline_s=deadline_s + LATER_S, renewable=True)

    def _living(self, handle: VmHandle) -> VmmProcess | None:
        """The process of a VM of an earlier life of ours; None where it has ended."""
        return VmmProcess.adopted(self._host, vm_key(handle.vm_id), process_of(handle))


def _in_jail(name: str) -> str:
    return f"{SOCKET_DIRECTORY}/{name}"
