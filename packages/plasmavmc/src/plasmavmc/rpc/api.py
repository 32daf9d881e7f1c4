"""What the gRPC services need of an engine, in the engine's own types. Implemented by `server.engine` over this host's
`VmManager`; a control plane over many hosts is another implementation.

Theory. Whoever calls these protocols has asked the authorizer: an implementation checks no rights. It gets a `Reach`
where it must leave out of a list what the caller may not see. All of them raise `PlasmaError`: `NotFoundError` for what
does not exist, `ConflictError` for a state that forbids the move, `CapacityError`, `InvalidSpecError` with the path of the
field in the engine's type.

An order is for the VM that has the id as the order is given. One that waits must not act on another project's, which may
have got the id meanwhile: nobody asked whether the caller may do that.

Lists are ordered by key (`key_of_image`, a VM's id) and cut by "after this key, so many", so that a page stays right
while things come and go.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from plasmavmc.backends import BackendStatus, GuestKind
from plasmavmc.guest.api import ExecSession
from plasmavmc.policy import Egress, Ingress
from plasmavmc.rpc.access import Reach
from plasmavmc.states import VmState
from plasmavmc.types import CopyTarget, ExecSpec, ForkIdentity, LogLine, Scope, TerminalSize, Vm, VmSpec

# VMs


@dataclass(frozen=True, slots=True)
class VmFilter:
    """Which VMs are meant."""

    states: frozenset[VmState] = frozenset()
    """Any of these; none means all."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """All of these."""
    scope: Scope | None = None

    def admits(self, vm: Vm) -> bool:
        """Whether a VM is meant."""
        return (
            (not self.states or vm.status.state in self.states)
            and (self.scope is None or vm.spec.scope == self.scope)
            and all(vm.spec.labels.get(name) == value for name, value in self.labels.items())
        )


ALL_VMS = VmFilter()


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the history of VMs. It means something to the server of this `epoch` only."""

    epoch: str
    revision: int


@dataclass(frozen=True, slots=True)
class SnapshotBegun:
    """Forget what you have: all VMs follow."""


@dataclass(frozen=True, slots=True)
class SnapshotVm:
    """A VM of the snapshot."""

    vm: Vm


@dataclass(frozen=True, slots=True)
class SnapshotDone:
    """That was all; `position` is where changes go on."""

    position: Position


@dataclass(frozen=True, slots=True)
class VmChange:
    """A VM became `after`; None: it is gone. `before` is None where it is new."""

    before: Vm | None
    after: Vm | None
    position: Position


VmEvent = SnapshotBegun | SnapshotVm | SnapshotDone | VmChange


class VmApi(Protocol):
    """VMs."""

    async def create(self, spec: VmSpec, *, start: bool) -> Vm:
        """Take note of a VM, and start it where asked. The same id with the same spec again changes nothing.

        `spec.image` is a digest, or a name that is looked up in the VM's scope and then among what all may use.
        """

    async def start(self, vm_id: str) -> Vm:
        """Let a VM begin; one that has begun and not ended is left alone."""

    async def stop(self, vm_id: str, grace_s: float | None) -> Vm:
        """End a VM gracefully; returns when it has ended. None: the specification's grace."""

    async def restart(self, vm_id: str) -> Vm:
        """End a VM and run its specification anew, with a fresh writable layer, under the same id."""

    async def suspend(self, vm_id: str) -> Vm:
        """Put a running VM on disk; returns when it is there. Cancelled, it wakes the VM again."""

    async def resume(self, vm_id: str) -> Vm:
        """Wake a suspended VM."""

    async def restrict(self, vm_id: str, egress: Egress) -> Vm:
        """Change what a VM may open connections to; what is open is held to it as well. Returns when it is in force."""

    async def screen(self, vm_id: str, identity: str, ingress: Ingress) -> Vm:
        """Change what a VM is known by, and what VMs of its network may open to it; else as `restrict`."""

    async def fork(self, vm_id: str, copies: Sequence[ForkIdentity]) -> tuple[Vm, ...]:
        """Copies of a running VM, in the order asked, all or none."""

    async def delete(self, vm_id: str) -> None:
        """End a VM now and remove it. An absent one is fine."""

    async def scope_of(self, vm_id: str) -> Scope:
        """Whose VM it is."""

    async def get(self, vm_id: str) -> Vm:
        """A VM as it is now, with what it uses."""

    async def list_vms(self, chosen: VmFilter, reach: Reach, *, after: str, limit: int) -> Sequence[Vm]:
        """VMs within reach in the order of their ids, those above `after` only, with what they use."""

    def watch(self, after: Position | None) -> AsyncGenerator[VmEvent]:
        """Every change since a position; a snapshot first without one, or where it is no longer (or never was) known.

        A reader that falls too far behind gets a snapshot again. All VMs are told: the caller chooses.
        """

    async def exec(self, vm_id: str, spec: ExecSpec) -> ExecSession:
        """Start a command in a running VM."""

    async def attach(self, vm_id: str, size: TerminalSize | None) -> ExecSession:
        """Join the workload's own stdin and output, from before its start to its end. Letting go leaves it alone."""

    async def copy_in(self, vm_id: str, target: CopyTarget) -> ExecSession:
        """Take a tree into a running VM: a tar stream on the session's stdin; its exit code says how it went."""

    async def copy_out(self, vm_id: str, path: str) -> ExecSession:
        """Give a tree out of a running VM: a tar stream on the session's stdout."""

    def logs(self, vm_id: str, *, follow: bool, tail: int, since: float) -> AsyncIterator[LogLine]:
        """What a VM wrote: the last `tail` lines not older than `since`, then new ones where `follow` is set."""


# Images


@dataclass(frozen=True, slots=True)
class Image:
    """An image as a scope has it. The same content may be registered in several scopes."""

    scope: Scope
    digest: str
    names: tuple[str, ...]
    kind: GuestKind | None
    """None: it was not looked into."""
    size_bytes: int
    created: float
    """When it was registered, in seconds since the epoch."""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    workdir: str = "/"
    exposed_ports: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    disk_bytes: int = 0
    """What it takes on the disk: itself, and the layers that it was made from. Layers that images share count for each."""
    used_at: float = field(default=0.0, compare=False)
    """When it came, or a VM was last started from it, in seconds since the epoch."""


def key_of_image(image: Image) -> str:
    """What lists of images are ordered by."""
    return f"{image.scope.org}/{image.scope.project}/{image.digest}"


class Upload(StrEnum):
    """What the bytes of an upload are."""

    TAR = "tar"
    """What `docker save` writes, or an OCI image layout."""
    WASM = "wasm"


@dataclass(frozen=True, slots=True)
class RegistryLogin:
    """Used for one call and never kept."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageOrder:
    """An image that is to be registered: from a registry by `reference`, or from uploaded bytes."""

    scope: Scope
    source: str | Upload
    """A reference with its registry, or what is uploaded."""
    name: str = ""
    """Under which name it is kept. Empty: the reference itself, or for an upload the digest alone."""
    login: RegistryLogin | None = None
    principal: str = ""
    """Who orders it: each may have so many under way."""


@dataclass(frozen=True, slots=True)
class ImageProgress:
    stage: str
    """`upload`, `resolve`, `fetch`, `build`."""
    done_bytes: int = 0
    total_bytes: int = 0
    """0 where it is not known."""


class ImageApi(Protocol):
    """Images."""

    def register(self, order: ImageOrder, chunks: AsyncIterator[bytes]) -> AsyncGenerator[ImageProgress | Image]:
        """Progress, and last the image. `chunks` are the upload's bytes."""

    async def get_image(self, scope: Scope, image: str) -> Image:
        """An image by digest or name: that of the scope, else the one that all may use."""

    async def list_images(self, scope: Scope | None, reach: Reach, *, after: str, limit: int) -> Sequence[Image]:
        """Images within reach (of one scope only, where it is given) by `key_of_image`, those above `after` only."""

    async def delete_image(self, scope: Scope, image: str) -> None:
        """Remove an image of this very scope; a name alone is taken away while others point to it.

        Raises:
            ConflictError: `image-in-use`, a VM is made from it.
        """


# Nodes


class Scheduling(StrEnum):
    OPEN = "open"
    CORDONED = "cordoned"
    DRAINING = "draining"
    DRAINED = "drained"


@dataclass(frozen=True, slots=True)
class Amount:
    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    vms: int = 0


KERNEL_LABEL = "guest-kernel"
"""The label of a host by which it tells the kernel that its VMs are started with."""
VOLUMES_LABEL = "volumes"
"""Likewise the driver of volumes in use."""


@dataclass(frozen=True, slots=True)
class Node:
    """A host."""

    id: str
    name: str
    scheduling: Scheduling
    capacity: Amount
    promised: Amount
    """To VMs that have not ended; of the disk also what the memory of sleeping ones may take there."""
    backends: tuple[BackendStatus, ...]
    version: str
    labels: Mapping[str, str] = field(default_factory=dict)


class NodeApi(Protocol):
    """Hosts. An empty id means the only one."""

    async def get_node(self, node_id: str) -> Node: ...

    async def list_nodes(self, *, after: str, limit: int) -> Sequence[Node]:
        """Nodes in the order of their ids, those above `after` only."""

    def watch_nodes(self) -> AsyncGenerator[Node]:
        """Each node as it is, then as it changes. A slow reader skips states between."""

    async def cordon(self, node_id: str) -> Node:
        """No new VM is started there."""

    async def uncordon(self, node_id: str) -> Node: ...

    async def drain(self, node_id: str, deadline_s: float) -> Node:
        """Cordon, and end what runs; returns when nothing does or the deadline is over."""
