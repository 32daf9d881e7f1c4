"""The guest's init in real microVMs, over a hand-written QEMU line."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from plasmavmc.guest.api import (
    ExecExit,
    ExecOutput,
    GuestExited,
    GuestFailed,
    GuestHello,
    GuestNetwork,
    GuestOutput,
    GuestReady,
)
from plasmavmc.guest.channel import SocketGuestChannel
from plasmavmc.types import ExecSpec, FileSpec, LogStream, TerminalSize
from tests.real.guest_vm import DEADLINE_S, Parts, Vm, clone_layer, compile_app, next_of, running, squashfs

pytestmark = pytest.mark.real

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:Web:/var/www:/bin/sh\n"
GROUP = b"root:x:0:\nwww:x:34:\nlogs:x:111:web\n"
SECRET = b"a-secret-that-must-not-lie-on-a-disk"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_app(tmp_path_factory.mktemp("app"))


@pytest.fixture
async def scratch(app: bytes, tmp_path: Path) -> AsyncIterator[Vm]:
    """A VM from an image that holds one static program and nothing else."""
    squashfs({"app": (app, 0o755)}, tmp_path / "image")
    async with running(Parts(tmp_path, tmp_path / "image", await clone_layer(tmp_path / "layer"))) as vm:
        yield vm


async def run(channel: SocketGuestChannel, *command: str, **wishes: object) -> tuple[str, int]:
    """stdout and code of a command in the guest."""
    session = await channel.exec(ExecSpec(command, **wishes))  # type: ignore[arg-type]
    written = b""
    async with asyncio.timeout(DEADLINE_S):
        async for item in session.output():
            if isinstance(item, ExecExit):
                return written.decode(), item.code
            written += item.data
    raise AssertionError("no exit code came")


async def rest(channel: SocketGuestChannel) -> tuple[list[GuestOutput], GuestExited]:
    """All output until the exit code, acknowledged as it comes."""
    heard: list[GuestOutput] = []
    async with asyncio.timeout(DEADLINE_S):
        async for event in channel.events():
            if isinstance(event, GuestOutput):
                heard.append(event)
                await channel.acknowledge(event.offset + len(event.data))
            elif isinstance(event, GuestExited):
                return heard, event
    raise AssertionError("the channel ended without an exit code")


async def test_a_scratch_image_lives_its_whole_life(scratch: Vm) -> None:
    network = GuestNetwork(IPv4Address("10.0.2.15"), IPv4Address("10.0.2.2"), ("10.0.2.3",))
    files = (FileSpec("/etc/app/token", SECRET, 0o400), FileSpec("/run/plain", b"plain"))
    channel = await scratch.start(
        "/app", "serve", "7", hostname="hello", network=network, files=files, workdir="/new/work", env={"A": "1"}
    )
    await next_of(channel, GuestReady)
    assert (await next_of(channel, GuestOutput)).data == b"serving\n"

    assert await run(channel, "/app", "id") == ("uid 0 gid 0 groups\nsession 1 cwd /new/work\n", 0)
    assert await run(channel, "/app", "fds") == ("fd 0\nfd 1\nfd 2\n", 0)
    environment, _ = await run(channel, "/app", "env", env={"B": "2"})
    assert {"A=1", "B=2", "HOSTNAME=hello", "HOME=/"} < set(environment.splitlines())

    shown, _ = await run(channel, "/app", "show", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/app/token")
    assert "/etc/hostname 644 hello\n" in shown
    assert "10.0.2.15\thello\n" in shown
    assert "nameserver 10.0.2.3\n" in shown
    assert f"/etc/app/token 400 {SECRET.decode()}" in shown
    routes, _ = await run(channel, "/app", "show", "/proc/net/route")
    assert [line.split()[1:4] for line in routes.splitlines()[1:] if line.split()] == [
        ["00000000", "0202000A", "0003"],
        ["0202000A", "00000000", "0005"],
    ]
    assert await run(channel, "/app", "tty", terminal=TerminalSize()) == ("tty 1\r\n", 0)
    assert (await run(channel, "nonsense"))[1] == 127

    await channel.stop("SIGTERM", 30)
    output, end = await rest(channel)
    assert end == GuestExited(7)
    assert output[-1].data == b"last words\n"
    assert await scratch.ended() == 0
    assert scratch.parts.layer is not None
    assert not await asyncio.to_thread(holds, scratch.parts.layer, SECRET)
    assert await asyncio.to_thread(holds, scratch.parts.layer, b"nameserver 10.0.2.3")


def holds(disk: Path, text: bytes) -> bool:
    """The disk's used part contains the text; read by its holes, for it is sparse."""
    with disk.open("rb") as file:
        position = 0
        while True:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                return False
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            if text in os.pread(file.fileno(), position - start, start):
                return True


async def test_an_app_that_exits_takes_its_vm_with_it(scratch: Vm) -> None:
    output, end = await rest(await scratch.start("/app", "exit", "42"))
    assert [event.data for event in output] == [b"leaving with 42\n"]
    assert end == GuestExited(42, oom=False)
    assert await scratch.ended() == 0


@pytest.mark.parametrize(
    ("argv", "config", "code"),
    [(("/not-here",), {}, "no-such-command"), (("/app",), {"user": "web"}, "no-such-user")],
)
async def test_an_app_that_cannot_start_fails_with_the_reason(
    scratch: Vm, argv: tuple[str, ...], config: dict[str, object], code: str
) -> None:
    failed = await next_of(await scratch.start(*argv, **config), GuestFailed)
    assert failed.code == code
    assert await scratch.ended() == 0


async def test_an_app_that_eats_all_memory_is_told_as_out_of_memory(scratch: Vm) -> None:
    _, end = await rest(await scratch.start("/app", "eat"))
    assert end == GuestExited(137, oom=True)
    assert await scratch.ended() == 0


async def test_a_deaf_app_is_killed_and_that_is_not_called_out_of_memory(scratch: Vm) -> None:
    channel = await scratch.start("/app", "deaf")
    await next_of(channel, GuestOutput)
    await channel.stop("SIGTERM", 0.5)
    _, end = await rest(channel)
    assert end == GuestExited(137, oom=False)
    assert await scratch.ended() == 0


async def test_a_host_may_come_and_go_amid_output_and_commands(scratch: Vm) -> None:
    channel = await scratch.start("/app", "flood", "100", "1000")
    heard = bytearray()
    for _ in range(5):
        commands = [await channel.exec(ExecSpec(("/app", "cat"))) for _ in range(3)]
        for command in commands:
            await command.send(bytes(30_000))
        enough = len(heard) + 5000
        while len(heard) < enough:
            event = await next_of(channel, GuestOutput)
            assert event.offset <= len(heard), "output is missing"
            heard += event.data[len(heard) - event.offset :]
            await channel.acknowledge(len(heard) - 1000)
        await channel.aclose()
        channel = await scratch.open()
        assert (await next_of(channel, GuestHello)).configured
        await next_of(channel, GuestReady)
        assert await run(channel, "/app", "exit", "3") == ("leaving with 3\n", 3)
    await channel.stop("SIGKILL", 0)
    output, _ = await rest(channel)
    for event in output:
        heard += event.data[max(len(heard) - event.offset, 0) :]
    lines = heard.decode().splitlines()[:-1]
    assert [int(line.split()[0]) for line in lines] == list(range(len(lines)))


async def test_an_app_that_writes_a_megabyte_a_second_does_not_wait_for_a_host_that_is_away(scratch: Vm) -> None:
    first = await scratch.start("/app", "flood", "1024", "4")
    seen = await next_of(first, GuestOutput)
    await first.aclose()
    await asyncio.sleep(2)  # the host is away; nothing can be observed from there
    second = await scratch.open()
    hello = await next_of(second, GuestHello)
    assert hello.log_offset > seen.offset, "nothing was dropped, so the ring was never full"
    output, end = await rest(second)
    assert end.exit_code == 0
    assert output[0].offset == hello.log_offset
    assert output[-1].data.splitlines()[-1].endswith(b" 0 waits")
    for before, after in itertools.pairwise(output):
        assert after.offset == before.offset + len(before.data)


async def test_a_host_that_is_away_costs_the_guest_no_cpu(scratch: Vm) -> None:
    channel = await scratch.start("/app", "serve")
    await next_of(channel, GuestOutput)
    await channel.aclose()
    before = scratch.cpu_seconds()
    await asyncio.sleep(2)  # the span that is measured
    assert scratch.cpu_seconds() - before < 0.4


async def test_what_an_image_has_is_kept_and_its_users_are_known(app: bytes, tmp_path: Path) -> None:
    image = {
        "app": (app, 0o755),
        "etc/": (b"", 0o755),
        "etc/passwd": (PASSWD, 0o644),
        "etc/group": (GROUP, 0o644),
        "run/": (b"", 0o755),
        "run/kept": (b"of the image", 0o644),
        "tmp/": (b"", 0o1777),
        "tmp/kept": (b"of the image", 0o644),
        "var/": (b"", 0o755),
        "var/www/": (b"", 0o755),
    }
    squashfs(image, tmp_path / "image")
    async with running(Parts(tmp_path, tmp_path / "image", await clone_layer(tmp_path / "layer"))) as vm:
        channel = await vm.start("/app", "serve", user="web")
        await next_of(channel, GuestReady)
        assert (await run(channel, "/app", "id"))[0].startswith("uid 33 gid 34 groups 111\n")
        assert (await run(channel, "/app", "id", user="0"))[0].startswith("uid 0 gid 0")
        assert (await run(channel, "/app", "id", user="5:6"))[0].startswith("uid 5 gid 6 groups\n")
        assert "HOME=/var/www" in (await run(channel, "/app", "env"))[0]
        assert await run(channel, "/app", "write", "/dev/stdout") == ("written\n", 0)
        shown, _ = await run(channel, "/app", "show", "/run/kept", "/tmp/kept")
        assert shown.count("of the image") == 2


async def test_a_vm_without_a_writable_disk_keeps_its_layer_in_memory(app: bytes, tmp_path: Path) -> None:
    squashfs({"app": (app, 0o755)}, tmp_path / "image")
    async with running(Parts(tmp_path, tmp_path / "image", None)) as vm:
        _, end = await rest(await vm.start("/app", "exit", "5"))
        assert end == GuestExited(5)


async def test_an_image_that_cannot_be_mounted_is_told(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    async with running(Parts(tmp_path, tmp_path / "image", None)) as vm:
        failed = await next_of(await vm.start("/app"), GuestFailed)
        assert failed.code == "bad-root-disk"
        assert await vm.ended() == 0


async def test_two_outputs_keep_their_names(scratch: Vm) -> None:
    channel = await scratch.start("/app", "serve")
    heard = [await next_of(channel, GuestOutput) for _ in range(2)]
    assert {event.stream: event.data for event in heard} == {
        LogStream.STDOUT: b"serving\n",
        LogStream.STDERR: b"an error line\n",
    }
    session = await channel.exec(ExecSpec(("/app", "serve")))
    streams = {item.stream async for item in limited(session.output(), 2) if isinstance(item, ExecOutput)}
    assert streams == {LogStream.STDOUT, LogStream.STDERR}


async def limited(items: AsyncIterator[ExecOutput | ExecExit], count: int) -> AsyncIterator[ExecOutput | ExecExit]:
    """The first so many."""
    for _ in range(count):
        yield await anext(items)
