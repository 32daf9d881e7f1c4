"""Files into and out of a guest, and the workload's own terminal and stdin: the C loop, driven through the real channel."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from pathlib import Path

import pytest

from plasmavmc.errors import GuestError, InvalidSpecError
from plasmavmc.guest.api import ExecExit, ExecSession, GuestExited, GuestOutput, GuestReady
from plasmavmc.guest.channel import SocketGuestChannel
from plasmavmc.types import CopyTarget, ExecSpec, LogStream, Stdio, TerminalSize
from tests.bytes import first_difference
from tests.engine.guest_loopback import DEADLINE_S, Guest, next_of


@pytest.fixture
async def channel(guest: Guest) -> SocketGuestChannel:
    channel = await guest.start("sleep", "600")
    await next_of(channel, GuestReady)
    return channel


def archive(*members: tuple[str, bytes | None], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar stream; None is a directory, `-> x` a symbolic link to x."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.mtime, member.mode = 1_700_000_000, 0o4755
            if content is None:
                member.type = tarfile.DIRTYPE
            elif content.startswith(b"-> "):
                member.type, member.linkname = tarfile.SYMTYPE, content[3:].decode()
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b""))
    return stream.getvalue()


def found(directory: Path, name: str) -> list[Path]:
    """Everything beneath that is called so."""
    return list(directory.rglob(name))


async def ended(session: ExecSession) -> tuple[int, bytes, bytes]:
    out, errors = bytearray(), bytearray()
    async with asyncio.timeout(DEADLINE_S):
        async for item in session.output():
            if isinstance(item, ExecExit):
                return item.code, bytes(out), bytes(errors)
            (errors if item.stream is LogStream.STDERR else out).extend(item.data)
    raise AssertionError("no end was told")


async def put(channel: SocketGuestChannel, target: CopyTarget, content: bytes) -> tuple[int, bytes]:
    session = await channel.copy_in(target)
    await session.send(content)
    await session.send_eof()
    code, _, errors = await ended(session)
    return code, errors


async def test_a_directory_comes_to_lie_in_a_directory_that_exists(channel: SocketGuestChannel, tmp_path: Path) -> None:
    long = "d" * 90 + "/" + "e" * 90
    tree = archive(("t", None), ("t/a", b"one"), (f"t/{'d' * 90}", None), (f"t/{long}", b"two"), ("t/l", b"-> /etc"))

    code, errors = await put(channel, CopyTarget(str(tmp_path), "src"), tree)

    assert (code, errors) == (0, b"")
    assert (tmp_path / "src/a").read_bytes() == b"one"
    assert (tmp_path / "src" / long).read_bytes() == b"two"
    assert (tmp_path / "src/l").readlink() == Path("/etc")
    assert (tmp_path / "src/a").stat().st_mode & 0o7777 == 0o755, "no set-user-id bit comes in"
    assert (tmp_path / "src/a").stat().st_mtime == 1_700_000_000


async def test_a_file_takes_the_name_that_it_is_given_and_replaces_what_has_it(
    channel: SocketGuestChannel, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"kept")
    (tmp_path / "new").symlink_to(elsewhere)

    assert (await put(channel, CopyTarget(f"{tmp_path}/new", "src"), archive(("x", b"content"))))[0] == 0
    assert (tmp_path / "new").read_bytes() == b"content"
    assert not (tmp_path / "new").is_symlink()
    assert elsewhere.read_bytes() == b"kept"


async def test_the_contents_of_a_directory_go_into_another(channel: SocketGuestChannel, tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    tree = archive(("t", None), ("t/a", b"one"))

    assert (await put(channel, CopyTarget(f"{tmp_path}/into", "t", contents=True), tree))[0] == 0
    assert (tmp_path / "into/a").read_bytes() == b"one"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ((("t", None), ("t/../../evil", b"x")), b"no path of what is copied"),
        ((("t", None), ("t//evil", b"x")), b"no path of what is copied"),
        ((("t", None), ("t/l", b"-> .."), ("t/l/evil", b"x")), b"cannot be written"),
    ],
)
async def test_an_archive_writes_nothing_outside_of_its_place(
    channel: SocketGuestChannel, tmp_path: Path, members: tuple[tuple[str, bytes | None], ...], words: bytes
) -> None:
    (tmp_path / "place").mkdir()

    code, errors = await put(channel, CopyTarget(f"{tmp_path}/place", "t"), archive(*members))

    assert code == 1
    assert words in errors
    assert not found(tmp_path, "evil")


async def test_a_link_that_lies_in_the_way_already_is_not_followed(channel: SocketGuestChannel, tmp_path: Path) -> None:
    (tmp_path / "place/t").mkdir(parents=True)
    (tmp_path / "place/t/l").symlink_to(tmp_path)

    tree = archive(("t", None), ("t/l", None), ("t/l/evil", b"x"))
    code, errors = await put(channel, CopyTarget(f"{tmp_path}/place", "t"), tree)

    assert code == 1
    assert b"Not a directory" in errors
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"\x01" * 512, archive(("x", b"y" * 5000))[:2000]])
async def test_an_archive_that_is_no_archive_or_cut_short_is_told(
    channel: SocketGuestChannel, tmp_path: Path, content: bytes
) -> None:
    code, errors = await put(channel, CopyTarget(str(tmp_path), "x"), content)

    assert code == 1
    assert b"cut short" in errors


@pytest.mark.parametrize("path", ["/nowhere/at/all", "/nowhere/"])
async def test_a_place_that_is_not_there_is_refused_before_anything_is_sent(
    channel: SocketGuestChannel, path: str
) -> None:
    with pytest.raises(GuestError, match="VM") as refused:
        await channel.copy_in(CopyTarget(path, "x"))
    assert refused.value.code == "exec-no-such-directory"


@pytest.mark.parametrize("path", ["relative", "", "/" + "x" * 5000, "/a\0b"])
async def test_a_path_that_no_guest_can_have_is_refused(channel: SocketGuestChannel, path: str) -> None:
    with pytest.raises(InvalidSpecError):
        await channel.copy_out(path)


async def test_a_tree_comes_out_as_it_is(channel: SocketGuestChannel, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    deep = tree / ("d" * 200)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(os.urandom(300_000))
    (tree / "link").symlink_to("/".join(["x" * 99] * 3))
    (tree / "empty").touch(mode=0o600)
    os.mkfifo(tree / "pipe")

    code, out, errors = await ended(await channel.copy_out(str(tree)))

    assert code == 0
    assert b"pipe is left out" in errors
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        members = {member.name: member for member in tar}
        names = {f"x/{path.relative_to(tree)}" for path in tree.rglob("*") if path.name != "pipe"}
        assert members.keys() == {"x", *names}
        assert members["x/link"].linkname == "/".join(["x" * 99] * 3)
        assert members["x/empty"].mode == 0o600
        name = f"x/{'d' * 200}/{'f' * 200}"
        content = tar.extractfile(members[name])
        assert content is not None
        assert content.read() == (deep / ("f" * 200)).read_bytes()


async def test_what_goes_in_comes_out(channel: SocketGuestChannel, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(2_000_000))
    _, out, _ = await ended(await channel.copy_out(f"{tmp_path}/a"))

    assert await put(channel, CopyTarget(f"{tmp_path}/b", "a"), out) == (0, b"")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


async def test_a_path_that_is_not_there_is_refused(channel: SocketGuestChannel, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="No such file"):
        await channel.copy_out(f"{tmp_path}/nothing")


async def test_a_copy_does_not_hold_others_pipes_open(channel: SocketGuestChannel, tmp_path: Path) -> None:
    """A child without an exec inherits all of init's descriptors; it must have closed them."""
    cat = await channel.exec(ExecSpec(("cat",)))
    copy = await channel.copy_in(CopyTarget(str(tmp_path), "x"))
    await cat.send_eof()
    assert (await ended(cat))[0] == 0
    await copy.send(archive(("x", b"y")))
    await copy.send_eof()
    assert (await ended(copy))[0] == 0


# The workload itself


async def output_until(channel: SocketGuestChannel, wanted: bytes) -> bytes:
    heard = bytearray()
    async with asyncio.timeout(DEADLINE_S):
        async for event in channel.events():
            if isinstance(event, GuestOutput):
                heard += event.data
                await channel.acknowledge(event.offset + len(event.data))
                if wanted in heard:
                    return bytes(heard)
    raise AssertionError(f"never heard: {wanted!r}")


async def test_the_workload_reads_its_open_stdin_to_its_end(guest: Guest) -> None:
    channel = await guest.start("sh", "-c", "cat; exit 3", stdio=Stdio.OPEN)
    await next_of(channel, GuestReady)
    sent = os.urandom(150_000).hex().encode() + b"END"
    sending = asyncio.create_task(channel.workload.send(sent))
    assert first_difference(await output_until(channel, b"END"), sent) is None
    await sending
    await channel.workload.send_eof()
    assert (await next_of(channel, GuestExited)).exit_code == 3  # type: ignore[union-attr]


async def test_without_being_asked_for_the_workload_reads_nothing(guest: Guest) -> None:
    channel = await guest.start("sh", "-c", "cat; exit 3")
    await channel.workload.send(b"ignored")
    assert (await next_of(channel, GuestExited)).exit_code == 3  # type: ignore[union-attr]


async def test_the_workload_has_a_terminal_of_the_size_told(guest: Guest) -> None:
    command = "test -t 0 && test -t 1 && test -t 2 && stty size; read line; stty size; exit 4"
    channel = await guest.start("sh", "-c", command, stdio=Stdio.TERMINAL, terminal_size=TerminalSize(33, 101))
    assert b"33 101" in await output_until(channel, b"101")
    await channel.workload.resize(TerminalSize(44, 102))
    await channel.workload.send(b"go\r")
    assert b"44 102" in await output_until(channel, b"102")
    assert (await next_of(channel, GuestExited)).exit_code == 4  # type: ignore[union-attr]


async def test_an_interrupt_typed_at_the_terminal_reaches_the_workload(guest: Guest) -> None:
    channel = await guest.start("sh", "-c", "echo ready; exec sleep 600", stdio=Stdio.TERMINAL)
    await output_until(channel, b"ready")
    await channel.workload.send(b"\x03")
    assert (await next_of(channel, GuestExited)).exit_code == 130  # type: ignore[union-attr]


async def test_a_signal_reaches_the_workload(guest: Guest) -> None:
    channel = await guest.start("sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done")
    await output_until(channel, b"ready")
    await channel.workload.signal(10)
    assert (await next_of(channel, GuestExited)).exit_code == 9  # type: ignore[union-attr]


@pytest.mark.parametrize(("stdio", "all_of_it"), [(Stdio.ATTACHED, True), (Stdio.LOGGED, False)])
async def test_output_waits_for_who_is_attached_and_for_nobody_else(
    guest: Guest, stdio: Stdio, *, all_of_it: bool
) -> None:
    """4 MiB come out of a ring of 1 MiB; nothing is acknowledged before the workload had time to write all of it."""
    count = 4 << 20
    command = f"head -c {count} /dev/zero; echo done >&2; exec sleep 600"
    channel = await guest.start("sh", "-c", command, stdio=stdio)
    seen, largest = 0, 0
    async with asyncio.timeout(DEADLINE_S):
        async for event in channel.events():
            if isinstance(event, GuestOutput):
                seen += len(event.data)
                largest = event.offset + len(event.data)
                if event.stream is LogStream.STDERR:
                    break
                if all_of_it and largest - seen == 0:
                    await asyncio.sleep(0)
                    await channel.acknowledge(largest)
    assert largest == count + len("done\n")
    if all_of_it:
        assert seen == largest
