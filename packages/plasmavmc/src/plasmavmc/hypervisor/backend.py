"""Port: one kind of VMM.

A backend turns a plan (descriptors and addresses that others prepared) into a running VMM and tells its end. It knows
nothing of images, addresses or disks' origin. Extra abilities are optional protocols (`Pausable`), told by
`capabilities`; no method says "not implemented".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from plasmavmc.guest.api import GuestChannel
from plasmavmc.types import BackendCapabilities, VmHandle, VmSpec


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A disk of the VM, open. Order is the guest's order: vda is the image, vdb the writable layer, then volumes."""

    id: str
    fd: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class NicPlan:
    id: str
    fd: int
    mac: str


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


@dataclass(frozen=True, slots=True)
class VmmExit:
    """How a VMM ended. `code` is None where it cannot be known (adopted after a restart)."""

    code: int | None
    complaint: str = ""
    """The last of what the VMM itself printed."""
    console: tuple[str, ...] = field(default_factory=tuple)
    """The last lines of the guest's serial console: a kernel panic shows here."""


class HypervisorBackend(Protocol):
    """Raises `HostError`, `CapacityError`, `UnavailableError`; `NotFoundError` for a VM it does not hold."""

    @property
    def capabilities(self) -> BackendCapabilities: ...

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        """Spawn the VMM with everything attached; its guest does not run before `start_vm`. All or nothing."""

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

    async def usage(self, handle: VmHandle) -> Mapping[str, float]:
        """`memory_rss_bytes` and `cpu_seconds` of the VMM."""


class Pausable(Protocol):
    async def pause_vm(self, handle: VmHandle) -> None:
        """Freeze the guest's vCPUs."""

    async def unpause_vm(self, handle: VmHandle) -> None:
        """Let them run again."""
