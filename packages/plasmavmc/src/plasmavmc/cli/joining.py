"""This process's stdin, stdout, stderr and signals, joined to a command in a guest or to a VM's workload.

Theory. One task reads stdin, one brings signals, and the main one writes what comes until the end, whose code it returns.
stdin is read in a thread of its own: a regular file is no descriptor that a loop can wait for. That thread is a daemon, as
nothing can end a read that is under way; a process that ends does not wait for it.

With a terminal every key is the guest's, Ctrl-C included, but for the keys that let go. Without one SIGINT, SIGTERM, SIGHUP,
SIGQUIT, SIGUSR1 and SIGUSR2 are passed on; a second SIGINT lets the command go for one who waits no longer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from plasmavmc.cli.terminal import KeyWatch, raw_terminal, size_of_terminal
from plasmavmc.cli.working import rearm

if TYPE_CHECKING:
    from plasmavmc.guest.api import ExecSession

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_CHUNK = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How this side is joined."""

    stdin: bool
    """What is read here goes there."""
    terminal: bool
    """The other side has a terminal."""
    keys: bytes = b""
    """What lets go, where it is typed at a terminal."""
    signals: bool = True
    """Signals are passed on."""
    passed: set[signal.Signals] = field(default_factory=set)
    """Those that were, for one who wants to know why it ended."""


class Detached(Exception):
    """The keys that let go were typed."""


class Interrupted(Exception):
    """A second Ctrl-C: nobody waits any longer."""


async def join(session: ExecSession, how: How) -> int:
    """Carry everything until the other side ends; returns its exit code.

    Raises:
        Detached, Interrupted: the other side goes on.
        PlasmaError: it failed, or the way to it is gone.
    """
    output = asyncio.ensure_future(_write(session))
    helpers = []
    with ExitStack() as stack:
        stack.callback(rearm)
        if how.terminal and how.stdin and sys.stdin.isatty():
            stack.enter_context(raw_terminal())
        if how.terminal:
            helpers.append(asyncio.ensure_future(_sizes(session, stack)))
        if how.signals:
            helpers.append(asyncio.ensure_future(_signals(session, how, stack)))
        if how.stdin:
            helpers.append(asyncio.ensure_future(_read(session, how)))
        try:
            return await _first_end(output, helpers)
        finally:
            for task in (output, *helpers):
                task.cancel()
            await asyncio.gather(output, *helpers, return_exceptions=True)


async def _first_end(output: asyncio.Future[int], helpers: Sequence[asyncio.Future[None]]) -> int:
    """The output's end is the end; a helper's is not, unless it failed."""
    running: set[asyncio.Future[Any]] = {output, *helpers}
    while not output.done():
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {output}:
            task.result()
    return output.result()


async def _write(session: ExecSession) -> int:
    from plasmavmc.errors import GuestError  # noqa: PLC0415
    from plasmavmc.guest.api import ExecExit  # noqa: PLC0415
    from plasmavmc.types import LogStream  # noqa: PLC0415

    async for item in session.output():
        if isinstance(item, ExecExit):
            return item.code
        descriptor = 2 if item.stream is LogStream.STDERR else 1
        await asyncio.get_running_loop().run_in_executor(None, _write_all, descriptor, item.data)
    raise GuestError("exec-cut", "the stream ended before the command did")


def _write_all(descriptor: int, data: bytes) -> None:
    """In a thread: whoever reads us may be slow, and signals are to be passed on meanwhile."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def _read(session: ExecSession, how: How) -> None:
    watch = KeyWatch(how.keys if how.terminal and sys.stdin.isatty() else b"")
    async for data in stdin_chunks():
        typed, detach = watch.typed(data)
        if typed:
            await session.send(typed)
        if detach:
            raise Detached
    await session.send_eof()


async def stdin_chunks() -> AsyncIterator[bytes]:
    """What can be read from stdin, to its end. At most one piece waits to be taken."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue(1)

    def read() -> None:
        while True:
            try:
                data = os.read(0, _CHUNK)
            except OSError:
                data = b""
            try:
                asyncio.run_coroutine_threadsafe(chunks.put(data), loop).result()
            except (RuntimeError, asyncio.CancelledError):  # the loop ended before us
                return
            if not data:
                return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while data := await chunks.get():
        yield data


async def _sizes(session: ExecSession, stack: ExitStack) -> None:
    """Tell the size now and whenever it changes."""
    changed = asyncio.Event()
    changed.set()
    _on(signal.SIGWINCH, changed.set, stack)
    while True:
        await changed.wait()
        changed.clear()
        await session.resize(size_of_terminal())


async def _signals(session: ExecSession, how: How, stack: ExitStack) -> None:
    """Pass on what is sent to this process."""
    arrived: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in PASSED_ON:
        _on(number, partial(arrived.put_nowait, number), stack)
    interrupts = 0
    passing: set[asyncio.Future[None]] = set()
    while True:
        number = await arrived.get()
        how.passed.add(number)
        interrupts += number is signal.SIGINT
        if interrupts > 1:
            raise Interrupted
        if interrupts:
            click.echo("plasmavmc: interrupted; once more to wait no longer", err=True)
        task = asyncio.ensure_future(session.signal(number))  # it may have to wait for the workload's start
        passing.add(task)
        task.add_done_callback(passing.discard)


def _on(number: signal.Signals, call: Callable[[], object], stack: ExitStack) -> None:
    """Do this at a signal until the stack unwinds."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(number, call)
    stack.callback(loop.remove_signal_handler, number)
