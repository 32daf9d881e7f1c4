"""One try of a check: http and tcp from the host straight to the VM, exec through the engine.

The server at the other end is the tenant's and may be hostile: it gets one request on a connection of its own, at most
`MAX_LINE` bytes of its answer are read, redirects are not followed, and the time-out holds for the whole of the try.

Trap: a SYN that is sent before the guest's interface is up is only repeated after a second, so the time for *connecting*
is short at first and grows with the VM's age; that for the answer is the check's own from the start.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from shellwego.core.apps import Check, CheckKind
from shellwego.core.errors import ShellWeGoError
from shellwego.core.instances import UNIX
from shellwego.ports.engine import Engine, ExecDone
from shellwego.ports.streams import StreamKind, StreamRequest

MAX_LINE = 4096
MAX_ANSWER = 64 * 1024
_MAX_SAID = 300
HEAR_OUT_S = 0.2
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |\r?\n)")
_PATH_SAFE = "/?&=%:@!$'()*+,;~#[]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The VM that is checked."""

    vm_id: str
    instance_id: str
    address: str
    """IPv4, or `unix:path`: a socket that answers for all ports."""


class Prober(Protocol):
    async def probe(self, target: Target, check: Check, connect_s: float) -> str:
        """Try once. Empty: it passes; else why it does not, in one line. Raises nothing."""


class HostProber:
    """Tries checks for real; its time-outs are of real time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def probe(self, target: Target, check: Check, connect_s: float) -> str:
        try:
            async with asyncio.timeout(check.timeout_s):
                match check.kind:
                    case CheckKind.TCP:
                        return await _tcp(target, check, connect_s)
                    case CheckKind.HTTP:
                        return await _http(target, check, connect_s)
                    case CheckKind.EXEC:
                        return await self._exec(target, check)
        except TimeoutError:
            return f"{_name(check)}: no answer within {check.timeout_s:g} s"
        except ShellWeGoError as error:
            return f"{_name(check)}: {error.message}"
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else str(error)  # asyncio's own text names no cause
            return f"{_name(check)}: {cause.lower()}"

    async def _exec(self, target: Target, check: Check) -> str:
        request = StreamRequest(kind=StreamKind.EXEC, instance_id=target.instance_id, command=check.command)
        channel = await self._engine.exec(target.vm_id, request)
        said = b""
        try:
            async for item in channel.output():
                if isinstance(item, ExecDone):
                    return "" if item.code == 0 else f"{_name(check)}: exit code {item.code}{_last_line(said)}"
                said = (said + item.data)[-_MAX_SAID:]
            return f"{_name(check)}: ended without an exit code"
        finally:
            await channel.aclose()


def _last_line(said: bytes) -> str:
    """What the command said last, for people; a guest wrote it."""
    lines = said.decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(character for character in f", {last.strip()}" if character.isprintable()) if last else ""


async def _tcp(target: Target, check: Check, connect_s: float) -> str:
    async with _connection(target.address, check.port, connect_s):
        return ""


async def _http(target: Target, check: Check, connect_s: float) -> str:
    async with _connection(target.address, check.port, connect_s) as (reader, writer):
        writer.write(request_bytes(target.address, check))
        try:
            line = await reader.readline()
        except ValueError:
            line = b""
        await _hear_out(reader)
    return verdict_on(check, line)


async def _hear_out(reader: asyncio.StreamReader) -> None:
    """Take the rest of a short answer: closing before it would reset the connection, which apps log as an error."""
    left = MAX_ANSWER
    with suppress(TimeoutError):
        async with asyncio.timeout(HEAR_OUT_S):
            while left > 0 and (data := await reader.read(left)):
                left -= len(data)


def request_bytes(address: str, check: Check) -> bytes:
    """The request of an HTTP check. Whatever has no place in a path is quoted, so it cannot add headers."""
    path = quote("/" + check.path.lstrip("/"), safe=_PATH_SAFE)
    host = f"{'localhost' if address.startswith(UNIX) else address}:{check.port}"
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: shellwego-check\r\nConnection: close\r\n\r\n".encode()


def verdict_on(check: Check, status_line: bytes) -> str:
    """Empty for a status of 200 to 399 (RFC 9110); a redirect is an answer of the app, and is not followed."""
    match = _STATUS.match(status_line)
    if match is None:
        return f"{_name(check)}: the answer is not HTTP"
    status = int(match[1])
    return "" if 200 <= status < 400 else f"{_name(check)}: status {status}"


def _name(check: Check) -> str:
    match check.kind:
        case CheckKind.HTTP:
            return f"http check on port {check.port}, path {check.path}"
        case CheckKind.TCP:
            return f"tcp check on port {check.port}"
        case CheckKind.EXEC:
            return f"exec check “{' '.join(check.command)[:80]}”"


@asynccontextmanager
async def _connection(
    address: str, port: int, connect_s: float
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    if not address:
        raise OSError("the VM has no address")
    async with asyncio.timeout(connect_s):
        if address.startswith(UNIX):
            reader, writer = await asyncio.open_unix_connection(address.removeprefix(UNIX), limit=MAX_LINE)
        else:
            reader, writer = await asyncio.open_connection(address, port, limit=MAX_LINE)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
