"""The commands and copies that run in one guest, each on a stream of its own beside the channel's.

Theory. The host numbers the streams; a number is free again when the guest has said that its command ended or was refused,
also where nobody here waits for that any more. So a word on a stream that we did not open is a broken guest, not a late one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from plasmavmc.deadlines import within
from plasmavmc.errors import GuestError
from plasmavmc.guest.api import ExecOutput
from plasmavmc.guest.framing import Frame, FrameType, encode
from plasmavmc.guest.messages import decode_exec_output, decode_failed, decode_u32
from plasmavmc.guest.session import Drain, SocketExecSession, Write

EXEC_START_S = 30.0
"""From the request to the guest's word that the command runs. Emulated CPUs on a busy host are slow."""
_LAST_STREAM = 0xFFFF


class Commands:
    """Those that run, by stream. `unknown` is called for words that mean nothing to us."""

    def __init__(self, write: Write, drain: Drain, unknown: Callable[[], None]) -> None:
        self._write = write
        self._drain = drain
        self._unknown = unknown
        self._sessions: dict[int, SocketExecSession] = {}
        self._last_stream = 0

    async def begin(self, kind: FrameType, request: bytes, *, terminal: bool = False) -> SocketExecSession:
        """Ask for one, and return when the guest says that it runs.

        Raises:
            GuestError: `exec-…`, the guest refuses; `exec-timeout`; `exec-too-many`; the channel ended.
        """
        stream = self._next_stream()
        session = SocketExecSession(stream, self._write, self._drain, terminal=terminal)
        self._sessions[stream] = session
        self._write(encode(kind, request, stream=stream))
        try:
            async with within(EXEC_START_S):
                await asyncio.shield(session.started)
        except TimeoutError as error:
            raise GuestError("exec-timeout", f"the guest did not start the command in {EXEC_START_S:g} s") from error
        finally:
            if not session.started.done():
                await session.aclose()
        return session

    def _next_stream(self) -> int:
        """A number that no running command has; the guest's end of a command frees its number."""
        for _ in range(_LAST_STREAM):
            self._last_stream = self._last_stream % _LAST_STREAM + 1
            if self._last_stream not in self._sessions:
                return self._last_stream
        raise GuestError("exec-too-many", "the guest has ended none of 65,535 commands")

    def hear(self, frame: Frame) -> None:
        """The guest speaks of one.

        Raises:
            GuestError: `bad-frame`.
        """
        session = self._sessions.get(frame.stream)
        if session is None:
            raise GuestError("bad-frame", f"the guest speaks of a command {frame.stream} that we did not start")
        match frame.type:
            case FrameType.EXEC_STARTED if not session.started.done():
                session.started.set_result(None)
            case FrameType.EXEC_REFUSED:
                del self._sessions[frame.stream]
                session.heard_refusal(decode_failed(frame))
            case FrameType.EXEC_OUTPUT:
                session.heard_output(ExecOutput(*decode_exec_output(frame)), frame.cost)
            case FrameType.CREDIT:
                session.heard_credit(decode_u32(frame))
            case FrameType.EXEC_EXIT:
                del self._sessions[frame.stream]
                session.heard_exit(decode_u32(frame) & 0xFF)
            case _:
                self._unknown()

    def broke(self, error: GuestError) -> None:
        """The channel ended, and with it all of them."""
        for session in self._sessions.values():
            session.broke(error)
        self._sessions.clear()
