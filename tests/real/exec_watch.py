"""Every process that is started on this host while we look: what the kernel tells of each exec (connector, `cn_proc`), with
its arguments and environment as /proc has them. Source: linux/cn_proc.h, linux/connector.h."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_NETLINK_CONNECTOR, _CN_IDX_PROC, _CN_VAL_PROC = 11, 1, 1
_LISTEN, _IGNORE = 1, 2
_EXEC = 2
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=IIIIHH")
_EVENT = struct.Struct("=IIQII")
_BUFFER = 8 << 20
_FOREVER = 0.2


@dataclass
class Started:
    """What was seen."""

    told: list[bytes] = field(default_factory=list)
    """Arguments, then environment, of each."""
    missed: int = 0
    """Those that had ended before they could be read."""

    def programs(self) -> set[str]:
        """Last names of what ran."""
        return {Path(each.split(b"\0", 1)[0].decode(errors="replace")).name for each in self.told}

    def with_word(self, word: bytes) -> list[bytes]:
        """Those that had this word about them."""
        return [each[:300] for each in self.told if word in each]


@contextmanager
def watched() -> Iterator[Started]:
    """Look for as long as the block lasts; needs root, and the host's own view of processes."""
    seen, over = Started(), threading.Event()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_CONNECTOR) as kernel:
        kernel.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
        kernel.bind((0, _CN_IDX_PROC))
        _say(kernel, _LISTEN)
        thread = threading.Thread(target=_look, args=(kernel, seen, over))
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()
            _say(kernel, _IGNORE)


def _say(kernel: socket.socket, what: int) -> None:
    body = _MESSAGE.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, 4, 0) + struct.pack("=I", what)
    kernel.send(_HEADER.pack(_HEADER.size + len(body), 3, 0, 0, os.getpid()) + body)


def _look(kernel: socket.socket, seen: Started, over: threading.Event) -> None:
    while not over.is_set():
        if not select.select([kernel], [], [], _FOREVER)[0]:
            continue
        what, _, _, _, tgid = _EVENT.unpack_from(kernel.recv(4096), _HEADER.size + _MESSAGE.size)
        if what == _EXEC:
            _read(tgid, seen)


def _read(pid: int, seen: Started) -> None:
    place = Path("/proc") / str(pid)
    try:
        arguments = (place / "cmdline").read_bytes()
        seen.told.append(arguments + b"\0\0" + (place / "environ").read_bytes())
    except OSError:
        arguments = b""
    seen.missed += not arguments
