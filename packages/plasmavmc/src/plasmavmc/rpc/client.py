"""A client of the engine's gRPC services, in the engine's own types.

    async with connect("unix:/run/plasmavmc/plasmavmc.sock") as engine:
        vm = await engine.vms.create(spec, start=True)

Errors come back as what they were on the server (`PlasmaError` and its kinds, with code, brief and resolution); a server
that does not answer is an `UnavailableError`. Environment and files of a VM never come back.

Each write carries a request id of its own, so that a repetition by the transport does nothing twice; give `request_id`
to repeat one yourself.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from plasmavmc.errors import ForbiddenError, HostError, InvalidSpecError, UnavailableError
from plasmavmc.guest.api import ExecSession
from plasmavmc.rpc.api import ALL_VMS, Image, ImageOrder, ImageProgress, Node, VmFilter
from plasmavmc.rpc.conversions.images import UPLOAD_WANTED, image_from_pb, order_to_pb, progress_from_pb
from plasmavmc.rpc.conversions.nodes import node_from_pb
from plasmavmc.rpc.conversions.streams import copy_target_to_pb, line_from_pb
from plasmavmc.rpc.conversions.values import duration_to_pb, scope_to_pb, time_to_pb
from plasmavmc.rpc.conversions.vms import copy_to_pb, filter_to_pb, spec_to_pb, vm_from_pb
from plasmavmc.rpc.errors import error_of
from plasmavmc.rpc.remote_exec import RemoteExec
from plasmavmc.rpc.v1 import image_pb2, node_pb2, types_pb2, vm_pb2
from plasmavmc.rpc.v1.image_pb2_grpc import ImageServiceStub
from plasmavmc.rpc.v1.node_pb2_grpc import NodeServiceStub
from plasmavmc.rpc.v1.vm_pb2_grpc import VmServiceStub
from plasmavmc.types import MIB, CopyTarget, ExecSpec, ForkIdentity, LogLine, Scope, TerminalSize, Vm, VmSpec

MAX_ANSWER = 16 * MIB
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_ANSWER),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_LOOPBACK = ("127.0.0.1", "[::1]", "localhost")
_UPLOAD_CHUNK = MIB

Answer = TypeVar("Answer")
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """The authority that the server's certificate is from, and for mutual TLS our certificate and key. PEM files."""

    certificate: Path | None
    key: Path | None
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


@asynccontextmanager
async def connect(
    address: str, *, token: str = "", tls: ClientTls | None = None, timeout_s: float = 10.0
) -> AsyncIterator[EngineClient]:
    """A connection to `unix:PATH`, or to `host:port` with `tls`; without it only to this machine's loopback, and with a
    token. The server has answered when it is given out.

    Raises:
        InvalidSpecError: `address`, it is neither.
        UnavailableError: nobody answers there within `timeout_s`.
        ForbiddenError: the socket is not ours to open.
        HostError: a file of `tls` cannot be read.
    """
    async with _channel(address, tls, clear=bool(token)) as channel:
        with _translated():
            await cast("Any", HealthStub(channel)).Check(HealthCheckRequest(), timeout=timeout_s)
        yield EngineClient(channel, (("authorization", f"Bearer {token}"),) if token else ())


def _channel(address: str, tls: ClientTls | None, *, clear: bool) -> grpc.aio.Channel:
    path = address.removeprefix("unix:")
    if path != address:
        _check_socket(Path(path))
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidSpecError("address", f"{address[:100]!r} is neither unix:PATH nor host:port")
    if tls is None and clear and host in _LOOPBACK:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    if tls is None:
        words = "a server is reached over TCP with certificates only, or with a token on this machine"
        raise InvalidSpecError("address", words)
    named = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
    return grpc.aio.secure_channel(address, _credentials(tls), options=(*_OPTIONS, *named))


def _check_socket(path: Path) -> None:
    """gRPC would only say that it could not connect."""
    if not path.exists():
        raise UnavailableError(
            "server-unreachable", f"there is no socket {path}", resolution="Start the server: plasmavmc serve"
        )
    if not os.access(path, os.W_OK):
        raise ForbiddenError(
            "socket-forbidden",
            f"you may not open the socket {path}",
            resolution="Ask for an entry in the server's policy, or run as root.",
        )


def _credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    try:
        authority = tls.authority.read_bytes()
        own = [path.read_bytes() for path in (tls.key, tls.certificate) if path is not None]
    except OSError as error:
        raise HostError("tls-files", f"{error.filename} cannot be read: {error.strerror}") from error
    return grpc.ssl_channel_credentials(authority, *own)


async def _answers(call: grpc.aio.Call, answers: AsyncIterable[Answer]) -> AsyncGenerator[Answer, None]:
    """What a stream tells, as long as somebody reads it: then the call ends, too."""
    try:
        with _translated():
            async for answer in answers:
                yield answer
    finally:
        call.cancel()


async def _is_wanted(call: grpc.aio.Call) -> bool:
    """Whether the server goes on to listen, which it says in its header."""
    name, value = UPLOAD_WANTED
    with suppress(grpc.aio.AioRpcError):
        header = await call.initial_metadata()
        return header.get(name) == value
    return False


@contextmanager
def _translated() -> Iterator[None]:
    """What the server said, as the engine's errors."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


def _id(request_id: str) -> str:
    return request_id or secrets.token_hex(16)


class VmClient:
    """VMs."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._stub = VmServiceStub(channel)
        self._metadata = metadata

    async def create(self, spec: VmSpec, *, start: bool = False, request_id: str = "") -> Vm:
        """An empty `spec.id` or `spec.name` is chosen by the server; an empty scope is the caller's only one."""
        message = spec_to_pb(spec, secrets=True)
        request = vm_pb2.CreateVmRequest(request_id=_id(request_id), spec=message, start=start)
        with _translated():
            return vm_from_pb(await self._stub.CreateVm(request, metadata=self._metadata))

    async def start(self, vm_id: str, *, request_id: str = "") -> Vm:
        request = vm_pb2.StartVmRequest(request_id=_id(request_id), vm_id=vm_id)
        with _translated():
            return vm_from_pb(await self._stub.StartVm(request, metadata=self._metadata))

    async def stop(self, vm_id: str, grace_s: float | None = None, *, request_id: str = "") -> Vm:
        """Returns when it has ended."""
        grace = None if grace_s is None else duration_to_pb(grace_s)
        request = vm_pb2.StopVmRequest(request_id=_id(request_id), vm_id=vm_id, grace=grace)
        with _translated():
            return vm_from_pb(await self._stub.StopVm(request, metadata=self._metadata))

    async def restart(self, vm_id: str, *, request_id: str = "") -> Vm:
        request = vm_pb2.RestartVmRequest(request_id=_id(request_id), vm_id=vm_id)
        with _translated():
            return vm_from_pb(await self._stub.RestartVm(request, metadata=self._metadata))

    async def suspend(self, vm_id: str, *, request_id: str = "") -> Vm:
        """Cancelled, it wakes the VM again."""
        request = vm_pb2.SuspendVmRequest(request_id=_id(request_id), vm_id=vm_id)
        with _translated():
            return vm_from_pb(await self._stub.SuspendVm(request, metadata=self._metadata))

    async def resume(self, vm_id: str, *, request_id: str = "") -> Vm:
        request = vm_pb2.ResumeVmRequest(request_id=_id(request_id), vm_id=vm_id)
        with _translated():
            return vm_from_pb(await self._stub.ResumeVm(request, metadata=self._metadata))

    async def fork(self, vm_id: str, copies: Sequence[ForkIdentity], *, request_id: str = "") -> tuple[Vm, ...]:
        """Empty ids and names are chosen by the server."""
        messages = [copy_to_pb(identity) for identity in copies]
        request = vm_pb2.ForkVmRequest(request_id=_id(request_id), vm_id=vm_id, copies=messages)
        with _translated():
            answer = await self._stub.ForkVm(request, metadata=self._metadata)
        return tuple(vm_from_pb(vm) for vm in answer.vms)

    async def delete(self, vm_id: str, *, request_id: str = "") -> None:
        request = vm_pb2.DeleteVmRequest(request_id=_id(request_id), vm_id=vm_id)
        with _translated():
            await self._stub.DeleteVm(request, metadata=self._metadata)

    async def get(self, vm_id: str) -> Vm:
        """With what it uses now, and the last lines of its output where it has ended."""
        with _translated():
            return vm_from_pb(await self._stub.GetVm(vm_pb2.GetVmRequest(vm_id=vm_id), metadata=self._metadata))

    async def list_vms(self, chosen: VmFilter = ALL_VMS, *, page_size: int = 0) -> AsyncIterator[Vm]:
        """All that match; pages are fetched as they are needed."""
        request = vm_pb2.ListVmsRequest(filter=filter_to_pb(chosen), page_size=page_size)
        while True:
            with _translated():
                answer = await self._stub.ListVms(request, metadata=self._metadata)
            for vm in answer.vms:
                yield vm_from_pb(vm)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def watch(self, chosen: VmFilter = ALL_VMS, *, resume_token: str = "") -> AsyncIterator[WatchEvent]:
        """A snapshot, then changes, until it is closed or the server goes away."""
        request = vm_pb2.WatchVmsRequest(filter=filter_to_pb(chosen), resume_token=resume_token)
        call = self._stub.WatchVms(request, metadata=self._metadata)
        async with aclosing(_answers(call, call)) as answers:
            async for answer in answers:
                yield _event(answer)

    async def exec(self, vm_id: str, spec: ExecSpec) -> ExecSession:
        """A running command: send, send_eof, resize, signal, output(), aclose."""
        return await RemoteExec.start(self._stub.ExecVm(metadata=self._metadata), vm_id, spec)

    async def attach(self, vm_id: str, size: TerminalSize | None = None) -> ExecSession:
        """The workload's own stdin and output, from before its start to its end; `aclose` leaves it alone."""
        return await RemoteExec.attach(self._stub.AttachVm(metadata=self._metadata), vm_id, size)

    async def copy_in(self, vm_id: str, target: CopyTarget, archive: AsyncIterator[bytes]) -> None:
        """Copy a tree into a running VM: a tar stream, the first component of whose names is the tree's own."""

        admitted = asyncio.Event()

        async def requests() -> AsyncIterator[vm_pb2.CopyIntoVmRequest]:
            yield vm_pb2.CopyIntoVmRequest(start=copy_target_to_pb(vm_id, target))
            await admitted.wait()  # a refusal is told by the answer; a write that meets it would hide it
            async for chunk in archive:
                for begin in range(0, len(chunk), _UPLOAD_CHUNK):
                    yield vm_pb2.CopyIntoVmRequest(chunk=chunk[begin : begin + _UPLOAD_CHUNK])

        call = self._stub.CopyIntoVm(requests(), metadata=self._metadata)
        async with aclosing(_answers(call, call)) as answers:
            async for _ in answers:
                admitted.set()

    async def copy_out(self, vm_id: str, path: str) -> AsyncIterator[bytes | str]:
        """Copy a tree out of a running VM: a tar stream in pieces, and words (str) about what was left out."""
        call = self._stub.CopyFromVm(vm_pb2.CopyFromVmRequest(vm_id=vm_id, path=path), metadata=self._metadata)
        async with aclosing(_answers(call, call)) as answers:
            async for answer in answers:
                yield answer.warning if answer.HasField("warning") else answer.chunk

    async def logs(
        self, vm_id: str, *, follow: bool = False, tail: int = 100, since: float = 0.0
    ) -> AsyncIterator[LogLine]:
        """The last lines, then new ones where `follow` is set, until the VM ends."""
        moment = time_to_pb(since) if since else None
        request = vm_pb2.StreamLogsRequest(vm_id=vm_id, follow=follow, tail=tail, since=moment)
        call = self._stub.StreamLogs(request, metadata=self._metadata)
        async with aclosing(_answers(call, call)) as lines:
            async for line in lines:
                yield line_from_pb(line)


def _event(answer: vm_pb2.WatchVmsResponse) -> WatchEvent:
    kind, token = answer.WhichOneof("event"), answer.resume_token
    match kind:
        case "vm":
            return WatchEvent(token, vm=vm_from_pb(answer.vm))
        case "deleted_vm_id":
            return WatchEvent(token, deleted_vm_id=answer.deleted_vm_id)
        case _:
            return WatchEvent(
                token, snapshot_begin=kind == "snapshot_begin", snapshot_complete=kind == "snapshot_complete"
            )


class ImageClient:
    """Images. No scope: the caller's only one, and what all may use."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._stub = ImageServiceStub(channel)
        self._metadata = metadata

    async def register(
        self, order: ImageOrder, chunks: AsyncIterator[bytes] | None = None, *, request_id: str = ""
    ) -> AsyncIterator[ImageProgress | Image]:
        """Progress, and last the image. `chunks` are the bytes of an upload."""
        start = image_pb2.RegisterImageRequest(start=order_to_pb(order, _id(request_id)))
        failure: list[Exception] = []

        async def requests() -> AsyncIterator[image_pb2.RegisterImageRequest]:
            yield start
            if chunks is None or not await _is_wanted(call):
                return
            try:
                async for chunk in chunks:
                    for begin in range(0, len(chunk), _UPLOAD_CHUNK):
                        yield image_pb2.RegisterImageRequest(chunk=chunk[begin : begin + _UPLOAD_CHUNK])
            except Exception as error:
                failure.append(error)
                raise

        call = self._stub.RegisterImage(requests(), metadata=self._metadata)
        try:
            async with aclosing(_answers(call, call)) as answers:
                async for answer in answers:
                    if answer.HasField("image"):
                        yield image_from_pb(answer.image)
                    else:
                        yield progress_from_pb(answer.progress)
        except asyncio.CancelledError:
            if failure:  # gRPC cancels a call whose chunks cannot be had; nobody cancelled us
                raise failure[0] from None
            raise

    async def get(self, image: str, scope: Scope | None = None) -> Image:
        """By digest or name."""
        request = image_pb2.GetImageRequest(scope=_scope(scope), image=image)
        with _translated():
            return image_from_pb(await self._stub.GetImage(request, metadata=self._metadata))

    async def list_images(self, scope: Scope | None = None, *, page_size: int = 0) -> AsyncIterator[Image]:
        """All that the caller may see, or those of one scope."""
        request = image_pb2.ListImagesRequest(scope=_scope(scope), page_size=page_size)
        while True:
            with _translated():
                answer = await self._stub.ListImages(request, metadata=self._metadata)
            for image in answer.images:
                yield image_from_pb(image)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def delete(self, image: str, scope: Scope | None = None, *, request_id: str = "") -> None:
        """A name alone is taken away while others point to the image."""
        request = image_pb2.DeleteImageRequest(request_id=_id(request_id), scope=_scope(scope), image=image)
        with _translated():
            await self._stub.DeleteImage(request, metadata=self._metadata)


def _scope(scope: Scope | None) -> types_pb2.Scope | None:
    return None if scope is None else scope_to_pb(scope)


class NodeClient:
    """Hosts. No id: the only one."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._stub = NodeServiceStub(channel)
        self._metadata = metadata

    async def get(self, node_id: str = "") -> Node:
        request = node_pb2.GetNodeRequest(node_id=node_id)
        with _translated():
            return node_from_pb(await self._stub.GetNode(request, metadata=self._metadata))

    async def list_nodes(self, *, page_size: int = 0) -> AsyncIterator[Node]:
        request = node_pb2.ListNodesRequest(page_size=page_size)
        while True:
            with _translated():
                answer = await self._stub.ListNodes(request, metadata=self._metadata)
            for node in answer.nodes:
                yield node_from_pb(node)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def watch(self) -> AsyncIterator[Node]:
        """Each node as it is, then as it changes."""
        call = self._stub.WatchNodes(node_pb2.WatchNodesRequest(), metadata=self._metadata)
        async with aclosing(_answers(call, call)) as nodes:
            async for node in nodes:
                yield node_from_pb(node)

    async def cordon(self, node_id: str = "", *, request_id: str = "") -> Node:
        request = node_pb2.CordonNodeRequest(request_id=_id(request_id), node_id=node_id)
        with _translated():
            return node_from_pb(await self._stub.CordonNode(request, metadata=self._metadata))

    async def uncordon(self, node_id: str = "", *, request_id: str = "") -> Node:
        request = node_pb2.UncordonNodeRequest(request_id=_id(request_id), node_id=node_id)
        with _translated():
            return node_from_pb(await self._stub.UncordonNode(request, metadata=self._metadata))

    async def drain(self, node_id: str = "", *, deadline_s: int = 0, request_id: str = "") -> Node:
        """Returns when nothing runs there any more, or the deadline is over. 0: 300 s."""
        request = node_pb2.DrainNodeRequest(request_id=_id(request_id), node_id=node_id, deadline_seconds=deadline_s)
        with _translated():
            return node_from_pb(await self._stub.DrainNode(request, metadata=self._metadata))


class EngineClient:
    """What `connect` gives out."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata = ()) -> None:
        self.vms = VmClient(channel, metadata)
        self.images = ImageClient(channel, metadata)
        self.nodes = NodeClient(channel, metadata)
