"""The parts of the command line that decide by themselves: keys, values, archives from a hostile guest, published ports."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import resource
import socket
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.cli import values
from plasmavmc.cli.ends import Failure
from plasmavmc.cli.packing import pack
from plasmavmc.cli.terminal import KeyWatch, parse_keys
from plasmavmc.cli.unpacking import unpack
from plasmavmc.errors import ConflictError
from plasmavmc.server.ports import PublishedPorts
from plasmavmc.states import VmState
from plasmavmc.types import PublishedPort, Scope, Vm, VmSpec, VmStatus

# Keys


@given(st.lists(st.binary(max_size=4), max_size=12))
def test_without_the_keys_all_that_is_typed_goes_through_but_a_beginning_of_them(pieces: list[bytes]) -> None:
    watch = KeyWatch(b"\x10\x11")
    whole = b"".join(pieces)
    out, left = b"", False
    for piece in pieces:
        if not left:
            typed, left = watch.typed(piece)
            out += typed
    if b"\x10\x11" in whole:
        assert left
        assert out == whole[: whole.index(b"\x10\x11")]
    else:
        assert not left
        assert out + watch.held == whole
        assert watch.held in (b"", b"\x10")


def test_keys_are_written_as_people_know_them() -> None:
    assert parse_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_keys("ctrl-],a") == b"\x1da"
    assert parse_keys("") == b""
    with pytest.raises(Failure):
        parse_keys("ctrl-é")


# Values


@pytest.mark.parametrize(
    ("text", "count"), [("512m", 512 << 20), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("64MB", 64 << 20), ("7b", 7)]
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert values.Size().convert(text, None, None) == count


def test_restarts() -> None:
    assert values.restart("always").again(0, 1000)
    assert values.restart("on-failure").again(1, 1000)
    assert not values.restart("on-failure").again(0, 0)
    assert [values.restart("on-failure:2").again(1, starts) for starts in (0, 1, 2)] == [True, True, False]
    assert not values.restart("no").again(1, 0)


def test_the_value_of_a_variable_is_in_no_error() -> None:
    with pytest.raises(Failure) as refused:
        values.environment([], ["BAD NAME=secret"])
    assert "secret" not in refused.value.format_message()


# Archives


def archive(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for each in members:
            member, content = each if isinstance(each, tuple) else (each, b"")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    stream.seek(0)
    return stream


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, mode
    return made


TOP = member("x", tarfile.DIRTYPE, mode=0o755)


@pytest.mark.parametrize(
    "members",
    [
        (TOP, (member("x/../../evil"), b"e")),
        (TOP, (member("x//evil"), b"e")),
        (TOP, member("x/l", tarfile.SYMTYPE, ".."), (member("x/l/evil"), b"e")),
        (TOP, member("x/l", tarfile.SYMTYPE, "/tmp"), member("x/l", tarfile.DIRTYPE), (member("x/l/evil"), b"e")),
        (TOP, member("x/h", tarfile.LNKTYPE, "/etc/passwd")),
        (TOP, member("x/d", tarfile.CHRTYPE)),
        (TOP, (member("/etc/../../evil"), b"e")),
    ],
)
def test_a_hostile_archive_writes_nothing_outside_of_its_place(tmp_path: Path, members: tuple[object, ...]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(Failure):
        unpack(archive(*members), str(place), "name", contents=False, max_bytes=1 << 20)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("evil"))
    assert {path.name for path in tmp_path.iterdir()} == {"place"}


def test_a_link_that_lies_in_the_way_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"kept")
    (tmp_path / "name").symlink_to("other")
    unpack(archive((member("x", mode=0o6755), b"new")), str(tmp_path), "name", contents=False, max_bytes=100)
    assert (tmp_path / "other").read_bytes() == b"kept"
    assert (tmp_path / "name").read_bytes() == b"new"
    assert (tmp_path / "name").stat().st_mode & 0o7000 == 0, "no set-user-id bit comes out"


def test_more_than_is_allowed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="more than 100 bytes"):
        unpack(archive((member("x"), bytes(101))), str(tmp_path), "name", contents=False, max_bytes=100)


@pytest.mark.parametrize("mtime", [10**18, -(10**18), 1 << 40])
def test_a_time_that_no_file_may_have_is_cut_to_one(tmp_path: Path, mtime: int) -> None:
    odd = member("x")
    odd.mtime = mtime
    unpack(archive((odd, b"new")), str(tmp_path), "name", contents=False, max_bytes=100)
    assert (tmp_path / "name").stat().st_mtime in (0, (1 << 32) - 1)


def test_a_link_that_is_no_path_is_refused(tmp_path: Path) -> None:
    odd = member("x", tarfile.SYMTYPE)
    odd.pax_headers = {"linkpath": "a\0b"}
    with pytest.raises(Failure, match="no path"):
        unpack(archive(odd), str(tmp_path), "name", contents=False, max_bytes=100)


def test_what_is_packed_is_what_is_unpacked(tmp_path: Path) -> None:
    tree, told = tmp_path / "tree", list[str]()
    (tree / ("d" * 120) / "e").mkdir(parents=True)
    (tree / ("d" * 120) / "e" / "f").write_bytes(os.urandom(100_000))
    (tree / "l").symlink_to("/etc")
    os.mkfifo(tree / "pipe")
    stream = io.BytesIO(b"".join(pack(tree, told.append)))

    unpack(stream, str(tmp_path / "back"), "tree", contents=False, max_bytes=1 << 20)

    assert (tmp_path / "back" / ("d" * 120) / "e/f").read_bytes() == (tree / ("d" * 120) / "e/f").read_bytes()
    assert (tmp_path / "back/l").readlink() == Path("/etc")
    assert ["pipe is left out" in word for word in told] == [True]


# Published ports


def vm(state: VmState, port: PublishedPort, address: str = "") -> Vm:
    endpoints = (f"tcp:{address}",) if address else ()
    spec = VmSpec("vm_a", Scope("a", "b"), "a", "sha256:" + "0" * 64, published=(port,))
    return Vm(spec, VmStatus(state, 0.0, endpoints=endpoints))


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        number: int = taken.getsockname()[1]
        return number


@asynccontextmanager
async def shouting_guest() -> AsyncIterator[int]:
    """Answers with what it heard, in capitals, once the other side has said all; in place of a VM."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.2", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(port: int, words: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(words)
        writer.write_eof()
        return await reader.read()
    except OSError:
        return b""  # it was hung up on
    finally:
        writer.close()


async def until_refused(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await ask(port, b"late")
            except ConnectionRefusedError:
                return


async def until_closed(ports: PublishedPorts, *numbers: int) -> None:
    """Give all back, and see it."""
    ports.aclose()
    for number in numbers:
        await until_refused(number)


async def test_a_port_leads_to_its_vm_until_that_ends() -> None:
    async with shouting_guest() as guest_port:
        port = PublishedPort(free_port(), guest_port)
        ports = PublishedPorts()
        ports.open("vm_a", [port])
        assert await ask(port.host_port, b"early") == b"", "before it runs, who connects is hung up on"
        ports.follow([vm(VmState.RUNNING, port, "127.0.0.2")])
        long = b"a" * 3_000_000
        assert await ask(port.host_port, long) == long.upper()
        with pytest.raises(ConflictError, match="in use"):
            ports.open("vm_b", [port])
        ports.follow([vm(VmState.STOPPED, port)])
        await until_refused(port.host_port)
        ports.open("vm_b", [port])
        await until_closed(ports, port.host_port)


async def test_a_vms_ports_are_taken_all_or_none() -> None:
    ports, good = PublishedPorts(), PublishedPort(free_port(), 80)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConflictError):
            ports.open("vm_a", [good, PublishedPort(taken.getsockname()[1], 80)])
    ports.open("vm_b", [good])
    await until_closed(ports, good.host_port)


@contextmanager
def descriptors(limit: int) -> Iterator[None]:
    """This process may have so many."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_who_connects_to_a_vm_leaves_descriptors_to_others_and_to_the_server() -> None:
    """With 400 descriptors all ports have 200, and a VM a quarter of these: 25 connections."""
    async with shouting_guest() as guest_port, AsyncExitStack() as stack:
        stack.enter_context(descriptors(400))
        crowded, other = (PublishedPort(free_port(), guest_port) for _ in range(2))
        ports = PublishedPorts()
        for vm_id, port in (("vm_a", crowded), ("vm_b", other)):
            ports.open(vm_id, [port])
        ports.follow([vm(VmState.RUNNING, crowded, "127.0.0.2"), replace_id(vm(VmState.RUNNING, other, "127.0.0.2"))])
        readers = []
        for _ in range(40):
            reader, writer = await asyncio.open_connection("127.0.0.1", crowded.host_port)
            stack.callback(writer.close)
            readers.append(reader)
        over = [asyncio.create_task(reader.read()) for reader in readers]
        async with asyncio.timeout(10):
            for ended in itertools.islice(asyncio.as_completed(over), 15):
                with suppress(ConnectionError):
                    assert await ended == b""
        assert sum(task.done() for task in over) == 15
        assert await ask(other.host_port, b"heard") == b"HEARD"
        for task in over:
            task.cancel()
        await asyncio.gather(*over, return_exceptions=True)
        await until_closed(ports, crowded.host_port, other.host_port)


def replace_id(made: Vm) -> Vm:
    return replace(made, spec=replace(made.spec, id="vm_b"))


def test_the_server_lifts_the_soft_limit_of_descriptors_to_the_hard_one() -> None:
    """In a process of its own: a limit that was lowered stays so for those who are not root."""
    code = (
        "import resource; from plasmavmc.host.descriptors import *;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400)); raise_descriptor_limit();"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE), descriptor_limit())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["400"] * 3
