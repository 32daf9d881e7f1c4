"""Server-sent events (WHATWG HTML, section 9.2): one long answer, with a comment now and then so that it stays open.

A client that stops reading stops only itself: the source is asked for the next message when the last one was taken, and
one that takes nothing for a while is cut off (`pieces`). The stream ends when the client leaves; and, with an event `error`
that says why, when the server stops, or when the token no longer allows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from shellwego.api.rest.context import Context
from shellwego.api.rest.pieces import Pieces
from shellwego.core.errors import ShellWeGoError, UnavailableError

EVENT_STREAM = "text/event-stream"
_KEEP_ALIVE = b": still here\n\n"
_KEEP_ALIVE_S = 15.0


def message(data: str, *, event: str, id_: str = "") -> bytes:
    """One event. `data` is JSON of one line; `event` and `id_` come from us and hold no line break."""
    lines = [f"event: {event}", f"data: {data}"]
    if id_:
        lines.append(f"id: {id_}")
    return ("\n".join(lines) + "\n\n").encode()


class EventStream(Pieces):
    """Messages as they come."""

    def __init__(self, messages: AsyncGenerator[bytes], context: Context) -> None:
        super().__init__(_kept_alive(messages, context), media_type=EVENT_STREAM)
        self.headers["Cache-Control"] = "no-cache"
        self.headers["X-Accel-Buffering"] = "no"


async def _kept_alive(messages: AsyncGenerator[bytes], context: Context) -> AsyncGenerator[bytes]:
    stopping = asyncio.ensure_future(context.stopping.wait())
    pending: asyncio.Future[bytes | None] | None = None
    yield _KEEP_ALIVE
    try:
        while not stopping.done():
            pending = pending or asyncio.ensure_future(_next(messages))
            waited: list[asyncio.Future[Any]] = [pending, stopping]
            await asyncio.wait(waited, timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if pending.done():
                finished, pending = pending, None
                taken = finished.result()
                if taken is None:
                    return
                yield taken
            elif not stopping.done():
                yield _KEEP_ALIVE
        yield message(_quoted(UnavailableError("server-stopping", "the server stops; come again")), event="error")
    except ShellWeGoError as error:
        yield message(_quoted(error), event="error")
    finally:
        left: list[asyncio.Future[Any]] = [stopping] if pending is None else [pending, stopping]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await messages.aclose()


async def _next(messages: AsyncGenerator[bytes]) -> bytes | None:
    return await anext(messages, None)


def _quoted(error: ShellWeGoError) -> str:
    return msgspec.json.encode({"code": error.code, "detail": error.message}).decode()
