"""Backend `memory`: VMs that exist only here, for tests and simulation. It obeys the same contract as the real ones.

Theory. What a host keeps when the engine dies is `PretendedVmms`: the processes. A `MemoryBackend` is what dies with the
engine; a second one over the same `PretendedVmms` adopts the VMs of the first. Faults are set on `PretendedVmms` (a VMM
that cannot start, a guest that never comes up, a slow boot) or done to a VM (`kill`, as by SIGKILL).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from plasmavmc.errors import ConflictError, NotFoundError, PlasmaError
from plasmavmc.guest.api import GuestChannel
from plasmavmc.hypervisor.backend import VmmExit, VmPlan
from plasmavmc.types import GIB, Acceleration, BackendCapabilities, Isolation, VmHandle, VmSpec

NAME = "memory"
KILLED = -9
_START_TIME = 1
CAPABILITIES = BackendCapabilities(
    name=NAME,
    acceleration=Acceleration.NONE,
    isolation=Isolation.NONE,
    max_vcpus=64,
    max_memory_bytes=1024 * GIB,
    max_disks=16,
    max_nics=4,
)


class PretendedGuest(Protocol):
    """What runs in a pretended VM: `guest.memory` has one."""

    def attach(self) -> GuestChannel:
        """A channel to it; one made before is cut."""

    def boot(self) -> None:
        """Let it run."""

    async def powered_off(self) -> None:
        """Return when it has switched itself off."""

    def cut(self) -> None:
        """Its VM is gone: its channel ends."""


@dataclass(slots=True)
class Faults:
    """What goes wrong with VMs made from now on."""

    create: PlasmaError | None = None
    """`create_vm` raises this."""
    boot_s: float = 0.0
    """Seconds from `start_vm` until the guest runs."""
    hang: bool = False
    """The guest never comes up, though its VMM lives."""


@dataclass(slots=True)
class _Vmm:
    pid: int
    guest: PretendedGuest
    memory_bytes: int
    boot_s: float
    hang: bool
    exit: asyncio.Future[VmmExit]
    life: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        return self.life is not None

    def is_of(self, handle: VmHandle) -> bool:
        return (handle.pid, handle.start_time) == (self.pid, _START_TIME)

    def end(self, code: int) -> None:
        if not self.exit.done():
            self.exit.set_result(VmmExit(code))
            self.guest.cut()
        if self.life is not None:
            self.life.cancel()


@dataclass(slots=True)
class PretendedVmms:
    """The VMM processes of a pretended host, by VM id. They outlive a backend."""

    guests: Callable[[VmSpec], PretendedGuest]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    faults: Faults = field(default_factory=Faults)
    _vmms: dict[str, _Vmm] = field(default_factory=dict)
    _pids: itertools.count[int] = field(default_factory=lambda: itertools.count(100_000))

    def living(self) -> frozenset[str]:
        """Ids of the VMs whose VMM lives."""
        return frozenset(vm_id for vm_id, vmm in self._vmms.items() if not vmm.exit.done())

    def running(self) -> frozenset[str]:
        """Ids of the VMs whose guest was let run, by a VMM that lives."""
        return frozenset(vm_id for vm_id in self.living() if self._vmms[vm_id].started)

    def known(self) -> frozenset[str]:
        """Ids of the VMs of which something is left, ended ones too."""
        return frozenset(self._vmms)

    def kill(self, vm_id: str, code: int = KILLED) -> None:
        """End a VMM without a word. Until it is deleted it stays as a zombie does: known, and ended."""
        self._vmms[vm_id].end(code)

    def spawn(self, spec: VmSpec) -> _Vmm:
        """Make a VMM; the guest does not run yet."""
        if self.faults.create is not None:
            raise self.faults.create
        exit_future: asyncio.Future[VmmExit] = asyncio.get_running_loop().create_future()
        memory = spec.resources.memory_bytes
        vmm = _Vmm(next(self._pids), self.guests(spec), memory, self.faults.boot_s, self.faults.hang, exit_future)
        self._vmms[spec.id] = vmm
        return vmm

    def run(self, vmm: _Vmm) -> None:
        """Let a guest run until it switches itself off."""
        vmm.life = asyncio.create_task(self._live(vmm))

    def find(self, handle: VmHandle) -> _Vmm | None:
        """The living VMM of a handle."""
        vmm = self._vmms.get(handle.vm_id)
        return vmm if vmm is not None and vmm.is_of(handle) and not vmm.exit.done() else None

    def forget(self, handle: VmHandle) -> None:
        """Remove what is left of an ended VMM."""
        vmm = self._vmms.get(handle.vm_id)
        if vmm is not None and vmm.is_of(handle):
            del self._vmms[handle.vm_id]

    async def _live(self, vmm: _Vmm) -> None:
        await self.sleep(vmm.boot_s)
        if not vmm.hang:
            vmm.guest.boot()
        await vmm.guest.powered_off()
        vmm.end(0)


class MemoryBackend:
    """Pretends to run VMs."""

    def __init__(self, vmms: PretendedVmms) -> None:
        self._vmms = vmms
        self._held: dict[str, _Vmm] = {}

    @property
    def capabilities(self) -> BackendCapabilities:
        return CAPABILITIES

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        if spec.id in self._held:
            raise ConflictError("vm-exists", f"VM {spec.id} exists already")
        vmm = self._vmms.spawn(spec)
        self._held[spec.id] = vmm
        return VmHandle(spec.id, NAME, str(plan.runtime_dir), vmm.pid, _START_TIME, {"confinement": "none"})

    async def start_vm(self, handle: VmHandle) -> GuestChannel:
        vmm = self._of(handle)
        if vmm.started:
            raise ConflictError("vm-started", f"VM {handle.vm_id} was started already")
        channel = vmm.guest.attach()
        self._vmms.run(vmm)
        return channel

    async def stop_vm(self, handle: VmHandle) -> None:
        vmm = self._held.get(handle.vm_id) or self._vmms.find(handle)
        if vmm is not None:
            vmm.end(0)

    async def wait_vm(self, handle: VmHandle) -> VmmExit:
        return await asyncio.shield(self._of(handle).exit)

    async def delete_vm(self, handle: VmHandle) -> None:
        await self.stop_vm(handle)
        self._held.pop(handle.vm_id, None)
        self._vmms.forget(handle)

    async def recover(self, handle: VmHandle) -> GuestChannel | None:
        if handle.vm_id in self._held:
            raise ConflictError("vm-exists", f"VM {handle.vm_id} is held already")
        vmm = self._vmms.find(handle)
        if vmm is None:
            return None
        if not vmm.started:
            vmm.end(KILLED)
            return None
        self._held[handle.vm_id] = vmm
        return vmm.guest.attach()

    async def usage(self, handle: VmHandle) -> Mapping[str, float]:
        vmm = self._of(handle)
        return {"memory_rss_bytes": 0.0 if vmm.exit.done() else float(vmm.memory_bytes), "cpu_seconds": 0.0}

    def close(self) -> None:
        """Let go of all VMs; they run on, and another backend may adopt them."""
        self._held.clear()

    def _of(self, handle: VmHandle) -> _Vmm:
        try:
            return self._held[handle.vm_id]
        except KeyError:
            raise NotFoundError("no-such-vm", f"no VM {handle.vm_id} is held by this backend") from None
