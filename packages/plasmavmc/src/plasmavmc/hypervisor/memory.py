"""Backend `memory`: VMs that exist only here, for tests and simulation. It obeys the same contract as the real ones.

Theory. What a host keeps when the engine dies is `PretendedVmms`: the processes. A `MemoryBackend` is what dies with the
engine; a second one over the same `PretendedVmms` adopts the VMs of the first. Faults are set on `PretendedVmms` (a VMM
that cannot start, a guest that never comes up, a slow boot) or done to a VM (`kill`, as by SIGKILL; `hanging`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from plasmavmc.backends import Acceleration, BackendCapabilities, Isolation
from plasmavmc.errors import ConflictError, HostError, PlasmaError
from plasmavmc.guest.api import GuestCard, GuestChannel
from plasmavmc.hypervisor.backend import VmmExit, VmPlan
from plasmavmc.hypervisor.held import HeldVms
from plasmavmc.types import GIB, VmHandle, VmSpec, VmUsage

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
    pause=True,
    suspend=True,
    fork=True,
    rate_limits=True,
    encryption=True,
)
TRAITS = {"program": "memory", "devices": "none"}


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

    def copy(self) -> PretendedGuest:
        """Another one with the same memory: what a state holds."""


@dataclass(slots=True)
class Faults:
    """What goes wrong with VMs made from now on."""

    create: PlasmaError | None = None
    """`create_vm` raises this."""
    boot_s: float = 0.0
    """Seconds from `start_vm` until the guest runs."""
    hang: bool = False
    """The guest never comes up, though its VMM lives."""
    save: PlasmaError | None = None
    """`save_state` raises this; the vCPUs stand still all the same."""
    save_s: float = 0.0
    """Seconds that `save_state` takes."""
    load: PlasmaError | None = None
    """`load_state` raises this."""
    wake: PlasmaError | None = None
    """`wake_vm` raises this."""
    traits: Mapping[str, str] = field(default_factory=dict)
    """The host changes: what states depend on beside, or instead of, what they did."""


@dataclass(slots=True)
class _Vmm:
    pid: int
    guest: PretendedGuest
    plan: VmPlan
    memory_bytes: int
    boot_s: float
    hang: bool
    exit: asyncio.Future[VmmExit]
    loaded: bool = False
    grown: dict[int, int] = field(default_factory=dict)
    stands_still: bool = False
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
    kept: set[str] = field(default_factory=set)
    """Ids of the VMs of which the host does not take back what it lent: they cannot be deleted."""
    hanging: set[str] = field(default_factory=set)
    """Ids of the VMs whose VMM waits for a disk, and survives being ended; only `kill` ends it."""
    states: dict[str, PretendedGuest] = field(default_factory=dict)
    """Guests as they were saved, by the words that their states and memories hold."""
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

    def guest(self, vm_id: str) -> PretendedGuest:
        """What runs in a VM."""
        return self._vmms[vm_id].guest

    def plan(self, vm_id: str) -> VmPlan:
        """What a VM was made of."""
        return self._vmms[vm_id].plan

    def grown(self, vm_id: str) -> Mapping[int, int]:
        """Disks that have grown under a guest, with their size."""
        return self._vmms[vm_id].grown

    def standing_still(self) -> frozenset[str]:
        """Ids of the living VMs whose vCPUs were stopped."""
        return frozenset(vm_id for vm_id in self.living() if self._vmms[vm_id].stands_still)

    def spawn(self, spec: VmSpec, plan: VmPlan) -> _Vmm:
        """Make a VMM; the guest does not run yet."""
        if self.faults.create is not None:
            raise self.faults.create
        exit_future: asyncio.Future[VmmExit] = asyncio.get_running_loop().create_future()
        size = spec.resources.memory_bytes
        vmm = _Vmm(next(self._pids), self.guests(spec), plan, size, self.faults.boot_s, self.faults.hang, exit_future)
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
        if not vmm.hang and not vmm.loaded:
            vmm.guest.boot()
        await vmm.guest.powered_off()
        vmm.end(0)


class MemoryBackend:
    """Pretends to run VMs."""

    def __init__(self, vmms: PretendedVmms) -> None:
        self._vmms = vmms
        self._held: HeldVms[_Vmm] = HeldVms()

    @property
    def capabilities(self) -> BackendCapabilities:
        return CAPABILITIES

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        self._held.check_new(spec.id)
        vmm = self._vmms.spawn(spec, plan)
        self._held[spec.id] = vmm
        return VmHandle(spec.id, NAME, str(plan.runtime_dir), vmm.pid, _START_TIME, {"confinement": "none"})

    async def start_vm(self, handle: VmHandle) -> GuestChannel:
        vmm = self._held.of(handle)
        if vmm.started or vmm.plan.memory is not None:
            raise ConflictError("vm-started", f"VM {handle.vm_id} was started already, or waits for a state")
        channel = vmm.guest.attach()
        self._vmms.run(vmm)
        return channel

    async def stop_vm(self, handle: VmHandle) -> None:
        vmm = self._held.get(handle.vm_id) or self._vmms.find(handle)
        if vmm is None:
            return
        if handle.vm_id in self._vmms.hanging and not vmm.exit.done():
            raise HostError("vmm-unkillable", f"process {vmm.pid} is still there after SIGKILL")
        vmm.end(0)

    async def wait_vm(self, handle: VmHandle) -> VmmExit:
        return await asyncio.shield(self._held.of(handle).exit)

    async def delete_vm(self, handle: VmHandle) -> None:
        await self.stop_vm(handle)
        if handle.vm_id in self._vmms.kept:
            raise HostError("host-refused", f"what VM {handle.vm_id} had cannot be taken back")
        self._held.pop(handle.vm_id, None)
        self._vmms.forget(handle)

    async def recover(self, handle: VmHandle) -> GuestChannel | None:
        self._held.check_unheld(handle)
        vmm = self._vmms.find(handle)
        if vmm is None:
            return None
        if not vmm.started:
            vmm.end(KILLED)
            return None
        self._held[handle.vm_id] = vmm
        vmm.stands_still = False
        return vmm.guest.attach()

    def snapshot_traits(self, spec: VmSpec) -> Mapping[str, str]:
        return {**TRAITS, **self._vmms.faults.traits}

    async def state_bytes(self, spec: VmSpec, handle: VmHandle) -> int:
        return self._held.of(handle).memory_bytes

    async def save_state(self, handle: VmHandle, state: int) -> int | None:
        vmm, faults = self._held.of(handle), self._vmms.faults
        vmm.stands_still = True
        await self._vmms.sleep(faults.save_s)
        if faults.save is not None:
            raise faults.save
        word = f"state {handle.vm_id} {len(self._vmms.states)}"
        self._vmms.states[word] = vmm.guest.copy()
        os.pwrite(state, word.encode(), 0)
        if vmm.plan.memory is not None and not vmm.plan.memory.own:
            return None
        memory = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.pwrite(memory, word.encode(), 0)
        os.ftruncate(memory, vmm.memory_bytes)
        return memory

    async def go_on(self, handle: VmHandle) -> None:
        self._held.of(handle).stands_still = False

    async def load_state(self, handle: VmHandle, state: int) -> None:
        vmm = self._held.of(handle)
        if vmm.plan.memory is None or vmm.loaded:
            raise ConflictError("vm-started", f"VM {handle.vm_id} does not wait for a state")
        if self._vmms.faults.load is not None:
            raise self._vmms.faults.load
        word = os.pread(state, 200, 0)
        saved = self._vmms.states.get(word.decode(errors="replace"))
        if saved is None or (vmm.plan.memory.filled and os.pread(vmm.plan.memory.fd, len(word), 0) != word):
            raise HostError("state-refused", "the state is none, or does not belong to this memory")
        vmm.guest, vmm.loaded = saved.copy(), True

    async def wake_vm(self, handle: VmHandle, card: GuestCard) -> GuestChannel:
        vmm = self._held.of(handle)
        if not vmm.loaded or vmm.started:
            raise ConflictError("vm-not-loaded", f"VM {handle.vm_id} has no state yet, or runs")
        if self._vmms.faults.wake is not None:
            raise self._vmms.faults.wake
        channel = vmm.guest.attach()
        self._vmms.run(vmm)
        await channel.thaw(card)
        return channel

    async def usage(self, handle: VmHandle) -> VmUsage:
        vmm = self._held.of(handle)
        return VmUsage() if vmm.exit.done() else VmUsage(memory_rss_bytes=vmm.memory_bytes)

    async def pause_vm(self, handle: VmHandle) -> None:
        self._held.of(handle).stands_still = True

    async def unpause_vm(self, handle: VmHandle) -> None:
        self._held.of(handle).stands_still = False

    async def grow_disk(self, handle: VmHandle, disk: int, size_bytes: int) -> None:
        self._held.of(handle).grown[disk] = size_bytes

    def close(self) -> None:
        """Let go of all VMs; they run on, and another backend may adopt them."""
        self._held.clear()
