"""Host to guest over Firecracker's vsock: a unix socket that is told the port first.

Theory. Who connects to the VMM's vsock socket writes `CONNECT <port>` and a newline, and is answered `OK <number>` and a
newline once something in the guest took the connection; from there it is a stream of bytes. The answer's line is read as a
line and no further, so that the guest's first bytes stay for whoever reads next.

Traps:
- While the guest has no driver yet, nothing answers, for ever: each attempt has its own deadline.
- Where nothing listens in the guest the connection is closed: its init may not be that far yet, so that is tried again.
- A snapshot or a resume may cut connections, and some releases deliver nothing after a bare resume until connected anew.

Source: docs/vsock.md of Firecracker.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

from plasmavmc.deadlines import within
from plasmavmc.errors import UnavailableError

ATTEMPT_S = 1.0
PAUSE_S = 0.02
_LINE_LIMIT = 64
_READ = 64 * 1024
_ACCEPTED = re.compile(rb"OK \d{1,10}\n")


class _NotYet(Exception):
    """This attempt came to nothing; another may."""


async def connect_vsock(
    path: Path,
    port: int,
    *,
    deadline_s: float,
    attempt_s: float = ATTEMPT_S,
    ended: Callable[[], bool] = lambda: False,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to `port` of a guest; tried until then, unless its VMM has `ended`.

    Raises:
        UnavailableError: `vsock-silent`, nothing in the guest took a connection within `deadline_s`; with what the last
            attempt met.
    """
    reason = "it was not tried"
    try:
        async with within(deadline_s):
            while True:
                try:
                    return await _attempt(path, port, attempt_s)
                except _NotYet as error:
                    reason = str(error)
                    if ended():
                        raise UnavailableError("vsock-silent", "the VMM ended", details=reason) from error
                await asyncio.sleep(PAUSE_S)
    except TimeoutError as error:
        raise UnavailableError(
            "vsock-silent", f"nothing in the guest took a connection within {deadline_s:g} s", details=reason
        ) from error


async def _attempt(path: Path, port: int, attempt_s: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    writer: asyncio.StreamWriter | None = None
    connected = False
    try:
        async with within(attempt_s):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=_READ)
            writer.write(b"CONNECT %d\n" % port)
            answer = await _line(reader)
        if not answer:
            raise _NotYet("nothing listens in the guest")
        if not _ACCEPTED.fullmatch(answer):
            raise _NotYet("what answers at the vsock's socket does not speak its protocol")
        connected = True
        return reader, writer
    except TimeoutError as error:
        raise _NotYet(f"no answer within {attempt_s:g} s: the guest has no driver yet") from error
    except OSError as error:
        raise _NotYet(f"the vsock's socket cannot be reached: {error.strerror or error}") from error
    finally:
        if writer is not None and not connected:
            writer.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Bytes up to a newline, one at a time: what follows it is not ours. Cut at the end, or beyond all bounds."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
        byte = await reader.read(1)
        if not byte:
            break
        line += byte
    return line
