"""QEMU's machine protocol, as much as one VM's life needs: a few commands, one at a time, each with a deadline.

Theory. A session is short: connect, negotiate, ask, close. QEMU serves one client at a time, and a session held for the
VM's life would have to swallow events that a guest can cause at will. Commands and answers are lines of JSON; events
arrive in between and are skipped. The peer may be an emulator that its guest has taken over, so lines are bounded and
whatever is not an answer is an error, never an exception from a parser.

Why not `qemu.qmp`: its session keeps reader and writer tasks that log and raise EOFError when QEMU goes away after
`quit`, which is our normal case, and gives no deadline per command.

Source: docs/interop/qmp-spec.txt of QEMU.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from plasmavmc.deadlines import within
from plasmavmc.errors import HostError, PlasmaError, UnavailableError

LINE_LIMIT = 256 * 1024
COMMAND_DEADLINE_S = 5.0


class QmpSession:
    """One negotiated connection. Made by `QmpSession.open`; not for several tasks at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, path: Path, deadline_s: float) -> QmpSession:
        """Connect and negotiate. Waits for a VMM that is still starting, as its socket listens already.

        Raises:
            UnavailableError: `qmp-silent`, nobody answered in time or the VMM ended.
        """
        try:
            async with within(deadline_s):
                reader, writer = await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
                session = cls(reader, writer)
                try:
                    await session._line()
                    await session._ask("qmp_capabilities", {})
                except BaseException:
                    writer.close()
                    raise
                return session
        except TimeoutError as error:
            raise _silent(f"no answer from the VMM's monitor within {deadline_s:g} s") from error
        except OSError as error:
            raise _silent(f"the VMM's monitor cannot be reached: {error.strerror or error}") from error

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        deadline_s: float = COMMAND_DEADLINE_S,
        descriptor: int = -1,
    ) -> object:
        """Run one command and return what it answers. A descriptor goes with it where one is given (`getfd`).

        Raises:
            HostError: `qmp-refused`, with what QEMU said.
            UnavailableError: `qmp-silent`, no answer in time or the VMM ended.
        """
        try:
            async with within(deadline_s):
                return await self._ask(command, arguments or {}, descriptor)
        except TimeoutError as error:
            raise _silent(f"no answer to {command} within {deadline_s:g} s") from error
        except OSError as error:
            raise _silent(f"the VMM went away during {command}") from error

    async def quit(self, deadline_s: float) -> None:
        """Ask QEMU to end. It may do so without an answer, so none is not an error; whoever asks watches its end."""
        with suppress(PlasmaError):
            await self.execute("quit", deadline_s=deadline_s)

    def close(self) -> None:
        """End the session. QEMU goes on."""
        self._writer.close()

    async def _ask(self, command: str, arguments: Mapping[str, object], descriptor: int = -1) -> object:
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        line = json.dumps(request).encode() + b"\n"
        if descriptor < 0:
            self._writer.write(line)
            await self._writer.drain()
        else:
            self._send_with(descriptor, line)
        while True:
            answer = await self._line()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise HostError("qmp-refused", f"QEMU refused {command}", details=str(answer["error"])[:500])

    def _send_with(self, descriptor: int, line: bytes) -> None:
        """Past the stream, which has nothing left to write: the answer to the command before has come."""
        connection = self._writer.get_extra_info("socket")
        with socket.socket(fileno=os.dup(connection.fileno())) as ours:
            socket.send_fds(ours, [line], [descriptor])

    async def _line(self) -> dict[str, object]:
        try:
            line = await self._reader.readline()
            message = json.loads(line) if line else None
        except (ValueError, RecursionError) as error:  # too long, no JSON, or nested without end
            raise _silent("the VMM's monitor does not speak its protocol") from error
        if not isinstance(message, dict):
            raise _silent("the VMM closed its monitor")
        return message


@asynccontextmanager
async def qmp_session(path: Path, deadline_s: float = COMMAND_DEADLINE_S) -> AsyncIterator[QmpSession]:
    """A session for the length of a block."""
    session = await QmpSession.open(path, deadline_s)
    try:
        yield session
    finally:
        session.close()


def _silent(brief: str) -> UnavailableError:
    return UnavailableError("qmp-silent", brief)
