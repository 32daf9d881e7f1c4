"""Backend `wasm`: each VM is a WebAssembly module in a worker process of its own.

Theory. The module lies in an image like any other, and reaches the worker as a descriptor; the worker then speaks the
guest's side of the channel, so that everything above sees a VM. What is isolated from what: a module by its sandbox; a
worker by uid, cgroup and cage (`host.helper.worker`), which hold even where the sandbox does not. No VM shares a process
with another, so one that is killed, runs out of memory or keeps a core busy is alone with that.

A worker is found again after a restart by its number and start time, and by its socket. One that was never started ends
by itself when its platform does.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

from plasmavmc.backends import Acceleration, BackendCapabilities, GuestKind, Isolation
from plasmavmc.errors import ConflictError, GuestError, HostError, UnavailableError
from plasmavmc.guest.api import GuestChannel
from plasmavmc.guest.opening import open_channel
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Host
from plasmavmc.hypervisor.backend import VmmExit, VmPlan
from plasmavmc.hypervisor.held import HeldVms
from plasmavmc.hypervisor.process import VmmProcess, process_of, usage_of
from plasmavmc.hypervisor.qemu.sockets import VmSockets, listening
from plasmavmc.hypervisor.wasm.cache import CodeCache
from plasmavmc.hypervisor.wasm.control import CHANNEL, COMPILED, HTTP_BACKLOG, LISTENER, MODULE, Assign, Start
from plasmavmc.hypervisor.wasm.limits import SPARE, limits_of
from plasmavmc.hypervisor.wasm.workers import Worker, Workers
from plasmavmc.types import GIB, VmHandle, VmSpec, VmUsage

NAME = "wasm"
SPARES = 2
HELLO_DEADLINE_S = 20.0
RECOVER_DEADLINE_S = 30.0
CAPABILITIES = BackendCapabilities(
    name=NAME,
    acceleration=Acceleration.NONE,
    isolation=Isolation.WASM_SANDBOX,
    guest_kinds=(GuestKind.WASM,),
    max_vcpus=1,
    max_memory_bytes=4 * GIB,
    max_disks=2,
    max_nics=1,
    channel="socket",
)


@dataclass(slots=True)
class _Vm:
    process: VmmProcess
    sockets: VmSockets
    worker: Worker | None = None
    """None of an adopted VM."""
    started: bool = False


class WasmBackend:
    """WebAssembly modules on this host."""

    def __init__(self, host: Host, names: HostNames, cache: CodeCache, *, spares: int = SPARES) -> None:
        self._host = host
        self._cache = cache
        self._workers = Workers(host, names, spares)
        self._vms: HeldVms[_Vm] = HeldVms()

    @property
    def capabilities(self) -> BackendCapabilities:
        return CAPABILITIES

    @property
    def workers(self) -> Workers:
        return self._workers

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        """Give a worker its module. Raises besides `HostError`: `no-module`, the plan has none."""
        self._vms.check_new(spec.id)
        if not plan.disks:
            raise HostError("no-module", f"VM {spec.id} has no image with a module")
        sockets = VmSockets(plan.runtime_dir)
        async with AsyncExitStack() as undo:
            undo.callback(sockets.remove)
            worker = await self._workers.take()
            undo.push_async_callback(self._workers.discard, worker)
            limits = limits_of(spec.resources)
            if limits != SPARE:
                await self._host.vm_limit(worker.key, limits)
            self._assign(worker, spec, plan, sockets)
            undo.pop_all()
        self._vms[spec.id] = _Vm(worker.process, sockets, worker)
        state = {"confinement": worker.confinement, "key": worker.key}
        if plan.service_port is not None:
            state["endpoint"] = f"unix:{sockets.http}"
        process = worker.process.id
        return VmHandle(spec.id, NAME, str(plan.runtime_dir), process.pid, process.start_time, state)

    async def start_vm(self, handle: VmHandle) -> GuestChannel:
        """Let the worker be a guest; returns when it has said hello.

        Raises:
            GuestError: `guest-gone`, `guest-silent`: the worker ended or hangs.
        """
        vm = self._vms.of(handle)
        if vm.started or vm.worker is None:
            raise ConflictError("vm-started", f"VM {handle.vm_id} was started already")
        vm.started = True
        vm.worker.send(Start())
        return await open_channel(vm.sockets.channel, fresh=True, deadline_s=HELLO_DEADLINE_S)

    async def stop_vm(self, handle: VmHandle) -> None:
        vm = self._find(handle)
        await self._vms.end(handle, None if vm is None else vm.process, VmmProcess.kill)

    async def wait_vm(self, handle: VmHandle) -> VmmExit:
        return await self._vms.of(handle).process.wait()

    async def delete_vm(self, handle: VmHandle) -> None:
        """Forget a VM; one that still runs is ended first, so that none is left without a name."""
        await self.stop_vm(handle)
        vm = self._vms.pop(handle.vm_id, None)
        if vm is None:  # it ended while nobody watched: its cgroup is still there
            await self._host.vm_reap(handle.host_key, process_of(handle))
        elif vm.worker is not None:
            vm.worker.close()
            await vm.worker.handed_over()
        VmSockets(Path(handle.runtime_dir)).remove()
        await self._host.uid_free(handle.host_key)

    async def recover(self, handle: VmHandle) -> GuestChannel | None:
        """Adopt a VM. One that was never started has no workload, and ended with the engine that made it.

        Raises:
            UnavailableError, GuestError: the process lives but does not answer; it is left as it is.
        """
        self._vms.check_unheld(handle)
        vm = self._find(handle)
        if vm is None:
            return None
        async with AsyncExitStack() as undo:
            undo.callback(vm.process.close)
            try:
                channel = await open_channel(vm.sockets.channel, fresh=False, deadline_s=RECOVER_DEADLINE_S)
            except (GuestError, UnavailableError):
                if await vm.process.ended(1.0):
                    return None
                raise
            self._vms[handle.vm_id] = vm
            undo.pop_all()
        return channel

    async def usage(self, handle: VmHandle) -> VmUsage:
        return usage_of(self._vms.of(handle).process.id)

    async def dismiss(self) -> None:
        await self._workers.dismiss()

    def close(self) -> None:
        """Let go of all VMs; they run on, and another backend may adopt them."""
        self._workers.close()
        for vm in self._vms.values():
            if vm.worker is not None:
                vm.worker.close()
            vm.process.close()
        self._vms.clear()

    def _assign(self, worker: Worker, spec: VmSpec, plan: VmPlan, sockets: VmSockets) -> None:
        with ExitStack() as ours:
            fds = {MODULE: plan.disks[0].fd, CHANNEL: listening(sockets.channel, ours)}
            if plan.service_port is not None:
                fds[LISTENER] = listening(sockets.http, ours, backlog=HTTP_BACKLOG)
            code = self._cache.open(spec.scope, spec.image)
            if code is not None:
                ours.callback(os.close, code)
                fds[COMPILED] = code
            worker.send(Assign(spec.resources.memory_bytes, tuple(fds)), tuple(fds.values()))
        worker.on_code(lambda fd: self._cache.store(spec.scope, spec.image, fd))

    def _find(self, handle: VmHandle) -> _Vm | None:
        """A VM that is held, or lives from an earlier life of ours; None where it is gone."""
        if handle.vm_id in self._vms:
            return self._vms[handle.vm_id]
        process = VmmProcess.adopted(self._host, handle.host_key, process_of(handle))
        return None if process is None else _Vm(process, VmSockets(Path(handle.runtime_dir)))
