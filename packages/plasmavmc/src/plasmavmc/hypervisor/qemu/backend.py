"""Backend `kvm`: one QEMU `microvm` a VM, with KVM or, told loudly, with an emulated CPU.

Theory. `create_vm` spawns QEMU with everything attached and its vCPUs held (`-S`). QEMU needs tens of milliseconds to come
up, which its caller has for what must stand before the guest runs. `start_vm` waits for its monitor (a QEMU that cannot
start says so here, with its own words: `vm`), lets the vCPUs run, and returns when the guest's init has said hello on the
channel. From there the VM is a process to watch; it is found again after a restart by number and start time, and its
sockets by path.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

from plasmavmc.backends import Acceleration, BackendCapabilities, Isolation
from plasmavmc.errors import ConflictError, GuestError, UnavailableError
from plasmavmc.guest.api import GuestCard, GuestChannel
from plasmavmc.guest.opening import open_channel, wake_channel
from plasmavmc.host.operations import Host, UnendedError
from plasmavmc.hypervisor.backend import VmmExit, VmmLeftError, VmPlan
from plasmavmc.hypervisor.console import connect_console
from plasmavmc.hypervisor.held import HeldVms
from plasmavmc.hypervisor.process import VmmProcess, process_of, usage_of
from plasmavmc.hypervisor.qemu import migration
from plasmavmc.hypervisor.qemu.argv import QemuMachine
from plasmavmc.hypervisor.qemu.qmp import qmp_session
from plasmavmc.hypervisor.qemu.seating import Seating
from plasmavmc.hypervisor.qemu.sockets import VmSockets
from plasmavmc.hypervisor.qemu.spawning import spawn
from plasmavmc.hypervisor.qemu.traits import traits_of
from plasmavmc.hypervisor.qemu.vm import QemuVm
from plasmavmc.storage.sparse import allocated_bytes
from plasmavmc.types import GIB, VmHandle, VmSpec, VmUsage, vm_key

NAME = "kvm"
HELLO_DEADLINE_S = 90.0
"""From the first instruction to the guest's hello: 1 to 2 s with an emulated CPU of its own, far more on a busy host."""
RECOVER_DEADLINE_S = 30.0
"""For the monitor, and for the guest, of a VM to adopt. They answer in milliseconds, but many may be asked at once."""
WAKE_DEADLINE_S = 60.0
"""From a loaded guest's first instruction to its word that it runs on: some milliseconds, and the image's hook."""
_SHARED, _PRIVATE = "shared", "private"
"""Of a VM's memory: a memfd of its own, or what it has written over another's."""


class KvmBackend:
    """QEMU on this host. New VMs get `machine`, whose acceleration is what the probe found to work."""

    def __init__(
        self,
        host: Host,
        machine: QemuMachine,
        *,
        recover_deadline_s: float = RECOVER_DEADLINE_S,
        seating: Seating | None = None,
    ) -> None:
        self._host = host
        self._machine = machine
        self._recover_deadline_s = recover_deadline_s
        self._seating = seating
        self._vms: HeldVms[QemuVm] = HeldVms()

    @property
    def capabilities(self) -> BackendCapabilities:
        can = capabilities_of(self._machine.acceleration)
        return replace(can, balloon=self._machine.balloon, max_disks=self._machine.max_disks)

    def use(self, machine: QemuMachine) -> None:
        """Give new VMs another machine; those that run keep theirs."""
        self._machine = machine
        self._seat_the_next()

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        self._vms.check_new(spec.id)
        if self._seating is not None:
            self._seating.put_off()
        sockets = VmSockets(plan.runtime_dir)
        async with AsyncExitStack() as undo:
            undo.callback(sockets.remove)
            undo.push_async_callback(self._host.uid_free, plan.key)
            try:
                process, confinement = await spawn(self._host, self._machine, spec, plan, sockets)
            except UnendedError as left:
                undo.pop_all()
                raise VmmLeftError(spec, NAME, plan, left) from left
            undo.pop_all()
        self._vms[spec.id] = QemuVm(spec.id, process, sockets, plan.memory)
        state = {
            "confinement": confinement,
            "acceleration": self._machine.acceleration.value,
            "memory": _SHARED if plan.memory is None or plan.memory.own else _PRIVATE,
        }
        return VmHandle(spec.id, NAME, str(plan.runtime_dir), process.id.pid, process.id.start_time, state)

    async def start_vm(self, handle: VmHandle) -> GuestChannel:
        """Let the guest run; returns when its init has said hello.

        Raises:
            HostError: `vmm-refused`, QEMU did not take its command line, with what it said.
            UnavailableError: `vmm-silent`, its monitor does not answer.
            GuestError: `boot-failed`, the VMM ended first; `boot-timeout`, no hello within `HELLO_DEADLINE_S`. The
                console's last lines are in the details.
        """
        vm = self._vms.of(handle)
        monitor = await vm.first_monitor()
        hello = asyncio.create_task(
            open_channel(vm.sockets.channel, fresh=True, deadline_s=HELLO_DEADLINE_S),
            name=f"hello {handle.vm_id}",
        )
        try:
            await monitor.execute("cont")
            return await hello
        except GuestError as error:
            raise await vm.boot_error(error) from error
        except BaseException:
            await _discard(hello)
            raise
        finally:
            monitor.close()
            self._seat_the_next()

    async def stop_vm(self, handle: VmHandle) -> None:
        await self._vms.end(handle, self._find(handle), QemuVm.end)

    async def wait_vm(self, handle: VmHandle) -> VmmExit:
        return await self._vms.of(handle).process.wait()

    async def delete_vm(self, handle: VmHandle) -> None:
        """Forget a VM; one that still runs is ended first, so that none is left without a name."""
        await self.stop_vm(handle)
        if self._vms.pop(handle.vm_id, None) is None:  # it ended while nobody watched: its cgroup is still there
            await self._host.vm_reap(vm_key(handle.vm_id), process_of(handle))
        VmSockets(Path(handle.runtime_dir)).remove()
        await self._host.uid_free(vm_key(handle.vm_id))

    async def recover(self, handle: VmHandle) -> GuestChannel | None:
        """Adopt a VM. One that was created and never started holds no workload: it is ended, and gone. One that was
        paused runs on, for its guest must answer.

        Raises:
            UnavailableError: `qmp-silent`, the process lives but does not answer; it is left as it is.
            GuestError: the VMM answers but the guest does not.
        """
        self._vms.check_unheld(handle)
        vm = self._find(handle)
        if vm is None:
            return None
        async with AsyncExitStack() as undo:
            undo.callback(vm.process.close)
            channel = await self._adopt(vm)
            if channel is not None:
                self._vms[handle.vm_id] = vm
                undo.pop_all()
        return channel

    async def usage(self, handle: VmHandle) -> VmUsage:
        return usage_of(self._vms.of(handle).process.id)

    def snapshot_traits(self, spec: VmSpec) -> Mapping[str, str]:
        return traits_of(self._machine, spec)

    async def state_bytes(self, spec: VmSpec, handle: VmHandle) -> int:
        """What its guest has touched of its memory; all of it where that cannot be seen from outside.

        Raises:
            HostError: `no-memory`.
        """
        vm = self._vms.of(handle)
        if handle.backend_state.get("memory") != _SHARED:
            return spec.resources.memory_bytes
        memory = await self._host.vm_memory(vm_key(handle.vm_id), vm.process.id)
        try:
            return allocated_bytes(memory)
        finally:
            os.close(memory)

    async def save_state(self, handle: VmHandle, state: int) -> int | None:
        """Stop the vCPUs and write the devices' state; see `migration`.

        Raises:
            ConflictError: `not-suspendable`, a VM of an older version of this engine.
            HostError: `state-not-saved`, `no-memory`.
        """
        vm, kind = self._vms.of(handle), handle.backend_state.get("memory")
        if kind is None:
            raise ConflictError(
                "not-suspendable",
                f"VM {handle.vm_id} was started by an older version, and cannot be suspended",
                resolution="Start it anew.",
            )
        async with qmp_session(vm.sockets.qmp) as monitor:
            await migration.save(monitor, state, leave_memory=kind == _SHARED)
        return await self._host.vm_memory(vm_key(handle.vm_id), vm.process.id) if kind == _SHARED else None

    async def go_on(self, handle: VmHandle) -> None:
        async with qmp_session(self._vms.of(handle).sockets.qmp) as monitor:
            await migration.go_on(monitor)

    async def load_state(self, handle: VmHandle, state: int) -> None:
        """Give a VM that waits for it its state.

        Raises:
            ConflictError: `vm-started`, it waits for none.
            HostError: `state-refused`, with QEMU's own words.
        """
        await self._vms.of(handle).load(state)

    async def wake_vm(self, handle: VmHandle, card: GuestCard) -> GuestChannel:
        """Let a loaded guest run on as its card says.

        Raises:
            ConflictError: it has no state, or runs.
            GuestError: `boot-failed`, the VMM ended; `boot-timeout`, no answer; `thaw-…`, it could not become that.
        """
        vm = self._vms.of(handle)
        if vm.memory is not None:
            raise ConflictError("vm-not-loaded", f"VM {handle.vm_id} has no state yet")
        monitor = await vm.first_monitor()

        async def let_run() -> None:
            await monitor.execute("cont")

        try:
            return await wake_channel(vm.sockets.channel, card, let_run, deadline_s=WAKE_DEADLINE_S)
        except GuestError as error:
            if error.code.startswith("thaw-"):
                raise
            raise await vm.boot_error(error) from error
        finally:
            monitor.close()
            self._seat_the_next()

    async def grow_disk(self, handle: VmHandle, disk: int, size_bytes: int) -> None:
        async with qmp_session(self._vms.of(handle).sockets.qmp) as monitor:
            await monitor.execute("block_resize", {"node-name": f"d{disk}", "size": size_bytes})

    async def pause_vm(self, handle: VmHandle) -> None:
        await self._vms.of(handle).execute("stop")

    async def unpause_vm(self, handle: VmHandle) -> None:
        await self._vms.of(handle).execute("cont")

    async def dismiss(self) -> None:
        """Have no seat made any more. One that waits ends with the helper, or as the host is dismantled."""
        if self._seating is not None:
            self._seating.end()

    def close(self) -> None:
        """Let go of all VMs; they run on, and another backend may adopt them."""
        for vm in self._vms.values():
            vm.close()
        self._vms.clear()
        if self._seating is not None:
            self._seating.put_off()

    def _seat_the_next(self) -> None:
        if self._seating is not None:
            self._seating.later(kvm=self._machine.acceleration is Acceleration.KVM)

    async def _adopt(self, vm: QemuVm) -> GuestChannel | None:
        try:
            if not await vm.let_run(self._recover_deadline_s):
                await vm.process.kill()
                return None
            with suppress(OSError):
                vm.process.console = connect_console(vm.sockets.console)
            return await open_channel(vm.sockets.channel, fresh=False, deadline_s=self._recover_deadline_s)
        except (GuestError, UnavailableError):
            if await vm.process.ended(1.0):  # it ended just now
                return None
            raise

    def _find(self, handle: VmHandle) -> QemuVm | None:
        """A VM that is held, or lives from an earlier life of ours; None where it is gone."""
        if handle.vm_id in self._vms:
            return self._vms[handle.vm_id]
        process = VmmProcess.adopted(self._host, vm_key(handle.vm_id), process_of(handle))
        if process is None:
            return None
        return QemuVm(handle.vm_id, process, VmSockets(Path(handle.runtime_dir)))


def capabilities_of(acceleration: Acceleration) -> BackendCapabilities:
    """What this backend can do with an acceleration."""
    kvm = acceleration is Acceleration.KVM
    return BackendCapabilities(
        name=NAME,
        acceleration=acceleration,
        isolation=Isolation.HARDWARE_VM if kvm else Isolation.EMULATED_VM,
        max_vcpus=32 if kvm else 8,
        max_memory_bytes=256 * GIB,
        max_nics=4,
        pause=True,
        suspend=True,
        fork=True,
        channel="serial",
        rate_limits=True,
        encryption=True,
    )


async def _discard(opening: asyncio.Task[GuestChannel]) -> None:
    opening.cancel()
    await asyncio.wait({opening})
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().aclose()
