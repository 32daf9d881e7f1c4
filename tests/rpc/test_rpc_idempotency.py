"""The same write twice: one effect, one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import grpc
import pytest

from plasmavmc.errors import CapacityError, ConflictError, InvalidSpecError, NotFoundError, UnavailableError
from plasmavmc.rpc.access import EVERYTHING, Action, Decision, Principal, Reach
from plasmavmc.rpc.gate import Call, _current
from plasmavmc.rpc.idempotency import KEPT_S, MAX_ANSWERS, WRITES_EACH, Answers
from plasmavmc.rpc.v1 import types_pb2, vm_pb2
from plasmavmc.states import VmState
from tests.rpc.rpc_rig import ACME, RpcRig, running
from tests.waiting import until


class Lenient:
    """An authorizer that allows what it is told to."""

    def __init__(self) -> None:
        self.allows = True

    async def authorize_all(self, principal: Principal, requests: object) -> tuple[Decision, ...]:
        return tuple(Decision(self.allows, "") for _ in requests)  # type: ignore[attr-defined]

    async def reach(self, principal: Principal, action: Action) -> Reach:
        return EVERYTHING


class Bench:
    """Answers on a virtual clock, and work that is counted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.answers = Answers(lambda: self.now)
        self.authorizer = Lenient()
        self.done: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.undone = asyncio.Event()
        """Work that is cancelled ends when this is set."""
        self.undone.set()

    async def start(
        self, request_id: str, vm_id: str = "vm_1", *, who: str = "ci", fails: bool = False, abandon: bool = False
    ) -> types_pb2.Vm:
        """One call of StartVm."""
        call = Call(Principal(who), Action.VM_START, self.authorizer)
        _current.set(call)

        async def work() -> types_pb2.Vm:
            await call.admit(ACME, vm_id)
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                await self.undone.wait()
                raise
            self.done.append(vm_id)
            if fails:
                raise CapacityError("full", "no room")
            return types_pb2.Vm(spec=types_pb2.VmSpec(id=f"{vm_id}/{len(self.done)}"))

        return await self.answers.once(vm_pb2.StartVmRequest(request_id=request_id, vm_id=vm_id), work, abandon=abandon)

    def begin(self, *arguments: str, **more: bool) -> asyncio.Task[types_pb2.Vm]:
        return asyncio.create_task(self.start(*arguments, **more))  # type: ignore[arg-type]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_repetition_gets_the_first_answer(bench: Bench) -> None:
    first = await bench.start("r1")
    assert await bench.start("r1") == first
    assert await bench.start("r2") != first
    assert len(bench.done) == 2


async def test_an_id_with_another_request_is_refused(bench: Bench) -> None:
    await bench.start("r1", "vm_1")
    with pytest.raises(ConflictError) as refused:
        await bench.start("r1", "vm_2")
    assert refused.value.code == "request-id-reused"
    assert bench.done == ["vm_1"]


@pytest.mark.parametrize("named", [False, True])
async def test_writes_whose_callers_leave_count_until_they_are_done(bench: Bench, named: bool) -> None:
    bench.gate.clear()
    for number in range(WRITES_EACH):
        caller = bench.begin(f"r{number}" if named else "")
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait({caller})
    with pytest.raises(CapacityError) as refused:
        async with asyncio.timeout(5.0):
            await bench.start("more")
    assert refused.value.code == "too-many"
    others = bench.begin("r0", who="other")
    if named:
        others = bench.begin("r0")  # what is under way already is no more for it
    bench.gate.set()
    await others
    await bench.start("more")


async def test_ids_of_two_principals_are_two(bench: Bench) -> None:
    await bench.start("r1", "vm_1", who="ci")
    await bench.start("r1", "vm_2", who="other")
    assert bench.done == ["vm_1", "vm_2"]


async def test_a_call_without_an_id_is_done_each_time(bench: Bench) -> None:
    assert await bench.start("") != await bench.start("")


async def test_a_repetition_waits_for_the_first(bench: Bench) -> None:
    bench.gate.clear()
    tasks = [bench.begin("r1") for _ in range(5)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    bench.gate.set()
    answers = await asyncio.gather(*tasks)
    assert len({answer.spec.id for answer in answers}) == 1
    assert len(bench.done) == 1


async def test_another_request_does_not_wait_but_is_refused(bench: Bench) -> None:
    bench.gate.clear()
    task = bench.begin("r1", "vm_1")
    await asyncio.sleep(0)
    with pytest.raises(ConflictError):
        await bench.start("r1", "vm_2")
    bench.gate.set()
    await task


async def test_a_failure_is_told_to_all_who_wait_and_not_kept(bench: Bench) -> None:
    bench.gate.clear()
    tasks = [bench.begin("r1", fails=True) for _ in range(2)]
    await asyncio.sleep(0)
    bench.gate.set()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, CapacityError)
    await bench.start("r1")
    assert len(bench.done) == 2


async def test_work_goes_on_though_its_caller_left(bench: Bench) -> None:
    bench.gate.clear()
    task = bench.begin("r1")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    bench.gate.set()
    answer = await bench.start("r1")
    assert answer.spec.id == "vm_1/1"


async def test_work_that_may_be_abandoned_ends_with_its_last_caller(bench: Bench) -> None:
    bench.gate.clear()
    first, second = bench.begin("r1", abandon=True), bench.begin("r1", abandon=True)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not second.done()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    bench.gate.set()
    await asyncio.sleep(0.01)
    assert bench.done == []
    await bench.start("r1", abandon=True)
    assert len(bench.done) == 1


async def test_a_repetition_of_what_was_abandoned_waits_for_its_end_and_begins_anew(bench: Bench) -> None:
    bench.gate.clear()
    bench.undone.clear()
    first = bench.begin("r1", abandon=True)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    again = [bench.begin("r1", abandon=True) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in again)
    bench.gate.set()
    bench.undone.set()
    answers = await asyncio.gather(*again)
    assert [answer.spec.id for answer in answers] == ["vm_1/1", "vm_1/1"]
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()


async def test_an_answer_is_forgotten_after_a_day(bench: Bench) -> None:
    first = await bench.start("r1")
    bench.now = KEPT_S - 1
    assert await bench.start("r1") == first
    bench.now = KEPT_S + 1
    assert await bench.start("r1") != first


async def test_one_who_floods_pushes_out_only_its_own_answers(bench: Bench) -> None:
    kept = await bench.start("r1", who="quiet")
    mine = await bench.start("r1", who="loud")
    for number in range(MAX_ANSWERS + 1):
        await bench.start(f"f{number}", who="loud")
    assert await bench.start("r1", who="quiet") == kept
    assert await bench.start("r1", who="loud") != mine


async def test_an_answer_is_not_given_to_one_who_lost_the_right(bench: Bench) -> None:
    await bench.start("r1")
    bench.authorizer.allows = False
    with pytest.raises(NotFoundError):
        await bench.start("r1")


@pytest.mark.parametrize("request_id", ["x" * 129, "a\nb"])
async def test_an_id_is_short_and_printable(bench: Bench, request_id: str) -> None:
    with pytest.raises(InvalidSpecError) as refused:
        await bench.start(request_id)
    assert refused.value.field == "request_id"


async def test_the_end_of_the_server_is_told_to_those_who_wait(bench: Bench) -> None:
    bench.gate.clear()
    task = bench.begin("r1")
    await asyncio.sleep(0)
    await bench.answers.close()
    with pytest.raises(UnavailableError, match="about to end"):
        await task


async def test_a_repeated_create_makes_one_vm_also_after_a_restart_of_the_server(rig: RpcRig) -> None:
    spec = replace(rig.spec(), id="", name="")
    async with rig.client("operator") as client:
        first = await client.vms.create(spec, request_id="r1")
        assert (await client.vms.create(spec, request_id="r1")).spec.id == first.spec.id
        with pytest.raises(ConflictError, match="used for another request"):
            await client.vms.create(replace(spec, labels={"a": "b"}), request_id="r1")
        assert (await client.vms.create(spec, request_id="r2")).spec.id != first.spec.id
    await rig.manager.close(keep_vms=True)
    async with running(engine=rig.engine) as after, after.client("operator") as client:
        await client.vms.create(spec, request_id="r1")
        assert len([vm async for vm in client.vms.list_vms()]) == 2


async def test_a_stop_goes_on_though_its_caller_hung_up(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await client.vms.create(rig.spec(), start=True)

        async def state() -> VmState:
            return (await client.vms.get("vm_one")).status.state

        def is_(wanted: VmState) -> Callable[[], Awaitable[bool]]:
            async def look() -> bool:
                return await state() is wanted

            return look

        await until(is_(VmState.RUNNING), "it runs")
        task = asyncio.create_task(client.vms.stop("vm_one"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if await state() is not VmState.RUNNING:
            await until(is_(VmState.STOPPED), "it is stopped")


async def test_grpc_codes_tell_whether_to_repeat(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await client.vms.create(rig.spec(), request_id="r1")
        with pytest.raises(ConflictError) as refused:
            await client.vms.create(rig.spec("two"), request_id="r1")
        cause = refused.value.__cause__
        assert isinstance(cause, grpc.aio.AioRpcError)
        assert cause.code() is grpc.StatusCode.ALREADY_EXISTS
