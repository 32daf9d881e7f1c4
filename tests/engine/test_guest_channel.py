"""The real channel against the real C loop (built with sanitizers), over a pair of sockets instead of a VM."""

from __future__ import annotations

import asyncio
import itertools
import resource
from pathlib import Path

import pytest

from plasmavmc.errors import ConflictError, GuestError, InvalidSpecError
from plasmavmc.guest.api import (
    ExecExit,
    ExecOutput,
    GuestConfig,
    GuestExited,
    GuestFailed,
    GuestHello,
    GuestOutput,
    GuestReady,
)
from plasmavmc.guest.channel import SocketGuestChannel
from plasmavmc.types import MIB, ExecSpec, FileSpec, LogStream, TerminalSize
from tests.bytes import first_difference
from tests.engine.guest_loopback import DEADLINE_S, Guest, finish, loopback, next_of

SLEEP = ("/bin/sleep", "1000")


HANG_UP_SCRIPT = "trap 'echo x > {mark}; exit' HUP; echo up; exec >/dev/null 2>&1; while :; do sleep 0.05; done"
"""Its shell complains about the death of its sleep, and would die of that where nobody reads its stderr any more."""


async def sh(channel: SocketGuestChannel, script: str, **wishes: object) -> tuple[str, str, int]:
    return await finish(await channel.exec(ExecSpec(("/bin/sh", "-c", script), **wishes)))  # type: ignore[arg-type]


async def collect(channel: SocketGuestChannel) -> tuple[list[GuestOutput], GuestExited]:
    """All output until the end, acknowledged as it comes."""
    heard: list[GuestOutput] = []
    async with asyncio.timeout(DEADLINE_S):
        async for event in channel.events():
            if isinstance(event, GuestOutput):
                heard.append(event)
                await channel.acknowledge(event.offset + len(event.data))
            elif isinstance(event, GuestExited):
                return heard, event
    raise AssertionError("the channel ended without an exit code")


# A workload's life


async def test_a_guest_says_hello_takes_its_configuration_and_is_ready(guest: Guest) -> None:
    channel = await guest.open(fresh=True)
    assert await next_of(channel, GuestHello) == GuestHello(configured=False, log_offset=0)
    await channel.configure(GuestConfig(argv=SLEEP))
    assert isinstance(await next_of(channel, GuestReady), GuestReady)
    with pytest.raises(ConflictError):
        await channel.configure(GuestConfig(argv=SLEEP))


async def test_all_output_comes_before_the_exit_code(guest: Guest) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo bad >&2; exit 42"
    output, end = await collect(await guest.start("/bin/sh", "-c", script))
    assert end == GuestExited(42)
    stdout = b"".join(event.data for event in output if event.stream is LogStream.STDOUT)
    assert stdout.decode().splitlines() == [f"line {number}" for number in range(2000)]
    assert [event.data for event in output if event.stream is LogStream.STDERR] == [b"bad\n"]
    assert await guest.ended() == "dropped 0\n"


async def test_offsets_number_the_bytes_of_both_streams_without_a_gap(guest: Guest) -> None:
    output, _ = await collect(await guest.start("/bin/sh", "-c", "echo one; echo two >&2; echo three"))
    ends = [0, *itertools.accumulate(len(event.data) for event in output)]
    assert [event.offset for event in output] == ends[:-1]


async def test_a_death_by_signal_is_told_as_a_shell_tells_it(guest: Guest) -> None:
    _, end = await collect(await guest.start("/bin/sh", "-c", "kill -SEGV $$"))
    assert end == GuestExited(128 + 11)


@pytest.mark.parametrize(
    ("argv", "config", "code"),
    [
        (("no-such-program",), {}, "no-such-command"),
        (("/no/such/program",), {}, "no-such-command"),
        (("/etc/passwd",), {}, "not-executable"),
        (("/etc",), {}, "not-executable"),
        (SLEEP, {"workdir": "/etc/passwd"}, "bad-workdir"),
        (SLEEP, {"workdir": "relative"}, "bad-workdir"),
        (SLEEP, {"user": "no-such-user-here"}, "no-such-user"),
        (SLEEP, {"user": "root:no-such-group"}, "no-such-user"),
    ],
)
async def test_a_workload_that_cannot_start_fails_with_the_reason(
    guest: Guest, argv: tuple[str, ...], config: dict[str, object], code: str
) -> None:
    channel = await guest.start(*argv, **config)
    failed = await next_of(channel, GuestFailed)
    assert isinstance(failed, GuestFailed)
    assert failed.code == code
    assert failed.message
    await guest.ended()


async def test_a_configuration_may_span_many_frames(guest: Guest) -> None:
    big = FileSpec("/x", b"x" * (3 * MIB))
    env = {"NAME": "value with = and ü"}
    output, end = await collect(await guest.start("/bin/sh", "-c", 'printf %s "$NAME"', files=(big,), env=env))
    assert (b"".join(event.data for event in output).decode(), end.exit_code) == ("value with = and ü", 0)


async def test_a_configuration_beyond_bounds_is_refused_before_it_is_sent(guest: Guest) -> None:
    channel = await guest.open(fresh=True)
    with pytest.raises(InvalidSpecError, match="files"):
        await channel.configure(GuestConfig(argv=SLEEP, files=(FileSpec("/x", bytes(5 * MIB)),)))


async def test_the_workload_inherits_no_descriptor(guest: Guest) -> None:
    output, _ = await collect(await guest.start("/bin/sh", "-c", "ls /proc/self/fd"))
    listed = b"".join(event.data for event in output).decode().split()
    assert listed == ["0", "1", "2", "3"]  # the last is the directory that ls reads


async def test_a_stop_signal_reaches_the_workload(guest: Guest) -> None:
    channel = await guest.start("/bin/sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done")
    await next_of(channel, GuestOutput)
    await channel.stop("SIGTERM", 10)
    _, end = await collect(channel)
    assert end == GuestExited(3)


async def test_a_workload_that_ignores_the_signal_is_killed_when_the_grace_is_over(guest: Guest) -> None:
    channel = await guest.start("/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    await next_of(channel, GuestOutput)
    await channel.stop("TERM", 0.2)
    _, end = await collect(channel)
    assert end == GuestExited(128 + 9)


async def test_a_stop_before_the_configuration_ends_the_guest(guest: Guest) -> None:
    channel = await guest.open(fresh=True)
    await channel.stop("SIGTERM", 1)
    assert await next_of(channel, GuestExited) == GuestExited(128 + 15)
    await guest.ended()


async def test_a_signal_that_does_not_exist_is_refused(guest: Guest) -> None:
    channel = await guest.start(*SLEEP)
    with pytest.raises(InvalidSpecError, match="signal"):
        await channel.stop("SIGNONSENSE", 1)


# Commands beside it


async def test_a_command_has_its_own_stdout_stderr_and_code(guest: Guest) -> None:
    channel = await guest.start(*SLEEP)
    assert await sh(channel, "echo out; echo err >&2; exit 7") == ("out\n", "err\n", 7)


async def test_a_command_sees_the_workloads_environment_and_its_own(guest: Guest) -> None:
    channel = await guest.start(*SLEEP, env={"A": "1", "B": "1"}, workdir="/usr")
    seen, _, _ = await sh(channel, "echo $A $B $C; pwd", env={"B": "2", "C": "3"})
    assert seen == "1 2 3\n/usr\n"
    assert (await sh(channel, "pwd", workdir="/etc"))[0] == "/etc\n"


async def test_input_goes_through_a_command_and_ends_it(guest: Guest) -> None:
    channel = await guest.start(*SLEEP)
    session = await channel.exec(ExecSpec(("cat",)))
    data = bytes(range(256)) * 4096

    async def feed() -> None:
        await session.send(data)
        await session.send_eof()

    feeding = asyncio.create_task(feed())
    heard = b""
    async for item in session.output():
        if isinstance(item, ExecOutput):
            heard += item.data
    await feeding
    assert first_difference(heard, data) is None


async def test_input_that_a_command_does_not_read_does_not_hold_anything_up(guest: Guest) -> None:
    channel = await guest.start(*SLEEP)
    session = await channel.exec(ExecSpec(SLEEP))
    sending = asyncio.create_task(session.send(bytes(MIB)))
    assert await sh(channel, "echo meanwhile") == ("meanwhile\n", "", 0)
    assert not sending.done()
    await session.signal(9)
    assert (await finish(session))[2] == 137
    await asyncio.wait_for(sending, DEADLINE_S)  # what nobody can read any more is dropped


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("nonsense", 127, "nonsense was not found in the image\n"),
        ("/etc/passwd", 126, "cannot execute /etc/passwd: Permission denied\n"),
    ],
)
async def test_a_command_that_cannot_be_executed_ends_as_in_a_shell(
    guest: Guest, name: str, code: int, reason: str
) -> None:
    channel = await guest.start(*SLEEP)
    session = await channel.exec(ExecSpec((name,)))
    await session.send(b"nobody reads it")
    await session.send_eof()
    assert await finish(session) == ("", reason, code)
    on_terminal = await channel.exec(ExecSpec((name,), terminal=TerminalSize()))
    assert await finish(on_terminal) == ("", reason.replace("\n", "\r\n"), code)
    assert await sh(channel, "exit 5") == ("", "", 5)


async def test_commands_that_cannot_start_for_another_reason_are_refused_with_it(guest: Guest) -> None:
    channel = await guest.start(*SLEEP)
    with pytest.raises(GuestError) as refused:
        await channel.exec(ExecSpec(("true",), user="no-such-user-here"))
    assert refused.value.code == "exec-no-such-user"
    with pytest.raises(InvalidSpecError):
        await channel.exec(ExecSpec(("echo", "nul\0inside")))


async def test_no_command_runs_before_the_configuration(guest: Guest) -> None:
    channel = await guest.open(fresh=True)
    with pytest.raises(GuestError) as refused:
        await channel.exec(ExecSpec(("true",)))
    assert refused.value.code == "exec-not-ready"


async def test_only_so_many_commands_run_at_a_time(guest: Guest) -> None:
    channel = await guest.start(*SLEEP)
    sessions = [await channel.exec(ExecSpec(SLEEP)) for _ in range(32)]
    with pytest.raises(GuestError) as refused:
        await channel.exec(ExecSpec(("true",)))
    assert refused.value.code == "exec-too-many"
    await sessions[0].signal(15)
    assert (await finish(sessions[0]))[2] == 128 + 15
    assert await sh(channel, "exit 5") == ("", "", 5)


async def test_a_command_on_a_terminal_has_its_size_and_may_be_resized(guest: Guest) -> None:
    channel = await guest.start(*SLEEP)
    script = "stty size; read line; stty size; echo $TERM; test -t 2 && echo tty; exit 4"
    session = await channel.exec(ExecSpec(("/bin/sh", "-c", script), terminal=TerminalSize(30, 100)))
    heard = b""
    code = None
    async for item in session.output():
        if isinstance(item, ExecExit):
            code = item.code
            break
        if not heard:
            await session.resize(TerminalSize(50, 120))
            await session.send(b"\n")
        heard += item.data
    assert code == 4
    assert heard.split() == [b"30", b"100", b"50", b"120", b"xterm", b"tty"]


async def test_the_end_of_input_reaches_a_command_on_a_terminal(guest: Guest) -> None:
    channel = await guest.start(*SLEEP)
    session = await channel.exec(ExecSpec(("cat",), terminal=TerminalSize()))
    await session.send_eof()
    assert (await finish(session))[2] == 0


async def test_letting_a_command_go_hangs_it_up(guest: Guest, tmp_path: Path) -> None:
    channel = await guest.start(*SLEEP)
    mark = tmp_path / "hung-up"
    session = await channel.exec(ExecSpec(("/bin/sh", "-c", HANG_UP_SCRIPT.format(mark=mark))))
    await anext(session.output())
    await session.aclose()
    await until(mark.exists)


async def test_a_background_child_does_not_keep_a_command_open(guest: Guest) -> None:
    channel = await guest.start(*SLEEP)
    assert await sh(channel, "sleep 1000 & echo started") == ("started\n", "", 0)


# Streams do not hold one another up


async def test_a_reader_that_stalls_stops_only_its_own_stream(guest: Guest) -> None:
    channel = await guest.start(*SLEEP)
    stalled = [await channel.exec(ExecSpec(("cat", "/dev/zero"))) for _ in range(8)]
    before = guest.memory_bytes()
    for number in range(20):
        assert await sh(channel, f"echo {number}") == (f"{number}\n", "", 0)
    assert guest.memory_bytes() - before < 4 * MIB
    for session in stalled:
        await session.aclose()


async def test_a_log_reader_that_stalls_stops_no_command_and_not_the_workload(guest: Guest, tmp_path: Path) -> None:
    mark = tmp_path / "written"
    script = f"head -c 4000000 /dev/zero; echo through >&2; touch {mark}; exec sleep 1000"
    channel = await guest.start("/bin/sh", "-c", script)
    big = "head -c 1000000 /dev/zero"
    assert len((await sh(channel, big))[0]) == 1_000_000
    await until(mark.exists)
    await channel.stop("SIGKILL", 0)
    output, _ = await collect(channel)
    assert output[-1].data == b"through\n"
    assert output[-1].offset == 4_000_000
    assert await guest.ended() != "dropped 0\n"


async def test_output_that_no_host_takes_is_dropped_oldest_first_and_counted(guest: Guest, tmp_path: Path) -> None:
    mark = tmp_path / "written"
    script = f"head -c 3000000 /dev/zero; echo end; touch {mark}; exec sleep 1000"
    channel = await guest.start("/bin/sh", "-c", script)
    await channel.aclose()
    await until(mark.exists)
    again = await guest.open()
    hello = await next_of(again, GuestHello)
    await again.stop("SIGKILL", 0)
    output, _ = await collect(again)
    assert isinstance(hello, GuestHello)
    assert hello.log_offset == output[0].offset
    assert output[-1].offset + len(output[-1].data) == 3_000_004
    assert 900_000 < sum(len(event.data) for event in output) <= MIB
    assert await guest.ended() == f"dropped {hello.log_offset}\n"


# The host comes and goes


async def test_a_host_that_returns_is_told_again_what_it_may_have_missed(guest: Guest) -> None:
    first = await guest.start("/bin/sh", "-c", "echo one; echo two; exec sleep 1000")
    heard = await next_of(first, GuestOutput)
    assert isinstance(heard, GuestOutput)
    await first.aclose()
    second = await guest.open()
    assert await next_of(second, GuestHello) == GuestHello(configured=True, log_offset=0)
    await next_of(second, GuestReady)
    again = await next_of(second, GuestOutput)
    assert isinstance(again, GuestOutput)
    assert again.offset == 0
    assert again.data.startswith(heard.data)


async def test_acknowledged_output_is_not_sent_again(guest: Guest) -> None:
    first = await guest.start("/bin/sh", "-c", "echo one; echo two; exec sleep 1000")
    end = 0
    while end < 8:
        heard = await next_of(first, GuestOutput)
        assert isinstance(heard, GuestOutput)
        end = heard.offset + len(heard.data)
    await first.acknowledge(end)
    assert await sh(first, "true") == ("", "", 0)  # the acknowledgement has been heard
    await first.aclose()
    second = await guest.open()
    hello = await next_of(second, GuestHello)
    assert hello == GuestHello(configured=True, log_offset=8)


async def test_an_end_that_nobody_heard_is_told_to_a_host_that_returns_at_once(guest: Guest, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = await guest.start("/bin/sh", "-c", f"while ! test -e {go}; do sleep 0.02; done; echo last words; exit 9")
    await next_of(first, GuestReady)
    await first.aclose()
    go.touch()
    second = await guest.open()
    output, end = await collect(second)
    assert (output[-1].data, end.exit_code) == (b"last words\n", 9)
    await guest.ended()


async def test_a_host_that_never_returns_does_not_hang_the_guest(guest: Guest) -> None:
    first = await guest.start("/bin/sh", "-c", "sleep 0.1; echo unheard; exit 9")
    await next_of(first, GuestReady)
    await first.aclose()
    assert await guest.ended() == "dropped 0\n"


@pytest.mark.parametrize("cut", [1, 7, 11, 12, 13, 600, 4000])
async def test_a_connection_cut_within_a_frame_is_survived(guest: Guest, cut: int) -> None:
    first = await guest.start(*SLEEP)
    session = await first.exec(ExecSpec(("cat",)))
    guest.proxy.cut_after = cut
    await session.send(b"\xf5" * 5000)
    second = await guest.open()
    assert await next_of(second, GuestHello) == GuestHello(configured=True, log_offset=0)
    assert await sh(second, "echo well") == ("well\n", "", 0)
    with pytest.raises(GuestError):
        await finish(session)


async def test_commands_of_the_old_connection_are_hung_up(guest: Guest, tmp_path: Path) -> None:
    mark = tmp_path / "hung-up"
    first = await guest.start(*SLEEP)
    session = await first.exec(ExecSpec(("/bin/sh", "-c", HANG_UP_SCRIPT.format(mark=mark))))
    await anext(session.output())
    await first.aclose()
    second = await guest.open()
    await until(mark.exists)
    assert await sh(second, "echo well") == ("well\n", "", 0)


async def test_many_reconnects_amid_traffic_lose_and_double_nothing_that_counts(guest: Guest, tmp_path: Path) -> None:
    mark = tmp_path / "written"
    script = f"i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; touch {mark}; exec sleep 1000"
    channel = await guest.start("/bin/sh", "-c", script)
    heard = bytearray()
    for _ in range(12):
        async with asyncio.timeout(DEADLINE_S):
            async for event in channel.events():
                if isinstance(event, GuestOutput):
                    assert event.offset <= len(heard)
                    heard += event.data[len(heard) - event.offset :]
                    await channel.acknowledge(max(len(heard) - 100, 0))
                    break
        session = await channel.exec(ExecSpec(("cat", "/dev/zero")))
        await session.send(bytes(1000))
        await channel.aclose()
        channel = await guest.open()
    await until(mark.exists)
    await channel.stop("SIGKILL", 0)
    output, _ = await collect(channel)
    for event in output:
        heard += event.data[len(heard) - event.offset :]
    assert heard.decode().splitlines() == [f"line {number}" for number in range(3000)]


async def test_a_host_that_is_away_costs_no_cpu(program: Path, tmp_path: Path) -> None:
    """The port's other end is closed, so it says hang-up at once and for ever."""
    async with loopback(program, tmp_path) as guest:
        channel = await guest.start("/bin/sleep", "1.5")
        await next_of(channel, GuestReady)
        await guest.proxy.close()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        await guest.ended()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


async def until(condition: object) -> None:
    """Poll with a deadline."""
    assert callable(condition)
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - a file appears, and nothing tells us
            await asyncio.sleep(0.01)
