"""`plasmavmc vm cp`: files between this host and a running VM. The image need not have any program for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from plasmavmc.cli.connection import connection
from plasmavmc.cli.ends import USAGE, Failure
from plasmavmc.cli.find import find
from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.output import cell, output_option, say, show_one
from plasmavmc.cli.values import Size
from plasmavmc.cli.working import with_engine
from plasmavmc.deadlines import within

if TYPE_CHECKING:
    from plasmavmc.cli.unpacking import Unpacked
    from plasmavmc.rpc.client import EngineClient

_AHEAD = 8
"""Pieces that wait between what reads and what writes."""
_LAST_WORDS_S = 30.0
"""From the end of an archive to the end of the call that brought it."""


@dataclass(frozen=True, slots=True)
class Place:
    """One side of a copy; `vm` is empty for this host."""

    vm: str
    path: str

    @property
    def contents(self) -> bool:
        """Not the directory, but what is in it, is meant."""
        return self.path.endswith("/.") or self.path == "."

    @property
    def name(self) -> str:
        """How the thing is called."""
        path = self.path if self.vm else str(Path(self.path).absolute())
        return PurePosixPath(os.path.normpath(path)).name or "root"


def parse_place(text: str) -> Place:
    """`VM:/PATH`, or a path of this host. One with a colon before its first slash is written `./a:b`."""
    vm, colon, path = text.partition(":")
    if not colon or "/" in vm or vm.startswith("."):
        if not text:
            raise Failure("an empty path", code=USAGE)
        return Place("", text)
    if not vm:
        raise Failure(f"{text[:80]!r} names no VM", code=USAGE, resolution="Write VM:/PATH.")
    if not path.startswith("/"):
        raise Failure(f"{text[:80]!r}: a path in a VM is absolute", code=USAGE, resolution=f"Write {vm}:/{path}")
    return Place(vm, path)


@click.command(context_settings=dict(HELP))
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--max-size", type=Size(), default="16g", show_default=True, help="How much may come out of a VM.")
@output_option
def cp(source: str, destination: str, max_size: int, output: str) -> None:
    """Copy files and directories between this host and a running VM; one of the two is VM:/PATH.

    Where DST is a directory SRC comes to lie in it; else SRC becomes DST. SRC/. means what is in SRC. Symbolic links are
    copied as links. What goes into a VM belongs to its root; what comes out belongs to you.
    """
    here, there = parse_place(source), parse_place(destination)
    if bool(here.vm) == bool(there.vm):
        many = "two VMs" if here.vm else "no VM"
        raise Failure(f"{many} named: one of SRC and DST is VM:/PATH", code=USAGE)
    if "-" in (source, destination):
        raise Failure("-: archives on stdin and stdout are not offered", code=USAGE)
    scope = connection().scope()

    async def work(engine: EngineClient) -> Unpacked | None:
        vm = await find(engine, here.vm or there.vm, scope)
        if here.vm:
            return await _copy_out(engine, vm.spec.id, here, there, max_size)
        await _copy_in(engine, vm.spec.id, here, there)
        return None

    done = with_engine(work)
    if output == "json":
        document: dict[str, Any] = {"source": source, "destination": destination}
        if done is not None:
            document |= {"files": done.members, "bytes": done.bytes}
        show_one(output, document, document, name=destination)


async def _copy_in(engine: EngineClient, vm_id: str, source: Place, destination: Place) -> None:
    from plasmavmc.cli.packing import pack  # noqa: PLC0415
    from plasmavmc.types import CopyTarget  # noqa: PLC0415

    pieces = pack(_checked_source(source), say)

    async def archive() -> AsyncIterator[bytes]:
        """It is not closed by hand: a thread may be within it yet; the last who holds it closes its files."""
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    target = CopyTarget(destination.path, source.name, contents=source.contents)
    await engine.vms.copy_in(vm_id, target, _batched(archive()))


def _checked_source(source: Place) -> Path:
    path = Path(source.path)
    if not path.is_symlink() and not path.exists():
        raise Failure(f"{source.path} is not there", code=USAGE)
    if source.contents and not path.is_dir():
        raise Failure(f"{source.path} is no directory", code=USAGE)
    return Path(os.path.normpath(path.absolute()))


async def _batched(pieces: AsyncIterator[bytes], size: int = 512 * 1024) -> AsyncIterator[bytes]:
    """Small files are many small pieces; a message each would be slow."""
    batch = bytearray()
    async for piece in pieces:
        batch += piece
        if len(batch) >= size:
            yield bytes(batch)
            batch.clear()
    yield bytes(batch)


async def _copy_out(engine: EngineClient, vm_id: str, source: Place, destination: Place, max_size: int) -> Unpacked:
    from plasmavmc.cli.unpacking import unpack  # noqa: PLC0415

    bridge = _Bridge(asyncio.get_running_loop())
    feeding = asyncio.ensure_future(bridge.feed(engine.vms.copy_out(vm_id, source.path)))
    try:
        done = await asyncio.to_thread(
            unpack, bridge, destination.path, source.name, contents=source.contents, max_bytes=max_size
        )
        bridge.close()
        async with within(_LAST_WORDS_S):
            await feeding  # what went wrong behind the archive's end
        return done
    finally:
        bridge.close()
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


class _Bridge:
    """What a call brings, for one who reads in a thread. Implements `ByteStream`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: asyncio.Queue[bytes | BaseException] = asyncio.Queue(_AHEAD)
        self._closed = False
        self._rest = b""
        self._over = False

    async def feed(self, pieces: AsyncIterator[bytes | str]) -> None:
        """Carry everything over, to its end. An error reaches the reader, too."""
        last: bytes | BaseException = b""
        try:
            async for piece in pieces:
                if isinstance(piece, str):
                    say(f"plasmavmc: {cell(piece)}")
                elif piece:
                    await self._put(piece)
        except Exception as error:
            last = error
            raise
        finally:
            await self._put(last)

    async def _put(self, piece: bytes | BaseException) -> None:
        if not self._closed:
            await self._pieces.put(piece)

    def close(self) -> None:
        """Nobody reads any more; one who waits hears of it. Idempotent."""
        self._closed = True
        while not self._pieces.empty():
            self._pieces.get_nowait()
        self._pieces.put_nowait(Failure("the copy was given up"))

    def read(self, count: int, /) -> bytes:
        """In the thread."""
        if not self._rest and not self._over:
            self._rest = self._next()
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def _next(self) -> bytes:
        piece = asyncio.run_coroutine_threadsafe(self._pieces.get(), self._loop).result()
        if isinstance(piece, BaseException):
            raise piece
        self._over = not piece
        return piece
