"""Exec and logs through the agent: record by record, from friendly and from hostile clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.agent.streams import StreamServer
from shellwego.core.convergence import vm_id
from shellwego.core.errors import NotFoundError, UnavailableError
from shellwego.core.vms import VmPhase, VmUsage, VmView
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.ports.engine import ExecData, ExecDone, LogRecord
from shellwego.ports.streams import DuplexStream, StreamKind, StreamRequest
from shellwego.wire.codec import decode
from shellwego.wire.streams import MAX_PAYLOAD, Record, RecordKind, RecordReader, pack
from tests.agent.agent_world import NODE, World, workload, world


def exec_request(*command: str, instance_id: str = "ins_1") -> StreamRequest:
    return StreamRequest(kind=StreamKind.EXEC, instance_id=instance_id, command=command)


def logs_request(*, follow: bool = False, tail: int = 100, attempt: int = 0) -> StreamRequest:
    return StreamRequest(kind=StreamKind.LOGS, instance_id="ins_1", follow=follow, tail=tail, attempt=attempt)


async def records(stream: DuplexStream) -> list[Record]:
    reader = RecordReader()
    found: list[Record] = []
    while data := await stream.receive():
        found += reader.feed(data)
    return found


def lines(found: list[Record]) -> list[str]:
    return [decode(LogRecord, record.payload).text for record in found if record.kind is RecordKind.LOG]


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[World]:
    """A world in which `ins_1` is healthy."""
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        yield one


async def test_a_command_runs_and_its_exit_code_is_the_last_record(one: World) -> None:
    stream = await one.streams.open(NODE, exec_request("echo", "hello", "you"))
    assert await records(stream) == [
        Record(RecordKind.STDOUT, b"hello you\n"),
        Record(RecordKind.EXIT, b"\0\0\0\0"),
    ]


async def test_an_exit_code_passes_as_it_is(one: World) -> None:
    stream = await one.streams.open(NODE, exec_request("exit", "-9"))
    assert await records(stream) == [Record(RecordKind.EXIT, (-9).to_bytes(4, "big", signed=True))]


@pytest.mark.parametrize("end", [pack(Record(RecordKind.STDIN_EOF)), b""])
async def test_input_reaches_the_command_until_its_end(one: World, end: bytes) -> None:
    stream = await one.streams.open(NODE, exec_request("cat"))
    sent = pack(Record(RecordKind.STDIN, b"one")) + pack(Record(RecordKind.STDIN, b"two")) + end
    for place in range(len(sent)):
        await stream.send(sent[place : place + 1])
    await stream.send_eof()
    found = await records(stream)
    assert b"".join(record.payload for record in found[:-1]) == b"onetwo"
    assert found[-1].kind is RecordKind.EXIT


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff" * 64,
        pack(Record(RecordKind.STDOUT, b"I am the guest")),
        pack(Record(RecordKind.RESIZE, b"x")),
        pack(Record(RecordKind.SIGNAL, b"")),
    ],
)
async def test_nonsense_from_the_client_ends_its_input_and_nothing_else(one: World, nonsense: bytes) -> None:
    stream = await one.streams.open(NODE, exec_request("cat"))
    await stream.send(pack(Record(RecordKind.STDIN, b"good")) + nonsense)
    found = await records(stream)
    assert [record.kind for record in found] == [RecordKind.STDOUT, RecordKind.EXIT]
    assert await records(await one.streams.open(NODE, exec_request("exit", "0")))


async def test_an_instance_that_is_not_here_is_told(one: World) -> None:
    found = await records(await one.streams.open(NODE, exec_request("true", instance_id="ins_x")))
    assert [record.kind for record in found] == [RecordKind.ERROR]
    assert found[0].payload.startswith(b"vm-not-found\0")


async def test_what_a_vm_uses_is_one_record(one: World) -> None:
    request = StreamRequest(kind=StreamKind.USAGE, instance_id="ins_1")
    (record,) = await records(await one.streams.open(NODE, request))
    assert record.kind is RecordKind.USAGE
    assert decode(VmUsage, record.payload) == await one.engine.usage(await one.vm_id())
    (refusal,) = await records(await one.streams.open(NODE, replace(request, instance_id="ins_x")))
    assert refusal.payload.startswith(b"vm-not-found\0")


async def test_a_command_in_a_vm_that_does_not_run_is_told(one: World) -> None:
    await one.control.assign("ins_1", workload("exit", "1"))
    one.engine.boots_fail_with = "no boot"
    one.engine.die(await one.vm_id())
    await one.clock.until(one.control.is_("failed"))
    found = await records(await one.streams.open(NODE, exec_request("true")))
    assert found[0].payload.startswith(b"vm-not-running\0")


async def test_logs_end_with_what_there_is(one: World) -> None:
    stream = await one.streams.open(NODE, logs_request())
    assert lines(await records(stream)) == ["hello"]


async def test_logs_that_follow_go_on_through_the_attempts_until_the_instance_ends(one: World) -> None:
    stream = await one.streams.open(NODE, logs_request(follow=True))
    reading = asyncio.ensure_future(records(stream))
    for _ in range(2):
        one.engine.die(await one.vm_id())
        await one.clock.advance(5)
    assert not reading.done()
    await one.control.assign("ins_1", present=False)
    await one.clock.until(reading.done, timeout=5)
    assert lines(await reading) == ["hello"] * 3


async def test_logs_that_follow_end_when_retries_are_spent(one: World) -> None:
    stream = await one.streams.open(NODE, logs_request(follow=True))
    reading = asyncio.ensure_future(records(stream))
    one.engine.boots_fail_with = "no boot"
    one.engine.die(await one.vm_id())
    await one.clock.until(one.control.is_("failed"))
    await one.clock.until(reading.done, timeout=5)
    assert lines(await reading) == ["hello"]


async def test_the_logs_of_earlier_attempts_are_told_while_there_is_room() -> None:
    engine = KeepsLogs(
        {1: ["1a", "1b"], 2: [], 3: ["3a", "3b", "3c"]},
    )
    view = VmView(vm_id=vm_id("ins_1", 3), instance_id="ins_1", attempt=3, phase=VmPhase.RUNNING)
    for tail, told in ((100, ["1a", "1b", "3a", "3b", "3c"]), (4, ["1b", "3a", "3b", "3c"]), (2, ["3b", "3c"])):
        streams = await serve(StreamServer(engine, lambda _: view, no_successor, no_volumes))
        assert lines(await records(await streams.open(NODE, logs_request(tail=tail)))) == told


@pytest.mark.parametrize("follow", [False, True])
async def test_the_logs_of_an_instance_that_is_gone_are_told_while_they_are_kept(follow: bool) -> None:
    streams = await serve(StreamServer(KeepsLogs({1: ["1a"], 2: ["2a"]}), lambda _: None, no_successor, no_volumes))
    found = await records(await streams.open(NODE, logs_request(follow=follow)))
    assert lines(found) == ["1a", "2a"]


async def test_the_last_logs_of_an_instance_that_is_gone_are_told_after_those_of_its_first_attempts_went() -> None:
    engine = KeepsLogs({907: ["907a"], 909: ["909a"]})
    streams = await serve(StreamServer(engine, lambda _: None, no_successor, no_volumes))
    for known in (907, 908, 909, 910):
        found = await records(await streams.open(NODE, logs_request(attempt=known)))
        assert lines(found) == ["907a", "909a"]


async def test_an_older_server_names_no_attempt_and_a_lost_first_log_hides_no_other() -> None:
    engine = KeepsLogs({2: ["2a"], 4: ["4a"]})
    streams = await serve(StreamServer(engine, lambda _: None, no_successor, no_volumes))
    assert lines(await records(await streams.open(NODE, logs_request()))) == ["2a", "4a"]


@pytest.mark.parametrize("tail", [1, 100])
async def test_attempts_that_left_no_log_hide_none_before_them(tail: int) -> None:
    view = VmView(vm_id=vm_id("ins_1", 5), instance_id="ins_1", attempt=5, phase=VmPhase.RUNNING)
    streams = await serve(StreamServer(KeepsLogs({2: ["2a"], 5: ["5a"]}), lambda _: view, no_successor, no_volumes))
    assert lines(await records(await streams.open(NODE, logs_request(tail=tail)))) == ["2a", "5a"][-tail:]


async def test_an_absurd_attempt_costs_no_endless_search() -> None:
    streams = await serve(StreamServer(KeepsLogs({1: ["1a"]}), lambda _: None, no_successor, no_volumes))
    for attempt in (10**15, -(10**15)):
        async with asyncio.timeout(10):
            found = await records(await streams.open(NODE, logs_request(attempt=attempt)))
        assert (lines(found) == ["1a"]) is (attempt < 0)


async def test_where_no_log_is_kept_that_is_told() -> None:
    streams = await serve(StreamServer(KeepsLogs({}), lambda _: None, no_successor, no_volumes))
    found = await records(await streams.open(NODE, logs_request()))
    assert [record.kind for record in found] == [RecordKind.ERROR]


async def test_a_reader_of_logs_that_leaves_is_forgotten(one: World) -> None:
    stream = await one.streams.open(NODE, logs_request(follow=True))
    await stream.receive()
    await stream.aclose()
    await one.clock.advance(1)
    assert lines(await records(await one.streams.open(NODE, logs_request()))) == ["hello"]


class ScriptedChannel:
    """A guest's end of an exec that says what the test wants."""

    def __init__(self, *items: ExecData | ExecDone) -> None:
        self._items = items
        self.closed = False

    async def send(self, data: bytes) -> None:
        raise UnavailableError("guest-gone", "the guest is gone")

    async def send_eof(self) -> None: ...
    async def resize(self, rows: int, columns: int) -> None: ...
    async def signal(self, number: int) -> None: ...

    async def output(self) -> AsyncIterator[ExecData | ExecDone]:
        for item in self._items:
            yield item

    async def aclose(self) -> None:
        self.closed = True


class ScriptedEngine(MemoryEngine):
    def __init__(self, channel: ScriptedChannel) -> None:
        super().__init__(VirtualClock())
        self._channel = channel

    async def exec(self, vm_id: str, request: StreamRequest) -> ScriptedChannel:  # type: ignore[override]
        return self._channel

    async def logs(self, vm_id: str, *, follow: bool, tail: int, since: float) -> AsyncIterator[LogRecord]:
        yield LogRecord(time=1.0, stream="stdout", text="€" * 100_000)

    async def export_memory(self, vm_id: str) -> AsyncIterator[bytes]:
        yield b"memory"


class KeepsLogs(MemoryEngine):
    """Has the logs of these attempts of `ins_1`, whatever became of their VMs."""

    def __init__(self, kept: dict[int, list[str]]) -> None:
        super().__init__(VirtualClock())
        self._kept = {vm_id("ins_1", attempt): texts for attempt, texts in kept.items()}

    async def logs(self, vm_id: str, *, follow: bool, tail: int, since: float) -> AsyncIterator[LogRecord]:
        if vm_id not in self._kept:
            raise NotFoundError("vm-not-found", "neither the VM nor its log exists")
        for text in self._kept[vm_id][-tail:] if tail else ():
            yield LogRecord(time=1.0, stream="stdout", text=text)


async def no_successor(_vm: VmView) -> None:
    return None


async def no_volumes(_request: StreamRequest) -> AsyncGenerator[bytes]:
    raise NotFoundError("volume-not-found", "there is none")
    yield b""


_listening: set[asyncio.Task[None]] = set()
"""An event loop does not keep its tasks from being collected."""


async def serve(server: StreamServer) -> MemoryStreams:
    streams = MemoryStreams()
    task = asyncio.ensure_future(streams.serve(NODE, server.serve))
    _listening.add(task)
    task.add_done_callback(_listening.discard)
    await asyncio.sleep(0)
    return streams


def scripted(channel: ScriptedChannel, limit: int = 8) -> StreamServer:
    """The organization of an instance is called as its id ends."""

    def find(instance_id: str) -> VmView:
        owner = instance_id.removeprefix("ins_")
        return VmView(vm_id="vm_1", instance_id=instance_id, attempt=1, phase=VmPhase.RUNNING, organization_id=owner)

    return StreamServer(ScriptedEngine(channel), find, no_successor, no_volumes, limit)


async def open_scripted(channel: ScriptedChannel, request: StreamRequest) -> DuplexStream:
    return await (await serve(scripted(channel))).open(NODE, request)


async def test_a_guest_that_goes_away_before_the_end_is_told_as_an_error() -> None:
    channel = ScriptedChannel(ExecData(stream="stderr", data=b"half"))
    found = await records(await open_scripted(channel, exec_request("x")))
    assert [record.kind for record in found] == [RecordKind.STDERR, RecordKind.ERROR]
    assert channel.closed


async def test_output_larger_than_a_record_is_cut_into_records() -> None:
    channel = ScriptedChannel(ExecData(stream="stdout", data=bytes(MAX_PAYLOAD * 2 + 1)), ExecDone(code=0))
    found = await records(await open_scripted(channel, exec_request("x")))
    assert [len(record.payload) for record in found] == [MAX_PAYLOAD, MAX_PAYLOAD, 1, 4]


async def test_a_log_line_larger_than_a_record_is_cut() -> None:
    found = await records(await open_scripted(ScriptedChannel(), logs_request()))
    assert len(lines(found)[0]) == 15_000


async def test_a_client_that_leaves_takes_the_guests_process_with_it() -> None:
    class Endless(ScriptedChannel):
        async def output(self) -> AsyncIterator[ExecData | ExecDone]:
            while True:
                yield ExecData(stream="stdout", data=bytes(10_000))

    channel = Endless()
    stream = await open_scripted(channel, exec_request("yes"))
    await stream.receive()
    await stream.aclose()
    async with asyncio.timeout(5):
        while not channel.closed:  # noqa: ASYNC110 - the fake has no event
            await asyncio.sleep(0)


class Waits(ScriptedChannel):
    async def output(self) -> AsyncIterator[ExecData | ExecDone]:
        await asyncio.Event().wait()
        yield ExecDone(code=0)


async def holds(server: StreamServer, count: int) -> None:
    """It serves so many streams now: what was opened has arrived, what was closed is let go."""
    async with asyncio.timeout(5):
        while server._open.total() != count:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)


async def refused(streams: MemoryStreams, instance_id: str) -> bool:
    async with asyncio.timeout(10):
        found = await records(await streams.open(NODE, exec_request("true", instance_id=instance_id)))
    return found[0].payload.startswith(b"too-many-streams\0")


async def test_a_node_serves_so_many_streams_and_no_more() -> None:
    server = scripted(Waits(), limit=4)
    streams = await serve(server)
    held = [await streams.open(NODE, exec_request("sleep")) for _ in range(2)]
    await holds(server, 2)
    assert await refused(streams, "ins_1")
    await held[0].aclose()
    await holds(server, 1)
    assert lines(await records(await streams.open(NODE, logs_request())))
    await held[1].aclose()


async def test_no_organization_takes_the_streams_of_a_node_from_others() -> None:
    server = scripted(Waits(), limit=8)
    streams = await serve(server)
    held: list[DuplexStream] = []
    for organization, share in (("greedy", 4), ("second", 2), ("third", 1), ("fourth", 1)):
        held += [
            await streams.open(NODE, exec_request("sleep", instance_id=f"ins_{organization}")) for _ in range(share)
        ]
        await holds(server, len(held))
        assert await refused(streams, f"ins_{organization}")
    for stream in held:
        await stream.aclose()


async def test_what_nodes_give_to_each_other_is_not_held_up_by_organizations() -> None:
    server = scripted(Waits(), limit=2)
    streams = await serve(server)
    held = await streams.open(NODE, exec_request("sleep"))
    await holds(server, 1)
    assert await refused(streams, "ins_1")
    found = await records(await streams.open(NODE, StreamRequest(kind=StreamKind.MEMORY, instance_id="ins_1")))
    assert [(record.kind, record.payload) for record in found] == [
        (RecordKind.STDOUT, b"memory"),
        (RecordKind.EXIT, bytes(4)),
    ]
    await held.aclose()
