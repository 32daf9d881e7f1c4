"""Logs, exec and use over the API, with a node whose guests are played by the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.control.instances import MAX_FOLLOWED
from shellwego.control.logs import AWAY_S, MAX_TEXT
from shellwego.core.errors import UnavailableError
from shellwego.core.instances import Instance, Phase
from shellwego.core.vms import NetworkUsage, VmUsage
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.engine import LogRecord
from shellwego.ports.streams import DuplexStream, StreamHandler, StreamKind, StreamRequest
from shellwego.wire import codec
from shellwego.wire.streams import Record, RecordKind, RecordReader, pack
from tests.api.api_world import ADMIN, World, make_world
from tests.api.listener import Listener, reach
from tests.control.away_store import AwayStore


@contextlib.asynccontextmanager
async def served(world: World, handler: StreamHandler) -> AsyncIterator[None]:
    """A node that answers streams so."""
    task = asyncio.ensure_future(world.streams.serve(world.node.id, handler))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def log(time: float, text: str) -> bytes:
    return pack(Record(RecordKind.LOG, codec.encode(LogRecord(time=time, stream="stdout", text=text))))


def says(*lines: tuple[float, str]) -> StreamHandler:
    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        assert request.kind is StreamKind.LOGS
        for time, text in lines[-request.tail :]:
            await stream.send(log(time, text))

    return handler


async def test_logs_of_several_instances_are_told_in_the_order_of_their_time(world: World) -> None:
    await world.deployed()
    one, two = await world.running(), await world.running()

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        lines = ((1.0, "a"), (3.0, "c")) if request.instance_id == one.id else ((2.0, "b"), (4.0, "d"))
        await says(*lines)(request, stream)

    async with served(world, handler):
        lines = (await world.get("/v1/apps/shop/logs?tail=3")).json["data"]
        assert [line["text"] for line in lines] == ["b", "c", "d"]
        assert {line["instance_id"] for line in lines} == {one.id, two.id}
        only = (await world.get(f"/v1/apps/shop/logs?instance={two.id}")).json["data"]
        assert [line["text"] for line in only] == ["b", "d"]
        unknown = await world.get("/v1/apps/shop/logs?process=nope")
        assert (unknown.status, unknown.code, unknown.json["resolution"][:17]) == (
            422,
            "no-such-process",
            "The app has: web.",
        )
        assert (await world.get("/v1/apps/shop/logs/stream?process=nope")).status == 422
        assert (await world.get(f"/v1/apps/shop/logs?instance=ins_{'0' * 26}")).status == 404


async def test_the_last_lines_are_of_so_much_text_and_without_a_gap(world: World) -> None:
    await world.deployed()
    one, two = await world.running(), await world.running()
    long = "x" * 15_000
    most = MAX_TEXT // len(long)

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        if request.instance_id == one.id:
            await says(*[(float(number), long) for number in range(1000)])(request, stream)
        else:
            await asyncio.sleep(0.2)
            await says((0.5, "old"), (999.5, "new"))(request, stream)

    async with served(world, handler):
        lines = (await world.get("/v1/apps/shop/logs?tail=10000")).json["data"]
    texts = [line["text"] for line in lines]
    assert texts[-1] == "new"
    assert texts[:-1] == [long] * most
    assert {line["instance_id"] for line in lines} == {one.id, two.id}


async def test_logs_of_what_runs_are_told_however_much_ended_or_waited_since(world: World) -> None:
    await world.deployed()
    runs = await world.running()
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(1)
    for _ in range(MAX_FOLLOWED):
        await world.running(phase=Phase.STOPPED)
    asked: set[str] = set()

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        asked.add(request.instance_id)
        await says((1.0, request.instance_id))(request, stream)

    async with served(world, handler):
        lines = (await world.get("/v1/apps/shop/logs")).json["data"]
    assert runs.id in {line["instance_id"] for line in lines}
    assert len(asked) == MAX_FOLLOWED, "the rest is of the newest that ended"


async def test_a_node_is_told_which_attempt_of_an_instance_was_the_last(world: World) -> None:
    await world.deployed()
    ended = await world.running(phase=Phase.STOPPED)
    observed = replace(ended.observed, attempt=907)
    await world.commit(lambda unit: unit.tx.instances.update(replace(ended, observed=observed)))

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        await stream.send(log(1.0, f"of attempt {request.attempt}"))

    async with served(world, handler):
        (line,) = (await world.get("/v1/apps/shop/logs")).json["data"]
    assert line["text"] == "of attempt 907"


async def test_instances_that_wait_for_a_node_hide_no_log(world: World) -> None:
    await world.deployed()
    ended = await world.running(phase=Phase.STOPPED)
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(1)
    for _ in range(MAX_FOLLOWED):
        waits = await world.running(phase=Phase.PENDING)
        await world.commit(lambda unit, waits=waits: unit.tx.instances.update(replace(waits, node_id="")))
    async with served(world, says((1.0, "a"))):
        lines = (await world.get("/v1/apps/shop/logs")).json["data"]
    assert [line["instance_id"] for line in lines] == [ended.id]


async def test_a_node_out_of_reach_is_said_and_a_missing_vm_is_silence(world: World) -> None:
    await world.deployed()
    await world.running()
    answer = await world.get("/v1/apps/shop/logs")
    assert (answer.status, answer.code) == (503, "node-unreachable")

    async def no_vm(request: StreamRequest, stream: DuplexStream) -> None:
        await stream.send(pack(Record(RecordKind.ERROR, b"vm-not-found\0no VM")))

    async with served(world, no_vm):
        assert (await world.get("/v1/apps/shop/logs")).json["data"] == []


@pytest.mark.parametrize(
    "noise",
    [
        b"\xff" * 100,
        pack(Record(RecordKind.LOG, b"\xff")),
        pack(Record(RecordKind.LOG, codec.encode({"time": "x"}))),
        pack(Record(RecordKind.LOG, b"\x81\xa5other" + b"\x91" * 20_000 + b"\xc0")),
        b"\x08\xff\xff\xff\xff",
    ],
)
async def test_a_node_that_sends_nonsense_is_an_error_with_a_name(world: World, noise: bytes) -> None:
    await world.deployed()
    await world.running()

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        await stream.send(noise)

    async with served(world, handler):
        answer = await world.get("/v1/apps/shop/logs")
        assert (answer.status, answer.code) == (503, "stream-broken")


@pytest.mark.parametrize("time", [-1.0, 1e300, float("inf"), float("nan")])
async def test_a_line_with_an_impossible_time_is_still_told(world: World, time: float) -> None:
    await world.deployed()
    await world.running()
    async with served(world, says((time, "x"))):
        answer = await world.get("/v1/apps/shop/logs")
        assert answer.json["data"][0]["text"] == "x"


async def _echo(request: StreamRequest, stream: DuplexStream) -> None:
    """A guest that answers with its input and its command, and exits with 7."""
    reader = RecordReader()
    given = b""
    ended = False
    while not ended and (data := await stream.receive()):
        for record in reader.feed(data):
            given += record.payload if record.kind is RecordKind.STDIN else b""
            ended = ended or record.kind is RecordKind.STDIN_EOF
    await stream.send(pack(Record(RecordKind.STDOUT, given)))
    await stream.send(pack(Record(RecordKind.STDERR, " ".join(request.command).encode() + b"\xff")))
    await stream.send(pack(Record(RecordKind.EXIT, (7).to_bytes(4, "big", signed=True))))


async def test_a_command_is_run_to_its_end_and_audited(world: World) -> None:
    await world.deployed()
    instance = await world.running()
    async with served(world, _echo):
        answer = await world.post("/v1/apps/shop/exec", {"command": ["cat", "-"], "stdin": "hé"})
    assert answer.json == {
        "instance_id": instance.id,
        "exit_code": 7,
        "stdout": "hé",
        "stderr": "cat -\ufffd",
        "truncated": False,
    }
    records = (await world.get("/v1/audit?filter[action]=instances:exec", token=ADMIN)).json["data"]
    assert [record["allowed"] for record in records] == [True]


async def test_output_beyond_the_bound_is_dropped_and_said(world: World) -> None:
    await world.deployed()
    await world.running()

    async def flood(request: StreamRequest, stream: DuplexStream) -> None:
        for _ in range(40):
            await stream.send(pack(Record(RecordKind.STDOUT, b"x" * 32 * 1024)))
        await stream.send(pack(Record(RecordKind.EXIT, b"\0\0\0\0")))

    async with served(world, flood):
        answer = (await world.post("/v1/apps/shop/exec", {"command": ["yes"]})).json
    assert (len(answer["stdout"]), answer["truncated"], answer["exit_code"]) == (256 * 1024, True, 0)


async def test_a_command_that_does_not_end_is_given_up(world: World) -> None:
    await world.deployed()
    await world.running()
    left = asyncio.Event()

    async def hang(request: StreamRequest, stream: DuplexStream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with served(world, hang):
        answer = await world.post("/v1/apps/shop/exec", {"command": ["sleep"], "timeout": 0.05})
        assert (answer.status, answer.code) == (409, "exec-timeout"), "to try again would run it again"
        await asyncio.wait_for(left.wait(), 5)


async def test_a_stream_that_breaks_before_the_exit_code_is_no_success(world: World) -> None:
    await world.deployed()
    await world.running()

    async def break_off(request: StreamRequest, stream: DuplexStream) -> None:
        await stream.send(pack(Record(RecordKind.STDOUT, b"half")))

    async with served(world, break_off):
        assert (await world.post("/v1/apps/shop/exec", {"command": ["x"]})).code == "stream-broken"


async def test_a_command_needs_a_running_instance(world: World) -> None:
    await world.deployed()
    assert (await world.post("/v1/apps/shop/exec", {"command": ["x"]})).code == "not-running"
    stopped = await world.running(phase=Phase.STOPPED)
    answer = await world.post("/v1/apps/shop/exec", {"command": ["x"], "instance": stopped.id})
    assert answer.code == "not-running"
    asleep = await world.running(phase=Phase.ASLEEP)
    answer = await world.post("/v1/apps/shop/exec", {"command": ["x"], "instance": asleep.id})
    assert answer.json["resolution"] == "Resume it first."


async def test_a_command_for_a_process_that_is_not_is_refused_as_such(world: World) -> None:
    await world.deployed()
    await world.running()
    answer = await world.post("/v1/apps/shop/exec", {"command": ["x"], "process": "nope"})
    assert (answer.status, answer.code) == (422, "no-such-process")


async def test_followed_logs_take_up_new_instances_and_go_on_after_a_break(world: World) -> None:
    await world.deployed()
    one = await world.running()
    said: dict[str, asyncio.Queue[bytes | None]] = {one.id: asyncio.Queue()}

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        while (line := await said[request.instance_id].get()) is not None:
            await stream.send(line)
        raise UnavailableError("broken", "the link broke")

    async with served(world, handler):
        listener = Listener(world, "/v1/apps/shop/logs/stream")
        said[one.id].put_nowait(log(1.0, "first"))
        await reach(world, lambda: len(listener.events) == 1)
        two = replace(await world.running(), slot=1)
        said[two.id] = asyncio.Queue()
        said[two.id].put_nowait(log(2.0, "second"))
        await reach(world, lambda: len(listener.events) == 2)
        said[one.id].put_nowait(None)
        said[one.id].put_nowait(log(3.0, "third"))
        await reach(world, lambda: len(listener.events) == 3)
        assert [event["data"]["text"] for event in listener.events] == ["first", "second", "third"]
        await listener.leave()
    assert not world.streams._served.get(world.node.id)


async def test_followed_logs_outlast_a_store_that_does_not_answer(tmp_path: Path) -> None:
    clock = VirtualClock()
    store = AwayStore(MemoryStore(clock))
    world = await make_world(tmp_path / "spool", clock=clock, store=store)
    await world.deployed()
    one = await world.running()
    said: dict[str, asyncio.Queue[bytes]] = {one.id: asyncio.Queue()}

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        while True:
            await stream.send(await said[request.instance_id].get())

    async with served(world, handler):
        listener = Listener(world, "/v1/apps/shop/logs/stream")
        said[one.id].put_nowait(log(1.0, "before"))
        await reach(world, lambda: len(listener.events) == 1)
        store.away = True
        await reach(world, lambda: store.unanswered >= 3)
        said[one.id].put_nowait(log(2.0, "meanwhile"))
        await reach(world, lambda: len(listener.events) == 2)
        store.away = False
        two = await world.running()
        said[two.id] = asyncio.Queue()
        said[two.id].put_nowait(log(3.0, "after"))
        await reach(world, lambda: len(listener.events) == 3)
        assert [event["data"]["text"] for event in listener.events] == ["before", "meanwhile", "after"]
        await listener.leave()


async def test_a_followed_log_that_ends_while_its_instance_lives_is_asked_for_again(world: World) -> None:
    await world.deployed()
    await world.running()
    written = [(1.0, "before the node knew its VM")]

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        await says(*[line for line in written if line[0] >= request.since])(request, stream)

    async with served(world, handler):
        listener = Listener(world, "/v1/apps/shop/logs/stream")
        await reach(world, lambda: len(listener.events) == 1)
        written.append((2.0, "later"))
        await reach(world, lambda: len(listener.events) == 2)
        await listener.leave()
    assert [event["data"]["text"] for event in listener.events] == [text for _, text in written]


async def test_followed_logs_begin_with_the_last_lines_of_all_in_the_order_of_their_time(world: World) -> None:
    await world.deployed()
    one, two, silent = [await world.running() for _ in range(3)]
    past = {
        one.id: [(1.0, "a"), (3.0, "c"), (5.0, "e"), (5.0, "e")],
        two.id: [(2.0, "b"), (4.0, "d"), (6.0, "f")],
        silent.id: [],
    }

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        lines = [(time, text) for time, text in past[request.instance_id] if time >= request.since]
        if request.instance_id == silent.id:
            await asyncio.Event().wait()
        await says(*lines)(request, stream)
        if request.follow:
            if request.instance_id == one.id:
                await stream.send(log(5.0, "e") + log(7.0, "g"))
            await asyncio.Event().wait()

    async with served(world, handler):
        listener = Listener(world, "/v1/apps/shop/logs/stream?tail=5")
        await reach(world, lambda: len(listener.events) == 7)
        texts = [event["data"]["text"] for event in listener.events]
        assert texts == ["c", "d", "e", "e", "f", "e", "g"], "the tail is that of all, and nothing comes twice"
        await listener.leave()


async def test_the_log_of_one_instance_ends_with_it(world: World) -> None:
    await world.deployed()
    await world.running()
    one = await world.running(phase=Phase.STOPPED)
    lines = [(float(number), f"line {number}") for number in range(1000)]
    async with served(world, says(*lines)):
        listener = Listener(world, f"/v1/apps/shop/logs/stream?tail=1000&instance={one.id[-6:]}")
        await reach(world, listener.task.done)
    assert [event["data"]["text"] for event in listener.events] == [text for _, text in lines]


async def ends(world: World, instance: Instance) -> None:
    """Its node was judged dead."""
    await world.commit(lambda unit: unit.tx.instances.update(replace(instance, phase=Phase.LOST)))


async def test_the_log_of_an_instance_whose_node_is_gone_ends_and_says_why(world: World) -> None:
    await world.deployed()
    one = await world.running()
    async with served(world, says((1.0, "a"))):
        listener = Listener(world, f"/v1/apps/shop/logs/stream?instance={one.id}")
        await reach(world, lambda: len(listener.events) == 1)
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(120)
    assert not listener.task.done(), "it may come back while the instance is not given up"
    await ends(world, one)
    await reach(world, listener.task.done)
    first, last = (event["data"] for event in listener.events)
    assert (first["text"], last["stream"], last["instance_id"]) == ("a", "system", one.id)
    assert "cannot be read now: node" in last["text"]


async def test_the_last_lines_of_an_instance_are_told_after_a_break_at_its_end(world: World) -> None:
    await world.deployed()
    one = await world.running()
    await ends(world, one)
    listener = Listener(world, f"/v1/apps/shop/logs/stream?instance={one.id}")
    await reach(world, lambda: listener.status == 200)
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(AWAY_S / 2)
    async with served(world, says((1.0, "a"))):
        await reach(world, listener.task.done)
    assert [event["data"]["text"] for event in listener.events] == ["a"]


@pytest.mark.parametrize("away", [False, True])
async def test_the_log_of_an_instance_that_is_forgotten_ends_when_what_there_was_is_told(
    world: World, away: bool
) -> None:
    await world.deployed()
    one = await world.running()
    over = asyncio.Event()

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        await stream.send(log(1.0, "a"))
        await over.wait()
        if away:
            raise UnavailableError("broken", "the link broke")
        await stream.send(log(2.0, "b"))

    async with served(world, handler):
        listener = Listener(world, f"/v1/apps/shop/logs/stream?instance={one.id}")
        await reach(world, lambda: len(listener.events) == 1)
        await world.commit(lambda unit: unit.tx.instances.delete(one.id))
        assert isinstance(world.clock, VirtualClock)
        await world.clock.advance(5)
        over.set()
        await reach(world, listener.task.done)
    texts = [event["data"]["text"] for event in listener.events]
    assert texts[0] == "a"
    assert texts[1:] == ["b"] or (away and "cannot be read now" in texts[1])
    assert {event["event"] for event in listener.events} == {"log"}


async def test_who_follows_an_app_does_not_ask_for_ever_for_what_ended_on_a_node_that_is_gone(world: World) -> None:
    await world.deployed()
    lives, gone = await world.running(), await world.running()
    asked: list[str] = []

    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        asked.append(request.instance_id)
        raise UnavailableError("broken", "the link broke")

    async with served(world, handler):
        listener = Listener(world, "/v1/apps/shop/logs/stream")
        await reach(world, lambda: {lives.id, gone.id} <= set(asked))
        await ends(world, gone)
        assert isinstance(world.clock, VirtualClock)
        await world.clock.advance(AWAY_S + 3)
        asked.clear()
        await world.clock.advance(60)
        assert set(asked) == {lives.id}
        await listener.leave()
    assert listener.events == [], "each of them would say that its log cannot be read"


def uses(used: VmUsage) -> StreamHandler:
    async def handler(request: StreamRequest, stream: DuplexStream) -> None:
        assert request.kind is StreamKind.USAGE
        await stream.send(pack(Record(RecordKind.USAGE, codec.encode(used))))

    return handler


async def test_what_a_vm_uses_is_told_where_its_node_tells_it(world: World) -> None:
    await world.deployed()
    instance = await world.running()
    paths = (f"/v1/vms/{instance.id}", f"/v1/apps/shop/instances/{instance.id}")
    assert [(await world.get(path)).json["usage"] for path in paths] == [None, None]
    passed = NetworkUsage(
        transmit_packets=3, transmit_bytes=180, receive_packets=2, receive_bytes=120, dropped={"source-mac": 1}
    )
    used = VmUsage(memory_bytes=1 << 28, cpu_seconds=1.5, disk_bytes=4096, pressure={"cpu": 0.5}, network=passed)
    shown = {
        "memory_bytes": 1 << 28,
        "cpu_seconds": 1.5,
        "disk_bytes": 4096,
        "pressure": {"cpu": 0.5},
        "network": {
            "transmit_packets": 3,
            "transmit_bytes": 180,
            "receive_packets": 2,
            "receive_bytes": 120,
            "dropped": {"source-mac": 1},
        },
    }
    async with served(world, uses(used)):
        assert [(await world.get(path)).json["usage"] for path in paths] == [shown, shown]
        assert {row["usage"] for row in (await world.get("/v1/vms")).json["data"]} == {None}, "a list asks no node"
    for nonsense in (
        replace(used, cpu_seconds=float("nan")),
        replace(used, memory_bytes=-1),
        replace(used, pressure={"love": 1.0}),
        replace(used, network=replace(passed, receive_bytes=-1)),
        replace(used, network=replace(passed, dropped={"\x1b[2J": 1})),
        replace(used, network=replace(passed, dropped={f"reason-{number}": 1 for number in range(65)})),
    ):
        async with served(world, uses(nonsense)):
            assert (await world.get(paths[0])).json["usage"] is None


async def test_a_node_that_tells_nothing_of_a_vm_does_not_hide_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shellwego.control.streams.USAGE_S", 0.05)
    await world.deployed()
    instance = await world.running()

    async def silent(request: StreamRequest, stream: DuplexStream) -> None:
        await asyncio.Event().wait()

    async with served(world, silent):
        answer = await world.get(f"/v1/vms/{instance.id}")
    assert (answer.status, answer.json["usage"]) == (200, None)
