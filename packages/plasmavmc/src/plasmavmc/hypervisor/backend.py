"""Port: one kind of VMM.

A backend turns a plan (descriptors and addresses that others prepared) into a running VMM and tells its end. It knows
nothing of images, addresses or disks' origin. Extra abilities are optional protocols (`Pausable`, `Suspendable`,
`Forkable`, `Reserving`), told by `capabilities`; no method says "not implemented".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from plasmavmc.backends import BackendCapabilities
from plasmavmc.errors import HostError
from plasmavmc.guest.api import GuestCard, GuestChannel
from plasmavmc.host.operations import UnendedError
from plasmavmc.types import NO_LIMIT, RateLimit, VmHandle, VmSpec, VmUsage


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A disk of the VM, open. Order is the guest's order: vda is the image, vdb the writable layer, then volumes."""

    id: str
    fd: int
    read_only: bool
    limit: RateLimit = NO_LIMIT
    secret: int = -1
    """Given, what is stored is ciphertext (LUKS), which the VMM opens with the passphrase in this file. It must be readable
    by its uid, and is read once."""


@dataclass(frozen=True, slots=True)
class NicPlan:
    id: str
    fd: int
    """The tap; -1 where it was not opened (`BackendCapabilities.opens_taps`)."""
    mac: str
    tap: str = ""
    """Its name on the host."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory of a guest that is restored: a memfd. Its content and descriptor must be there until `load_state`."""

    fd: int
    own: bool = True
    """It is this VM's alone. False: several VMs begin with it, and each writes to a copy of its own."""
    filled: bool = True
    """It has its content. False: the state brings it."""


@dataclass(frozen=True, slots=True)
class VmPlan:
    """What the manager prepared for a VM. Descriptors belong to the manager, which closes them after `create_vm`."""

    key: str
    runtime_dir: Path
    """A 0700 directory of this VM for sockets; its path is short (108 bytes for a socket)."""
    kernel: Path
    initrd: Path
    disks: tuple[DiskPlan, ...] = ()
    nics: tuple[NicPlan, ...] = ()
    memory: MemoryPlan | None = None
    """Given, the guest does not boot: it is restored by `Suspendable.load_state` and `wake_vm`."""
    service_port: int | None = None
    """It takes requests: at an endpoint that the backend makes (`VmHandle.endpoint`), where it has no interface."""


@dataclass(frozen=True, slots=True)
class VmmExit:
    """How a VMM ended. `code` is None where it cannot be known (adopted after a restart)."""

    code: int | None
    complaint: str = ""
    """The last of what the VMM itself printed."""
    console: tuple[str, ...] = field(default_factory=tuple)
    """The last lines of the guest's serial console: a kernel panic shows here."""


class VmmLeftError(HostError):
    """A VM was not made, or not for long, and its VMM does not end: `handle` is what it is stopped and deleted by."""

    def __init__(self, spec: VmSpec, backend: str, plan: VmPlan, left: UnendedError) -> None:
        super().__init__(left.code, left.brief)
        self.handle = VmHandle(spec.id, backend, str(plan.runtime_dir), left.process.pid, left.process.start_time)


class HypervisorBackend(Protocol):
    """Raises `HostError`, `CapacityError`, `UnavailableError`; `NotFoundError` for a VM it does not hold."""

    @property
    def capabilities(self) -> BackendCapabilities: ...

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        """Spawn the VMM with everything attached; its guest does not run before `start_vm`. All or nothing, but for what
        `VmmLeftError` tells."""

    async def start_vm(self, handle: VmHandle) -> GuestChannel:
        """Let the guest run; returns its channel. A VMM that did not come up at all is a `HostError` here at the latest."""

    async def stop_vm(self, handle: VmHandle) -> None:
        """End the VMM now (the guest was asked before, over its channel). Idempotent."""

    async def wait_vm(self, handle: VmHandle) -> VmmExit:
        """Return when the VMM has ended, within 100 ms of its end. May be awaited by several."""

    async def delete_vm(self, handle: VmHandle) -> None:
        """Forget an ended VM: uid, cgroup, sockets. Idempotent."""

    async def recover(self, handle: VmHandle) -> GuestChannel | None:
        """Adopt a VM that lived through a restart; None where it is gone (a zombie is gone)."""

    async def usage(self, handle: VmHandle) -> VmUsage:
        """What the VMM uses now; nothing of one that has ended. Its disk is left out: the storage knows it."""


class Suspendable(Protocol):
    """A backend that can take a guest's state and put it into another VMM. The guest is held (`GuestChannel.freeze`) by
    whoever asks, and let go on (`thaw`) afterwards."""

    def snapshot_traits(self, spec: VmSpec) -> Mapping[str, str]:
        """What a state depends on beside the VM's own specification: program, machine, processor. A state taken under
        other traits must not be loaded. `HostError` where they cannot be told. May read files; blocking."""

    async def state_bytes(self, spec: VmSpec, handle: VmHandle) -> int:
        """What keeping a VM as it is now takes of the host's disk while it is done, at most."""

    async def save_state(self, handle: VmHandle, state: int) -> int | None:
        """Stop the vCPUs and write the state of all devices to `state`, an empty file. Returns a descriptor, for reading,
        of the guest's memory as it now stands (owned by the caller); None where it had to be written to the state."""

    async def go_on(self, handle: VmHandle) -> None:
        """Let the vCPUs run on after `save_state`, also one that failed or was cancelled. Idempotent."""

    async def load_state(self, handle: VmHandle, state: int) -> None:
        """Give a VM that was created with `VmPlan.memory` its state, read from `state`; its vCPUs do not run yet."""

    async def wake_vm(self, handle: VmHandle, card: GuestCard) -> GuestChannel:
        """Let a loaded guest run; before anything of the user's does, it is told its card. Returns its channel."""


class Forkable(Suspendable, Protocol):
    """A backend in which several VMs may share the memory that they begin with (`MemoryPlan.own` is False)."""


@runtime_checkable
class Growing(Protocol):
    """A backend that can have a running guest's disk grow."""

    async def grow_disk(self, handle: VmHandle, disk: int, size_bytes: int) -> None:
        """The file of the disk at this place among the VM's has grown, and its guest sees it. Idempotent."""


@runtime_checkable
class Pausable(Protocol):
    async def pause_vm(self, handle: VmHandle) -> None:
        """Freeze the guest's vCPUs."""

    async def unpause_vm(self, handle: VmHandle) -> None:
        """Let them run again."""


@runtime_checkable
class Reserving(Protocol):
    """A backend that has VMMs started ahead of their VMs."""

    async def dismiss(self) -> None:
        """End those that wait for a VM, and start no more: none will come."""
