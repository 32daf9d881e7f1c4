"""Port: what an agent needs of a VM engine, in the platform's words.

`run` and `stop` are orders, answered at once; what became of them is seen by `observe`. `suspend` and `resume` return when
they are done. All are idempotent by VM id.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from shellwego.core.assignments import Workload
from shellwego.core.destinations import Destination
from shellwego.core.names import NetworkNames
from shellwego.core.nodes import NodeFacts
from shellwego.core.openings import Ingress
from shellwego.core.peers import PeerNode
from shellwego.core.publishing import OpenPort
from shellwego.core.sensitive import Sensitive
from shellwego.core.vms import NetworkUsage, VmPhase, VmUsage, VmView
from shellwego.core.volumes import VolumeView
from shellwego.ports.streams import StreamRequest

__all__ = [
    "Engine",
    "ExecChannel",
    "ExecData",
    "ExecDone",
    "FencingEngine",
    "LogRecord",
    "NetworkUsage",
    "SnapshotSource",
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

    async def connect(self, peers: Sequence[PeerNode], key_step: int = 0) -> tuple[PeerNode, ...]:
        """Have a way to the VMs of these nodes, and let them, and no others, open connections to VMs here. Returns those
        that this host has no way to. Before the start they are only noted, so that nobody is shut out by a restart.
        `key_step`: how far the exchange of keys with them is (`core.peers`)."""

    async def name(self, networks: Sequence[NetworkNames]) -> None:
        """Let guests find these names, each those of its own network, and no others. They last: also while nobody is there
        who could tell them."""

    async def publish(self, ports: Sequence[OpenPort]) -> None:
        """Have this host answer at these ports, and at no others: by its own VMs where it has any of them, else by those of
        other nodes. What its operator does not let be published is left out, and told among the facts' warnings. They stand
        while nobody is there; before the start they are only noted, so that nothing is cut by a restart."""

    async def start(self) -> None:
        """Adopt what runs, sweep what carries our names and is not ours, begin to watch."""

    async def facts(self) -> NodeFacts:
        """Capacity, backends, warnings: as they are now."""

    async def run(self, order: VmOrder) -> None: ...

    async def stop(self, vm_id: str, grace_s: float) -> None: ...

    async def restrict(self, vm_id: str, egress: Sequence[Destination] | None) -> None:
        """Have a VM open connections to these destinations only, or (None) to whatever is not closed to every VM: those that
        are open are held to it as well. It begins with those of its workload. Returns when it is in force."""

    async def screen(self, vm_id: str, identity: str, ingress: Ingress) -> None:
        """Have a VM be known as the app's of this id, and let VMs of its project open to it what its ingress says only, or
        (None) anything; else as `restrict`."""

    async def recognize(self, known: Mapping[str, Sequence[str]]) -> None:
        """Know VMs of other nodes, and no others, by the ids of their apps: private addresses by id. Who is not known gets
        in as anybody of the project does. Before the start they are only noted, so that nobody is shut out by a restart."""

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

    async def traffic(self) -> Mapping[str, NetworkUsage]:
        """What has passed the interfaces of all VMs here, by VM id, but for those whose frames are not counted."""

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


class SnapshotSource(Protocol):
    """What a snapshot holds, as its host stores it: where the volume is sealed, that is ciphertext. Raises
    `UnavailableError` where it cannot be read."""

    @property
    def size_bytes(self) -> int:
        """As it is stored."""

    @property
    def volume_bytes(self) -> int:
        """As a VM sees it."""

    @property
    def sealed(self) -> bool: ...

    async def next_data(self, offset: int) -> tuple[int, int] | None:
        """The next run that may be other than zeros, at or after `offset`: its first byte, and the one after its last; None:
        there is none."""

    async def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there; fewer only at the end."""


@runtime_checkable
class VolumeEngine(Protocol):
    """An engine that also keeps volumes. All orders are idempotent by id and return when they are done: what is there
    already, as it was asked for, is left alone. A volume is a raw block device; its file system is made and grown by the
    guest. Of one with a key only ciphertext is stored; its snapshots and clones have the same key. Keys are in memory alone:
    an engine that starts has none, and gives no VM a volume without (`volume-locked`).

    Raises core errors: `NotFoundError` (no such volume or snapshot), `ConflictError` (`volume-held`: a VM has it;
    `volume-exists`: of another size or kind; `wrong-key`; `snapshot-has-clones`), `UnavailableError` (no room, or the host
    fails)."""

    async def volumes(self) -> tuple[VolumeView, ...]:
        """All volumes, asked of the host. One is held by a VM until that has ended."""

    async def create_volume(self, volume_id: str, size_bytes: int, key: Sensitive | None = None) -> None:
        """Make an empty one, encrypted where a key (32 bytes) is given."""

    async def unlock_volume(self, volume_id: str, key: Sensitive) -> None:
        """Give the key of an encrypted one. `ConflictError`: it is another's (`wrong-key`), or it is `not-encrypted`."""

    async def clone_volume(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        """Make one that begins as a copy of a snapshot, at least as large."""

    def read_snapshot(self, snapshot_id: str) -> AbstractAsyncContextManager[SnapshotSource]:
        """Open what a snapshot holds, for the block."""

    async def fill_volume(
        self,
        volume_id: str,
        stored_bytes: int,
        content: AsyncIterable[tuple[int, bytes]],
        key: Sensitive | None = None,
    ) -> None:
        """Make one of what was read of a snapshot, perhaps on another host: places and what is there, zeros elsewhere. Of an
        encrypted one that is ciphertext, and `key` the one that it has. Where it ends before its end, nothing is there. One
        that is there already, of this size, is left alone."""

    async def resize_volume(self, volume_id: str, size_bytes: int) -> None:
        """Make it larger, also while a VM has it. A smaller size changes nothing."""

    async def snapshot_volume(self, volume_id: str, snapshot_id: str, *, freeze: bool) -> None:
        """Keep what it holds at this moment: as after a power cut, or with the guest's file system at rest (`freeze`)."""

    async def restore_volume(self, volume_id: str, snapshot_id: str) -> None:
        """Put it back to what it was then, while no VM has it. What was written since is gone."""

    def send_snapshot(self, snapshot_id: str, since: str = "") -> AsyncGenerator[bytes]:
        """A snapshot for `receive_snapshot` of another engine, of any driver; with `since`, an earlier one of the same
        volume, only what differs from that. What is encrypted goes as ciphertext, with no key."""

    async def receive_snapshot(
        self, volume_id: str, snapshot_id: str, stream: AsyncIterable[bytes], since: str = ""
    ) -> str:
        """Take what `send_snapshot` gave: the volume then is what the snapshot was, and has it under the same id. Sent
        whole, the volume is new here; with `since` it has that one as its youngest snapshot, and no VM has it. Returns
        the SHA-256 over what it holds, which was checked against the sender's. Where it ends before its end, by any
        error, there is no such snapshot, and no new volume. One that is there already is taken for the same: the volume
        is made what it was, the stream is not read, and nothing is returned (the empty text).

        `InvalidError`: the stream is none, is damaged, or what differs does not go with what is here."""

    async def delete_volume(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        """Destroy it, while no VM has it. One that is not there is no error. `ConflictError`, `volume-has-snapshots`: those
        go first; or with it, at once, so that an agent that ends meanwhile leaves all of them or nothing."""

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Destroy a snapshot of which no volume is a clone. One that is not there is no error."""


@runtime_checkable
class FencingEngine(Protocol):
    """An engine whose host ends what has a volume when its time is over."""

    async def fence_volumes(self, until: Mapping[str, float]) -> None:
        """Say of these volumes, and no others, until which moment of the monotonic clock VMs here may have them. What has
        one then is killed within a second, also where whoever said this was killed, or stands still; from then on none
        begins with it (`ConflictError` `volume-fenced`). An engine that starts has been told nothing, and VMs that run then
        keep the moments that were said before. Raises `UnavailableError`: the host does not answer."""
