"""Port: what an agent needs of a VM engine, in the platform's words.

`run` and `stop` are orders, answered at once; what became of them is seen by `observe`. `suspend` and `resume` return when
they are done. All are idempotent by VM id.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from shellwego.core.assignments import Workload
from shellwego.core.nodes import NodeFacts
from shellwego.core.peers import PeerNode
from shellwego.core.sensitive import Sensitive
from shellwego.core.vms import VmPhase, VmUsage, VmView
from shellwego.core.volumes import VolumeView
from shellwego.ports.streams import StreamRequest

__all__ = [
    "Engine",
    "ExecChannel",
    "ExecData",
    "ExecDone",
    "LogRecord",
    "VmOrder",
    "VmPhase",
    "VmUsage",
    "VmView",
    "VolumeEngine",
    "VolumeView",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VmOrder:
    vm_id: str
    instance_id: str
    attempt: int
    workload: Workload
    secrets: Mapping[str, Sensitive] = field(default_factory=dict)
    """Variables beside those of the workload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    time: float
    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecData:
    stream: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecDone:
    code: int


class ExecChannel(Protocol):
    """As `plasmavmc.guest.api.ExecSession`, in the platform's words."""

    async def send(self, data: bytes) -> None: ...
    async def send_eof(self) -> None: ...
    async def resize(self, rows: int, columns: int) -> None: ...
    async def signal(self, number: int) -> None: ...
    def output(self) -> AsyncIterator[ExecData | ExecDone]: ...
    async def aclose(self) -> None: ...


class Engine(Protocol):
    """Raises core errors: `NotFoundError` (no such VM), `ConflictError` (not running), `UnavailableError`."""

    async def connect(self, peers: Sequence[PeerNode]) -> tuple[PeerNode, ...]:
        """Have a way to the VMs of these nodes, and let them, and no others, open connections to VMs here. Returns those
        that this host has no way to. Before the start they are only noted, so that nobody is shut out by a restart."""

    async def start(self) -> None:
        """Adopt what runs, sweep what carries our names and is not ours, begin to watch."""

    async def facts(self) -> NodeFacts:
        """Capacity, backends, warnings: as they are now."""

    async def run(self, order: VmOrder) -> None: ...

    async def stop(self, vm_id: str, grace_s: float) -> None: ...

    async def suspend(self, vm_id: str) -> None:
        """Put a running VM on disk; returns when it is there. One that is there already is left alone. Where it fails,
        by any error, the VM runs on. `ConflictError`: its state forbids it, or its backend cannot."""

    async def resume(self, vm_id: str) -> None:
        """Let a VM on disk run on; returns when it does. One that runs is left alone. `snapshot-damaged`, `-foreign`,
        `-missing`, `-version`: its memory cannot be had any more; by other errors it stays on disk."""

    def export_memory(self, vm_id: str) -> AsyncGenerator[bytes]:
        """A VM on disk, with its memory and disk, for `import_memory` of another engine; it stays as it is. `ConflictError`:
        it is not, or not any more before the end."""

    async def import_memory(self, order: VmOrder, stream: AsyncIterable[bytes]) -> None:
        """Have a VM on disk from what another engine exported; it is there when this returns. It keeps what its program
        knows, secrets too, and gets an address and a name of its own when it is woken. Where it fails, by any error,
        nothing is there. `snapshot-damaged`, `-foreign`, `-version`: that will not be any better the next time."""

    async def delete(self, vm_id: str) -> None:
        """Remove an ended VM and its disk; its log stays for 24 hours."""

    async def observe(self) -> tuple[VmView, ...]:
        """All VMs, asked of the host."""

    async def usage(self, vm_id: str) -> VmUsage:
        """What a VM takes of the host now; only asked when somebody wants to know."""

    async def changed(self) -> None:
        """Return when something may have changed since the last `observe`. Spurious returns are fine."""

    async def exec(self, vm_id: str, request: StreamRequest) -> ExecChannel: ...

    async def join(self, vm_id: str, request: StreamRequest) -> ExecChannel:
        """The workload's own input and output (`ATTACH`: until its end, and letting go leaves it alone), or a tree as a tar
        stream (`COPY_IN`, `COPY_OUT`: the exit code says how it went). `InvalidError`: no such path can be."""

    def logs(self, vm_id: str, *, follow: bool, tail: int, since: float) -> AsyncIterator[LogRecord]:
        """Lines of one VM, oldest first. With `follow` goes on until the VM has ended and all was read."""

    async def close(self, *, keep_vms: bool) -> None:
        """Let go. Without `keep_vms`, stop every VM gracefully first."""


@runtime_checkable
class VolumeEngine(Protocol):
    """An engine that also keeps volumes. All orders are idempotent by id and return when they are done: what is there
    already, as it was asked for, is left alone. A volume is a raw block device; its file system is made and grown by the
    guest.

    Raises core errors: `NotFoundError` (no such volume or snapshot), `ConflictError` (`volume-held`: a VM has it;
    `volume-exists`: with another size; `snapshot-has-clones`), `UnavailableError` (no room, or the host fails)."""

    async def volumes(self) -> tuple[VolumeView, ...]:
        """All volumes, asked of the host. One is held by a VM until that has ended."""

    async def create_volume(self, volume_id: str, size_bytes: int) -> None:
        """Make an empty one."""

    async def clone_volume(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        """Make one that begins as a copy of a snapshot, at least as large."""

    async def resize_volume(self, volume_id: str, size_bytes: int) -> None:
        """Make it larger, also while a VM has it. A smaller size changes nothing."""

    async def snapshot_volume(self, volume_id: str, snapshot_id: str, *, freeze: bool) -> None:
        """Keep what it holds at this moment: as after a power cut, or with the guest's file system at rest (`freeze`)."""

    async def restore_volume(self, volume_id: str, snapshot_id: str) -> None:
        """Put it back to what it was then, while no VM has it. What was written since is gone."""

    async def delete_volume(self, volume_id: str) -> None:
        """Destroy it with its snapshots, while no VM has it. One that is not there is no error."""

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Destroy a snapshot of which no volume is a clone. One that is not there is no error."""
