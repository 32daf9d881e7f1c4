"""`plasmavmc.v1.VmService` over the protocol `VmApi`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from plasmavmc.errors import InvalidSpecError, NotFoundError
from plasmavmc.rpc.access import Action, Reach, Request
from plasmavmc.rpc.api import ALL_VMS, SnapshotBegun, SnapshotDone, SnapshotVm, VmApi, VmChange, VmEvent, VmFilter
from plasmavmc.rpc.conversions.egress import egress_from_pb
from plasmavmc.rpc.conversions.ingress import ingress_from_pb
from plasmavmc.rpc.conversions.specs import spec_from_pb
from plasmavmc.rpc.conversions.streams import copy_target_from_pb, exec_from_pb, line_to_pb, size_from_pb
from plasmavmc.rpc.conversions.values import duration_from_pb, text, time_from_pb
from plasmavmc.rpc.conversions.vms import copies_from_pb, filter_from_pb, vm_to_pb
from plasmavmc.rpc.gate import Call, Context, current_call
from plasmavmc.rpc.idempotency import Answers
from plasmavmc.rpc.identifiers import ChooseId, choose_id, name_of
from plasmavmc.rpc.paging import after_of, cut, page_size
from plasmavmc.rpc.sessions import START_DEADLINE_S, copied_in, copied_out, first_message, joined
from plasmavmc.rpc.v1 import vm_pb2, vm_pb2_grpc
from plasmavmc.rpc.v1.types_pb2 import Vm as VmMessage
from plasmavmc.rpc.watch import position_of, token_of
from plasmavmc.types import Scope, Vm, VmSpec

MAX_TAIL = 100_000


def vm_not_found(vm_id: str) -> NotFoundError:
    return NotFoundError("vm-not-found", f"there is no VM {vm_id}")


class VmServicer(vm_pb2_grpc.VmServiceServicer):
    """See the module's head. Each method asks the gate before it does or tells anything."""

    def __init__(self, api: VmApi, answers: Answers, choose: ChooseId = choose_id) -> None:
        self._api = api
        self._answers = answers
        self._choose_id = choose

    # Writes

    async def CreateVm(self, request: vm_pb2.CreateVmRequest, context: Context) -> VmMessage:
        async def work() -> VmMessage:
            call = current_call()
            asked = spec_from_pb(request.spec)
            scope = call.home(asked.scope, "spec.scope")
            vm_id = asked.id or self._choose_id("vm", call.principal.id, request.request_id)
            call.subject = vm_id
            await call.admit(scope, vm_id, labels=asked.labels)
            spec = replace(asked, id=vm_id, scope=scope, name=asked.name or name_of(vm_id))
            return vm_to_pb(await self._create(spec, start=request.start))

        return await self._answers.once(request, work)

    async def StartVm(self, request: vm_pb2.StartVmRequest, context: Context) -> VmMessage:
        return await self._answers.once(request, lambda: self._told(request.vm_id, self._api.start))

    async def StopVm(self, request: vm_pb2.StopVmRequest, context: Context) -> VmMessage:
        grace_s = duration_from_pb("grace", request.grace) if request.HasField("grace") else None

        async def stop(vm_id: str) -> Vm:
            return await self._api.stop(vm_id, grace_s)

        return await self._answers.once(request, lambda: self._told(request.vm_id, stop))

    async def RestartVm(self, request: vm_pb2.RestartVmRequest, context: Context) -> VmMessage:
        return await self._answers.once(request, lambda: self._told(request.vm_id, self._api.restart))

    async def SuspendVm(self, request: vm_pb2.SuspendVmRequest, context: Context) -> VmMessage:
        return await self._answers.once(request, lambda: self._told(request.vm_id, self._api.suspend), abandon=True)

    async def ResumeVm(self, request: vm_pb2.ResumeVmRequest, context: Context) -> VmMessage:
        return await self._answers.once(request, lambda: self._told(request.vm_id, self._api.resume))

    async def RestrictVm(self, request: vm_pb2.RestrictVmRequest, context: Context) -> VmMessage:
        egress = egress_from_pb("egress", request.egress) if request.HasField("egress") else None

        async def restrict(vm_id: str) -> Vm:
            return await self._api.restrict(vm_id, egress)

        return await self._answers.once(request, lambda: self._told(request.vm_id, restrict))

    async def ScreenVm(self, request: vm_pb2.ScreenVmRequest, context: Context) -> VmMessage:
        ingress = ingress_from_pb("ingress", request.ingress) if request.HasField("ingress") else None

        async def screen(vm_id: str) -> Vm:
            return await self._api.screen(vm_id, request.identity, ingress)

        return await self._answers.once(request, lambda: self._told(request.vm_id, screen))

    async def ForkVm(self, request: vm_pb2.ForkVmRequest, context: Context) -> vm_pb2.ForkVmResponse:
        async def work() -> vm_pb2.ForkVmResponse:
            call = current_call()
            scope = await self._admit(call, request.vm_id)
            await call.admit_all([Request(Action.VM_CREATE, scope, request.vm_id)])  # the copies lie where it does
            copies = tuple(
                replace(each, vm_id=vm_id, name=each.name or name_of(vm_id))
                for number, each in enumerate(copies_from_pb(request))
                for vm_id in (each.vm_id or self._choose_id("vm", call.principal.id, request.request_id, number),)
            )
            forked = await self._api.fork(request.vm_id, copies)
            return vm_pb2.ForkVmResponse(vms=[vm_to_pb(vm) for vm in forked])

        return await self._answers.once(request, work)

    async def DeleteVm(self, request: vm_pb2.DeleteVmRequest, context: Context) -> vm_pb2.DeleteVmResponse:
        async def work() -> vm_pb2.DeleteVmResponse:
            call = current_call()
            try:
                await self._admit(call, request.vm_id)
            except NotFoundError:
                call.checked = True  # absent or foreign: both are told as gone, and nothing is done
            else:
                await self._api.delete(request.vm_id)
            return vm_pb2.DeleteVmResponse()

        return await self._answers.once(request, work)

    # Reads

    async def GetVm(self, request: vm_pb2.GetVmRequest, context: Context) -> VmMessage:
        return await self._told(request.vm_id, self._api.get)

    async def ListVms(self, request: vm_pb2.ListVmsRequest, context: Context) -> vm_pb2.ListVmsResponse:
        chosen, size = filter_from_pb(request.filter), page_size(request.page_size)
        after = after_of(request.page_token, request.filter)
        reach = await current_call().reach()
        found = await self._api.list_vms(chosen, reach, after=after, limit=size + 1)
        page, token = cut(found, size, key_of=lambda vm: vm.spec.id, to_pb=listed, question=request.filter)
        return vm_pb2.ListVmsResponse(vms=page, next_page_token=token)

    async def WatchVms(
        self, request: vm_pb2.WatchVmsRequest, context: Context
    ) -> AsyncIterator[vm_pb2.WatchVmsResponse]:
        call, chosen = current_call(), filter_from_pb(request.filter)
        async with aclosing(self._api.watch(position_of(request.resume_token))) as events:
            async for event in events:
                answer = told_event(event, chosen, await call.reach())
                if answer is not None:
                    yield answer

    async def StreamLogs(self, request: vm_pb2.StreamLogsRequest, context: Context) -> AsyncIterator[vm_pb2.LogLine]:
        await self._admit(current_call(), request.vm_id)
        since = time_from_pb(request.since) if request.HasField("since") else 0.0
        lines = self._api.logs(request.vm_id, follow=request.follow, tail=min(request.tail, MAX_TAIL), since=since)
        async with aclosing(cast("Any", lines)):
            async for line in lines:
                yield line_to_pb(line)

    # Commands

    async def ExecVm(
        self, request_iterator: AsyncIterator[vm_pb2.ExecVmRequest], context: Context
    ) -> AsyncIterator[vm_pb2.ExecVmResponse]:
        start = await first_message(request_iterator, START_DEADLINE_S)
        if start.WhichOneof("message") != "start":
            raise InvalidSpecError("start", "the first message starts the command")
        await self._admit(current_call(), start.start.vm_id)
        session = await self._api.exec(start.start.vm_id, exec_from_pb(start.start))
        async with aclosing(joined(request_iterator, session, ends=True)) as answers:
            async for answer in answers:
                yield answer

    async def AttachVm(
        self, request_iterator: AsyncIterator[vm_pb2.AttachVmRequest], context: Context
    ) -> AsyncIterator[vm_pb2.ExecVmResponse]:
        start = await first_message(request_iterator, START_DEADLINE_S)
        if start.WhichOneof("message") != "start":
            raise InvalidSpecError("start", "the first message says which VM")
        await self._admit(current_call(), start.start.vm_id)
        told = start.start.HasField("terminal")
        size = size_from_pb("start.terminal", start.start.terminal) if told else None
        session = await self._api.attach(start.start.vm_id, size)
        async with aclosing(joined(request_iterator, session, ends=False)) as answers:
            async for answer in answers:
                yield answer

    # Copies

    async def CopyIntoVm(
        self, request_iterator: AsyncIterator[vm_pb2.CopyIntoVmRequest], context: Context
    ) -> AsyncIterator[vm_pb2.CopyIntoVmResponse]:
        start = await first_message(request_iterator, START_DEADLINE_S)
        if start.WhichOneof("message") != "start":
            raise InvalidSpecError("start", "the first message says what is copied where")
        await self._admit(current_call(), start.start.vm_id)
        session = await self._api.copy_in(start.start.vm_id, copy_target_from_pb(start.start))
        yield vm_pb2.CopyIntoVmResponse()
        await copied_in(request_iterator, session)
        yield vm_pb2.CopyIntoVmResponse(done=True)

    async def CopyFromVm(
        self, request: vm_pb2.CopyFromVmRequest, context: Context
    ) -> AsyncIterator[vm_pb2.CopyFromVmResponse]:
        await self._admit(current_call(), request.vm_id)
        session = await self._api.copy_out(request.vm_id, text("path", request.path))
        async with aclosing(copied_out(session)) as answers:
            async for answer in answers:
                yield answer

    # Small parts

    async def _create(self, spec: VmSpec, *, start: bool) -> Vm:
        try:
            return await self._api.create(spec, start=start)
        except InvalidSpecError as error:
            words = error.brief.removeprefix(f"{error.field}: ")
            raise InvalidSpecError(f"spec.{error.field}", words, resolution=error.resolution) from error

    async def _told(self, vm_id: str, move: Callable[[str], Awaitable[Vm]]) -> VmMessage:
        """Do something with a VM and tell how it is then."""
        await self._admit(current_call(), vm_id)
        return vm_to_pb(await move(vm_id))

    async def _admit(self, call: Call, vm_id: str) -> Scope:
        """Go on only where the principal may do this to that VM; returns whose it is."""
        absent = vm_not_found(_checked_id(vm_id))
        try:
            scope = await self._api.scope_of(vm_id)
        except NotFoundError:
            raise absent from None
        await call.admit(scope, vm_id, absent=absent)

        async def state() -> str:
            return (await self._api.get(vm_id)).status.state.value

        call.subject, call.state = vm_id, state
        return scope


def _checked_id(vm_id: str) -> str:
    if not vm_id:
        raise InvalidSpecError("vm_id", "it is needed")
    return text("vm_id", vm_id, 64)


def listed(vm: Vm) -> VmMessage:
    """A VM in a list or a watch: without the last lines of its output, which may be long."""
    return vm_to_pb(replace(vm, status=replace(vm.status, log_tail=())))


def told_event(event: VmEvent, chosen: VmFilter, reach: Reach) -> vm_pb2.WatchVmsResponse | None:
    """What a watcher hears of an event; None for nothing. A VM that is no longer what it asked for is told as gone."""
    match event:
        case SnapshotBegun():
            return vm_pb2.WatchVmsResponse(snapshot_begin=vm_pb2.SnapshotBegin())
        case SnapshotVm(vm):
            return vm_pb2.WatchVmsResponse(vm=listed(vm)) if _concerns(vm, chosen, reach) else None
        case SnapshotDone(position):
            return vm_pb2.WatchVmsResponse(resume_token=token_of(position), snapshot_complete=vm_pb2.SnapshotComplete())
        case VmChange(before, after, position):
            token = token_of(position)
            if after is not None and _concerns(after, chosen, reach):
                return vm_pb2.WatchVmsResponse(resume_token=token, vm=listed(after))
            if before is not None and _concerns(before, chosen, reach):
                return vm_pb2.WatchVmsResponse(resume_token=token, deleted_vm_id=before.spec.id)
            return None


def _concerns(vm: Vm, chosen: VmFilter, reach: Reach) -> bool:
    return reach.covers(vm.spec.scope, vm.spec.labels) and (chosen is ALL_VMS or chosen.admits(vm))
