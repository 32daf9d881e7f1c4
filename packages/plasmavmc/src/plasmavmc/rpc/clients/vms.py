"""A client of VmService: VMs, in the engine's own types."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from plasmavmc.guest.api import ExecSession
from plasmavmc.policy import Egress, Ingress
from plasmavmc.rpc.api import ALL_VMS, VmFilter
from plasmavmc.rpc.clients.calls import UPLOAD_CHUNK, Metadata, answers_of, request_id_of, translated
from plasmavmc.rpc.conversions.egress import egress_to_pb
from plasmavmc.rpc.conversions.ingress import ingress_to_pb
from plasmavmc.rpc.conversions.specs import spec_to_pb
from plasmavmc.rpc.conversions.streams import copy_target_to_pb, line_from_pb
from plasmavmc.rpc.conversions.values import duration_to_pb, time_to_pb
from plasmavmc.rpc.conversions.vms import copy_to_pb, filter_to_pb, vm_from_pb
from plasmavmc.rpc.remote_exec import RemoteExec
from plasmavmc.rpc.v1 import vm_pb2
from plasmavmc.rpc.v1.vm_pb2_grpc import VmServiceStub
from plasmavmc.types import CopyTarget, ExecSpec, ForkIdentity, LogLine, TerminalSize, Vm, VmSpec


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """What `watch` yields. Exactly one of the four is told."""

    resume_token: str
    """Give it to `watch` to go on from here; empty within a snapshot."""
    vm: Vm | None = None
    deleted_vm_id: str = ""
    snapshot_begin: bool = False
    snapshot_complete: bool = False


class VmClient:
    """VMs."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._stub = VmServiceStub(channel)
        self._metadata = metadata

    async def create(self, spec: VmSpec, *, start: bool = False, request_id: str = "") -> Vm:
        """An empty `spec.id` or `spec.name` is chosen by the server; an empty scope is the caller's only one."""
        message = spec_to_pb(spec, secrets=True)
        request = vm_pb2.CreateVmRequest(request_id=request_id_of(request_id), spec=message, start=start)
        with translated():
            return vm_from_pb(await self._stub.CreateVm(request, metadata=self._metadata))

    async def start(self, vm_id: str, *, request_id: str = "") -> Vm:
        request = vm_pb2.StartVmRequest(request_id=request_id_of(request_id), vm_id=vm_id)
        with translated():
            return vm_from_pb(await self._stub.StartVm(request, metadata=self._metadata))

    async def stop(self, vm_id: str, grace_s: float | None = None, *, request_id: str = "") -> Vm:
        """Returns when it has ended."""
        grace = None if grace_s is None else duration_to_pb(grace_s)
        request = vm_pb2.StopVmRequest(request_id=request_id_of(request_id), vm_id=vm_id, grace=grace)
        with translated():
            return vm_from_pb(await self._stub.StopVm(request, metadata=self._metadata))

    async def restart(self, vm_id: str, *, request_id: str = "") -> Vm:
        request = vm_pb2.RestartVmRequest(request_id=request_id_of(request_id), vm_id=vm_id)
        with translated():
            return vm_from_pb(await self._stub.RestartVm(request, metadata=self._metadata))

    async def suspend(self, vm_id: str, *, request_id: str = "") -> Vm:
        """Cancelled, it wakes the VM again."""
        request = vm_pb2.SuspendVmRequest(request_id=request_id_of(request_id), vm_id=vm_id)
        with translated():
            return vm_from_pb(await self._stub.SuspendVm(request, metadata=self._metadata))

    async def resume(self, vm_id: str, *, request_id: str = "") -> Vm:
        request = vm_pb2.ResumeVmRequest(request_id=request_id_of(request_id), vm_id=vm_id)
        with translated():
            return vm_from_pb(await self._stub.ResumeVm(request, metadata=self._metadata))

    async def restrict(self, vm_id: str, egress: Egress, *, request_id: str = "") -> Vm:
        """Returns when it is in force."""
        message = None if egress is None else egress_to_pb(egress)
        request = vm_pb2.RestrictVmRequest(request_id=request_id_of(request_id), vm_id=vm_id, egress=message)
        with translated():
            return vm_from_pb(await self._stub.RestrictVm(request, metadata=self._metadata))

    async def screen(self, vm_id: str, identity: str, ingress: Ingress, *, request_id: str = "") -> Vm:
        """Returns when it is in force."""
        message = None if ingress is None else ingress_to_pb(ingress)
        request = vm_pb2.ScreenVmRequest(
            request_id=request_id_of(request_id), vm_id=vm_id, identity=identity, ingress=message
        )
        with translated():
            return vm_from_pb(await self._stub.ScreenVm(request, metadata=self._metadata))

    async def fork(self, vm_id: str, copies: Sequence[ForkIdentity], *, request_id: str = "") -> tuple[Vm, ...]:
        """Empty ids and names are chosen by the server."""
        messages = [copy_to_pb(identity) for identity in copies]
        request = vm_pb2.ForkVmRequest(request_id=request_id_of(request_id), vm_id=vm_id, copies=messages)
        with translated():
            answer = await self._stub.ForkVm(request, metadata=self._metadata)
        return tuple(vm_from_pb(vm) for vm in answer.vms)

    async def delete(self, vm_id: str, *, request_id: str = "") -> None:
        request = vm_pb2.DeleteVmRequest(request_id=request_id_of(request_id), vm_id=vm_id)
        with translated():
            await self._stub.DeleteVm(request, metadata=self._metadata)

    async def get(self, vm_id: str) -> Vm:
        """With what it uses now, and the last lines of its output where it has ended."""
        with translated():
            return vm_from_pb(await self._stub.GetVm(vm_pb2.GetVmRequest(vm_id=vm_id), metadata=self._metadata))

    async def list_vms(self, chosen: VmFilter = ALL_VMS, *, page_size: int = 0) -> AsyncIterator[Vm]:
        """All that match; pages are fetched as they are needed."""
        request = vm_pb2.ListVmsRequest(filter=filter_to_pb(chosen), page_size=page_size)
        while True:
            with translated():
                answer = await self._stub.ListVms(request, metadata=self._metadata)
            for vm in answer.vms:
                yield vm_from_pb(vm)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def watch(self, chosen: VmFilter = ALL_VMS, *, resume_token: str = "") -> AsyncGenerator[WatchEvent]:
        """A snapshot, then changes, until it is closed or the server goes away."""
        request = vm_pb2.WatchVmsRequest(filter=filter_to_pb(chosen), resume_token=resume_token)
        call = self._stub.WatchVms(request, metadata=self._metadata)
        async with aclosing(answers_of(call, call)) as answers:
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
                for begin in range(0, len(chunk), UPLOAD_CHUNK):
                    yield vm_pb2.CopyIntoVmRequest(chunk=chunk[begin : begin + UPLOAD_CHUNK])

        call = self._stub.CopyIntoVm(requests(), metadata=self._metadata)
        async with aclosing(answers_of(call, call)) as answers:
            async for _ in answers:
                admitted.set()

    async def copy_out(self, vm_id: str, path: str) -> AsyncIterator[bytes | str]:
        """Copy a tree out of a running VM: a tar stream in pieces, and words (str) about what was left out."""
        call = self._stub.CopyFromVm(vm_pb2.CopyFromVmRequest(vm_id=vm_id, path=path), metadata=self._metadata)
        async with aclosing(answers_of(call, call)) as answers:
            async for answer in answers:
                yield answer.warning if answer.HasField("warning") else answer.chunk

    async def logs(
        self, vm_id: str, *, follow: bool = False, tail: int = 100, since: float = 0.0
    ) -> AsyncIterator[LogLine]:
        """The last lines, then new ones where `follow` is set, until the VM ends."""
        moment = time_to_pb(since) if since else None
        request = vm_pb2.StreamLogsRequest(vm_id=vm_id, follow=follow, tail=tail, since=moment)
        call = self._stub.StreamLogs(request, metadata=self._metadata)
        async with aclosing(answers_of(call, call)) as lines:
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
