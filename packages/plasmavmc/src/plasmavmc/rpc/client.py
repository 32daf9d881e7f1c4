"""A client of the engine's gRPC services, in the engine's own types.

    async with connect("unix:/run/plasmavmc/plasmavmc.sock") as engine:
        vm = await engine.vms.create(spec, start=True)

Errors come back as what they were on the server (`PlasmaError` and its kinds, with code, brief and resolution); a server
that does not answer is an `UnavailableError`. Environment and files of a VM never come back.

Each write carries a request id of its own, so that a repetition by the transport does nothing twice; give `request_id`
to repeat one yourself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from plasmavmc.guest.api import ExecSession
from plasmavmc.rpc.api import ALL_VMS, Image, ImageOrder, ImageProgress, Node, VmFilter
from plasmavmc.types import ExecSpec, ForkIdentity, LogLine, Scope, Vm, VmSpec


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Mutual TLS: our certificate and key, and the authority that the server's certificate is from. PEM files."""

    certificate: Path
    key: Path
    authority: Path
    server_name: str = ""
    """Where the certificate names another host than the address does."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """What `watch` yields. Exactly one of the four is told."""

    resume_token: str
    """Give it to `watch` to go on from here; empty within a snapshot."""
    vm: Vm | None = None
    deleted_vm_id: str = ""
    snapshot_begin: bool = False
    snapshot_complete: bool = False


def connect(
    address: str, *, token: str = "", tls: ClientTls | None = None, timeout_s: float = 10.0
) -> AbstractAsyncContextManager[EngineClient]:
    """A connection to `unix:PATH` or `host:port` (with `tls`); one server answers within `timeout_s`, or
    `UnavailableError`."""
    raise NotImplementedError


class EngineClient(Protocol):
    vms: VmClient
    images: ImageClient
    nodes: NodeClient


class VmClient(Protocol):
    async def create(self, spec: VmSpec, *, start: bool = False, request_id: str = "") -> Vm:
        """An empty `spec.id` or `spec.name` is chosen by the server; an empty scope is the caller's only one."""

    async def start(self, vm_id: str, *, request_id: str = "") -> Vm: ...
    async def stop(self, vm_id: str, grace_s: float | None = None, *, request_id: str = "") -> Vm: ...
    async def restart(self, vm_id: str, *, request_id: str = "") -> Vm: ...
    async def suspend(self, vm_id: str, *, request_id: str = "") -> Vm: ...
    async def resume(self, vm_id: str, *, request_id: str = "") -> Vm: ...
    async def fork(self, vm_id: str, copies: Sequence[ForkIdentity], *, request_id: str = "") -> tuple[Vm, ...]: ...
    async def delete(self, vm_id: str, *, request_id: str = "") -> None: ...
    async def get(self, vm_id: str) -> Vm: ...
    def list_vms(self, chosen: VmFilter = ALL_VMS, *, page_size: int = 0) -> AsyncIterator[Vm]:
        """All that match; pages are fetched as they are needed."""

    def watch(self, chosen: VmFilter = ALL_VMS, *, resume_token: str = "") -> AsyncIterator[WatchEvent]: ...
    async def exec(self, vm_id: str, spec: ExecSpec) -> ExecSession:
        """A running command. `ExecSession`: send, send_eof, resize, signal, output(), aclose."""

    def logs(
        self, vm_id: str, *, follow: bool = False, tail: int = 100, since: float = 0.0
    ) -> AsyncIterator[LogLine]: ...


class ImageClient(Protocol):
    def register(
        self, order: ImageOrder, chunks: AsyncIterator[bytes] | None = None, *, request_id: str = ""
    ) -> AsyncIterator[ImageProgress | Image]:
        """Progress, and last the image. `chunks` are the bytes of an upload."""

    async def get(self, image: str, scope: Scope | None = None) -> Image: ...
    def list_images(self, scope: Scope | None = None, *, page_size: int = 0) -> AsyncIterator[Image]: ...
    async def delete(self, image: str, scope: Scope | None = None, *, request_id: str = "") -> None: ...


class NodeClient(Protocol):
    async def get(self, node_id: str = "") -> Node: ...
    def list_nodes(self, *, page_size: int = 0) -> AsyncIterator[Node]: ...
    def watch(self) -> AsyncIterator[Node]: ...
    async def cordon(self, node_id: str = "", *, request_id: str = "") -> Node: ...
    async def uncordon(self, node_id: str = "", *, request_id: str = "") -> Node: ...
    async def drain(self, node_id: str = "", *, deadline_s: int = 0, request_id: str = "") -> Node: ...
