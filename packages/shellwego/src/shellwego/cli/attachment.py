"""A terminal, or pipes, joined to a command in a guest.

Theory. Two directions in two threads: stdin is read in a daemon thread and sent as records; the main thread takes what
comes back, writes it, and ends with the command's exit code. On a terminal the local side is raw, so that keys (also ^C)
reach the guest; it is restored whatever happens. A size change is sent when the kernel tells of it (SIGWINCH).
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from shellwego.wire.streams import Record, RecordKind

if TYPE_CHECKING:
    from shellwego.client.streams import RecordSocket

_CHUNK = 16 * 1024
_LOST = 1


def size_of_terminal() -> os.terminal_size:
    """Of the terminal that stdin or stdout is; 80 by 24 where there is none. COLUMNS and LINES are not asked: a shell that
    exports them does not follow when its terminal is resized."""
    for descriptor in (0, 1):
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(descriptor)
            if found.lines and found.columns:
                return found
    return os.terminal_size((80, 24))


def attach(stream: RecordSocket, *, terminal: bool) -> int:
    """Join this process to the stream until the command ends; returns its exit code."""
    with (
        _raw_terminal() if terminal else contextlib.nullcontext(),
        _size_changes(stream) if terminal else contextlib.nullcontext(),
    ):
        threading.Thread(target=_send_stdin, args=(stream,), daemon=True).start()
        return _take(stream)


def _take(stream: RecordSocket) -> int:
    for record in stream:
        match record.kind:
            case RecordKind.STDOUT:
                _write(sys.stdout.fileno(), record.payload)
            case RecordKind.STDERR:
                _write(sys.stderr.fileno(), record.payload)
            case RecordKind.EXIT:
                code: int = struct.unpack("!i", record.payload)[0]
                return code & 0xFF
            case _:
                pass
    return _LOST


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _send_stdin(stream: RecordSocket) -> None:
    from shellwego.client.transport import Unreachable  # noqa: PLC0415

    with contextlib.suppress(OSError, Unreachable):
        while data := os.read(sys.stdin.fileno(), _CHUNK):
            stream.send(Record(RecordKind.STDIN, data))
        stream.send(Record(RecordKind.STDIN_EOF))


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    with ended_in_order():
        tty.setraw(sys.stdin)
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Within it, signals that end us let what is open be put in order first."""
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(number: int, _frame: object) -> NoReturn:
    """End as a shell tells of a signal, but by way of what is to be put in order."""
    sys.exit(128 + number)


@contextlib.contextmanager
def _size_changes(stream: RecordSocket) -> Iterator[None]:
    def tell(_number: int, _frame: object) -> None:
        size = size_of_terminal()
        stream.send(Record(RecordKind.RESIZE, struct.pack("!HH", size.lines, size.columns)))

    before = signal.signal(signal.SIGWINCH, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
