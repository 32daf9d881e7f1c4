"""Commands in VMs over the wire: input, output, ends, and back-pressure in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import grpc
import pytest

from plasmavmc.errors import ConflictError, GuestError, NotFoundError, UnavailableError
from plasmavmc.guest.api import ExecExit, ExecOutput
from plasmavmc.guest.memory import MAX_COMMANDS
from plasmavmc.rpc import vms as vm_service
from plasmavmc.rpc.client import EngineClient
from plasmavmc.rpc.v1 import vm_pb2
from plasmavmc.rpc.v1.vm_pb2_grpc import VmServiceStub
from plasmavmc.states import VmState
from plasmavmc.types import ExecSpec, LogStream, TerminalSize
from tests.rpc.rpc_rig import TOKENS, RpcRig
from tests.waiting import until

METADATA = (("authorization", f"Bearer {TOKENS['operator']}"),)
KIB = 1024


async def start(rig: RpcRig, client: EngineClient) -> None:
    await client.vms.create(rig.spec(), start=True)

    async def runs() -> bool:
        return (await client.vms.get("vm_one")).status.state is VmState.RUNNING

    await until(runs, "it runs")


async def output(client: EngineClient, *command: str) -> list[ExecOutput | ExecExit]:
    session = await client.vms.exec("vm_one", ExecSpec(command))
    return [item async for item in session.output()]


@dataclass
class FakeSession:
    """A command of the test's own. `floods` writes without end; with `reads` clear it does not read its input."""

    floods: bool = False
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    written: int = 0
    received: list[bytes] = field(default_factory=list)
    heard: list[object] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes) -> None:
        self.received.append(data)
        await self.reads.wait()

    async def send_eof(self) -> None:
        self.heard.append("eof")

    async def resize(self, size: TerminalSize) -> None:
        self.heard.append(size)

    async def signal(self, number: int) -> None:
        self.heard.append(number)

    async def output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        while self.floods and not self.ended.is_set():
            self.written += 64 * KIB
            yield ExecOutput(LogStream.STDOUT, bytes(64 * KIB))
        await self.ended.wait()
        yield ExecExit(0)

    async def aclose(self) -> None:
        self.hung_up.set()


def offer(rig: RpcRig, session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    """Let each command in this engine be the session."""

    async def exec_(vm_id: str, spec: ExecSpec) -> FakeSession:
        return session

    monkeypatch.setattr(rig.vms, "exec", exec_)
    return session


async def test_a_command_tells_its_output_and_its_code(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await start(rig, client)
        assert await output(client, "echo", "a", "b") == [ExecOutput(LogStream.STDOUT, b"a b\n"), ExecExit(0)]
        assert await output(client, "exit", "7") == [ExecExit(7)]


async def test_input_ends_by_a_message_or_by_the_end_of_the_stream(rig: RpcRig) -> None:
    async with rig.client("operator") as client, grpc.aio.insecure_channel(rig.address) as channel:
        await start(rig, client)
        session = await client.vms.exec("vm_one", ExecSpec(("cat",)))
        await session.send(b"x" * 200_000)
        await session.send_eof()
        items = [item async for item in session.output()]
        assert b"".join(item.data for item in items if isinstance(item, ExecOutput)) == b"x" * 200_000
        assert items[-1] == ExecExit(0)
        call = VmServiceStub(channel).ExecVm(metadata=METADATA)
        await call.write(vm_pb2.ExecVmRequest(start=vm_pb2.ExecStart(vm_id="vm_one", command=["cat"])))
        await call.write(vm_pb2.ExecVmRequest(stdin=b"half-closed"))
        await call.done_writing()
        kinds = [answer.WhichOneof("message") async for answer in call]
        assert kinds == ["started", "stdout", "exit_code"]


async def test_sizes_and_signals_arrive(rig: RpcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.client("operator") as client:
        await start(rig, client)
        fake = offer(rig, FakeSession(), monkeypatch)
        session = await client.vms.exec("vm_one", ExecSpec(("sh",), terminal=TerminalSize(24, 80)))
        await session.resize(TerminalSize(50, 132))
        await session.signal(15)

        async def heard() -> bool:
            return len(fake.heard) == 2

        await until(heard, "both are heard")
        assert fake.heard == [TerminalSize(50, 132), 15]
        fake.ended.set()
        assert [item async for item in session.output()] == [ExecExit(0)]


async def test_what_a_guest_refuses_is_told(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await start(rig, client)
        for _ in range(MAX_COMMANDS):
            await client.vms.exec("vm_one", ExecSpec(("sleep",)))
        with pytest.raises(GuestError) as refused:
            await output(client, "echo")
        assert refused.value.code == "exec-too-many"
        with pytest.raises(NotFoundError, match="there is no VM vm_two"):
            await client.vms.exec("vm_two", ExecSpec(("echo",)))
        await client.vms.stop("vm_one")
        with pytest.raises(ConflictError, match="is stopped"):
            await output(client, "echo")


async def test_a_vm_that_dies_ends_its_commands(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await start(rig, client)
        session = await client.vms.exec("vm_one", ExecSpec(("sleep",)))
        rig.engine.vmms.kill("vm_one")
        with pytest.raises(GuestError) as gone:
            [item async for item in session.output()]
        assert gone.value.code == "guest-gone"


async def test_a_client_that_does_not_read_stops_the_command_and_no_other(
    rig: RpcRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.client("operator") as client:
        await start(rig, client)
        fake = offer(rig, FakeSession(floods=True), monkeypatch)
        stalled = await client.vms.exec("vm_one", ExecSpec(("yes",)))

        async def still() -> bool:
            before = fake.written
            await asyncio.sleep(0.2)
            return fake.written == before

        await until(still, "the command waits for its reader")
        assert fake.written < 32 << 20, "what nobody reads is not piled up"
        monkeypatch.undo()
        assert await output(client, "echo", "others", "go", "on") == [
            ExecOutput(LogStream.STDOUT, b"others go on\n"),
            ExecExit(0),
        ]
        await stalled.aclose()
        await asyncio.wait_for(fake.hung_up.wait(), 5)


async def test_a_command_that_does_not_read_stops_its_client(rig: RpcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.client("operator") as client:
        await start(rig, client)
        fake = offer(rig, FakeSession(), monkeypatch)
        session = await client.vms.exec("vm_one", ExecSpec(("sleep",)))
        sent = 0

        async def push() -> None:
            nonlocal sent
            while sent < 256 << 20:
                await session.send(bytes(64 * KIB))
                sent += 64 * KIB

        pushing = asyncio.create_task(push())

        async def still() -> bool:
            before = sent
            await asyncio.sleep(0.2)
            return sent == before

        await until(still, "the client waits for room")
        assert len(fake.received) == 1
        assert sent < 32 << 20
        fake.reads.set()

        async def goes_on() -> bool:
            return len(fake.received) > 100

        await until(goes_on, "it goes on where there is room")
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)
        await session.aclose()


async def test_a_client_that_leaves_hangs_up_its_command(rig: RpcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.client("operator") as client:
        await start(rig, client)
        fake = offer(rig, FakeSession(), monkeypatch)
        session = await client.vms.exec("vm_one", ExecSpec(("sleep",)))
        assert not fake.hung_up.is_set()
        await session.aclose()
        await asyncio.wait_for(fake.hung_up.wait(), 5)


async def read_all(call: grpc.aio.StreamStreamCall[vm_pb2.ExecVmRequest, vm_pb2.ExecVmResponse]) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


START = vm_pb2.ExecVmRequest(start=vm_pb2.ExecStart(vm_id="vm_one", command=["sleep"]))


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([vm_pb2.ExecVmRequest(stdin=b"x")], "start"),
        ([vm_pb2.ExecVmRequest()], "start"),
        ([vm_pb2.ExecVmRequest(start=vm_pb2.ExecStart(vm_id="vm_one"))], "start.command"),
        ([vm_pb2.ExecVmRequest(start=vm_pb2.ExecStart(command=["a"]))], "vm_id"),
        ([START, START], "message"),
        ([START, vm_pb2.ExecVmRequest()], "message"),
        ([START, vm_pb2.ExecVmRequest(signal=65)], "signal"),
        ([START, vm_pb2.ExecVmRequest(resize=vm_pb2.TerminalSize(rows=1))], "resize"),
        ([START, vm_pb2.ExecVmRequest(stdin_eof=True), vm_pb2.ExecVmRequest(stdin=b"x")], "stdin"),
    ],
)
async def test_messages_out_of_order_end_the_command(
    rig: RpcRig, messages: Sequence[vm_pb2.ExecVmRequest], field: str
) -> None:
    async with rig.client("operator") as client, grpc.aio.insecure_channel(rig.address) as channel:
        await start(rig, client)
        call = VmServiceStub(channel).ExecVm(metadata=METADATA)
        await call.write(messages[0])
        for number, message in enumerate(messages[1:]):
            if number == 0:
                await call.read()  # that it began
            await call.write(message)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await asyncio.wait_for(read_all(call), 20)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(error.value.details()).startswith(f"{field}: ")


async def test_a_stream_that_says_nothing_is_ended(rig: RpcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_service, "START_DEADLINE_S", 0.1)
    async with grpc.aio.insecure_channel(rig.address) as channel:
        call = VmServiceStub(channel).ExecVm(metadata=METADATA)
        with pytest.raises(grpc.aio.AioRpcError, match="no first message"):
            async with asyncio.timeout(20):
                await call.read()


async def test_the_end_of_the_server_is_told_to_who_is_in_a_command(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await start(rig, client)
        session = await client.vms.exec("vm_one", ExecSpec(("sleep",)))
        reading = asyncio.ensure_future(anext(session.output()))
        await rig.server.stop(0)
        with pytest.raises(UnavailableError):
            await reading
