"""Nobody takes the server's calls from the others, known or not, and nobody keeps it from ending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from plasmavmc.errors import CapacityError
from plasmavmc.rpc.services import VM_SERVICE
from plasmavmc.rpc.shares import Lines
from plasmavmc.rpc.v1 import vm_pb2
from plasmavmc.rpc.v1.vm_pb2_grpc import VmServiceStub
from tests.rpc.raw_http2 import ClosedWindow
from tests.rpc.rpc_rig import TOKENS, RpcRig
from tests.waiting import until

BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED
MORE_THAN_A_SHARE = 250
"""Of streams; one connection may have 256."""


def token(who: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {TOKENS.get(who, who)}"),)


async def refused(calls: Sequence[Any], within_s: float = 10.0) -> list[grpc.StatusCode]:
    """The codes of those calls that are over, once that is so for any."""

    async def look() -> bool:
        return any(call.done() for call in calls)

    await until(look, "a call is over", within_s)
    return [await call.code() for call in calls if call.done()]


@asynccontextmanager
async def cancelled(calls: Sequence[Any]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for call in calls:
            call.cancel()


async def test_strangers_who_watch_health_take_no_calls_from_those_who_are_known(rig: RpcRig) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        stub = cast("Any", HealthStub(channel))
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(MORE_THAN_A_SHARE)]
        async with cancelled(watches):
            assert set(await refused(watches)) == {BUSY}
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            async with rig.client("operator") as client:
                assert [vm async for vm in client.vms.list_vms()] == []


async def test_a_principal_has_a_share_of_the_streams_and_others_have_theirs(rig: RpcRig) -> None:
    """More than one connection may have: many commands on a host, say, that one user runs."""
    async with AsyncExitStack() as stack:
        own = (("grpc.use_local_subchannel_pool", 1),)
        first, *more = [
            VmServiceStub(await stack.enter_async_context(grpc.aio.insecure_channel(rig.address, options=own)))
            for _ in range(3)
        ]
        watch = vm_pb2.WatchVmsRequest()

        def open_all(stub: VmServiceStub) -> list[Any]:
            return [stub.WatchVms(watch, metadata=token("operator")) for _ in range(MORE_THAN_A_SHARE)]

        usual = open_all(first)
        assert grpc.aio.EOF not in await asyncio.gather(*(cast("Any", call).read() for call in usual))
        watches = [call for stub in more for call in open_all(stub)]
        async with cancelled([*usual, *watches]):
            assert set(await refused(watches)) == {BUSY}
            other = first.WatchVms(watch, metadata=token("stranger"))
            assert await cast("Any", other).read() is not grpc.aio.EOF

        async def room() -> bool:
            again = cast("Any", first.WatchVms(watch, metadata=token("operator")))
            with suppress(grpc.aio.AioRpcError):
                return await again.read() is not grpc.aio.EOF
            return False

        await until(room, "what was let go can be had again")


async def test_who_has_his_share_of_a_line_waits_for_nobody_but_himself() -> None:
    lines, done = Lines("pulls", each=2, most=5, waiting=1), asyncio.Event()
    inside: list[str] = []

    async def one(who: str) -> None:
        async with lines.one(who):
            inside.append(who)
            await done.wait()

    async with asyncio.TaskGroup() as tasks:
        for who in ("a", "a", "a", "b"):
            tasks.create_task(one(who))
        await until(lambda: _true(len(inside) == 3), "those within their share are in")
        assert sorted(inside) == ["a", "a", "b"]
        with pytest.raises(CapacityError, match="1 pulls of yours wait"):
            await one("a")
        done.set()
    assert sorted(inside) == ["a", "a", "a", "b"]


async def _true(value: bool) -> bool:
    return value


@pytest.mark.parametrize("method", ["/plasmavmc.v1.VmService/GetVm", "/plasmavmc.v1.VmService/WatchVms"])
async def test_whoever_is_not_known_is_told_so_before_any_request_came(rig: RpcRig, method: str) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        call = channel.stream_stream(method)(metadata=token("wrong"))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async with asyncio.timeout(10):
                await call.read()
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_calls_whose_request_never_comes_are_a_callers_own(rig: RpcRig) -> None:
    """Two connections: one may not have so many."""
    async with (
        grpc.aio.insecure_channel(rig.address, options=(("grpc.use_local_subchannel_pool", 1),)) as one,
        grpc.aio.insecure_channel(rig.address, options=(("grpc.use_local_subchannel_pool", 1),)) as other,
    ):
        calls = [
            channel.stream_unary("/plasmavmc.v1.VmService/GetVm")(metadata=token("operator"))
            for channel in (one, other)
            for _ in range(MORE_THAN_A_SHARE)
        ]
        async with cancelled(calls):
            assert set(await refused(calls)) == {BUSY}
            async with rig.client("stranger") as client:
                assert [vm async for vm in client.vms.list_vms()] == []


async def test_answers_that_nobody_takes_count_until_they_are_sent(rig: RpcRig) -> None:
    deaf = await ClosedWindow.connect(rig.socket)
    for _ in range(MORE_THAN_A_SHARE):
        deaf.call("/grpc.health.v1.Health/Check")

    async def busy() -> bool:
        async with grpc.aio.insecure_channel(rig.address) as channel:
            call = cast("Any", HealthStub(channel)).Check(health_pb2.HealthCheckRequest(), timeout=10)
            return await call.code() is BUSY

    await until(busy, "the address has used up its share")
    deaf.close()

    async def room() -> bool:
        return not await busy()

    await until(room, "its share is given back")


async def test_a_watcher_of_health_that_takes_nothing_holds_nobody_up(rig: RpcRig) -> None:
    deaf = await ClosedWindow.connect(rig.socket)
    try:
        await deaf.begun(deaf.call("/grpc.health.v1.Health/Watch", b"\0\0\0\0\x18\x0a\x16" + VM_SERVICE.encode()))
        async with asyncio.timeout(10):
            await rig.services.tell_ready(ready=False)
            await rig.services.tell_ready(ready=True)
            await rig.services.tell_end()
            await rig.server.stop(0.1)
    finally:
        deaf.close()
