"""`?watch=true` on a list: the list as it is now, and again whenever it is another.

Whatever a page shows, each of its looks goes the way of the request itself, with what the caller may by then; so a watcher
sees what a reader sees, and nothing that one would not. Looks follow events, and a timer, but not one another too closely,
and those of many watchers of one organization take turns (`shares`).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.responses import Response

from shellwego.api.rest.context import Context
from shellwego.api.rest.sse import EventStream, message
from shellwego.control.events import changes
from shellwego.wire import subjects

WATCH = "watch"
"""The query parameter of lists."""
_PAUSE_S = 0.25


def watched(context: Context, first: Response, again: Callable[[], Awaitable[Response]]) -> EventStream:
    """A list's answer as a stream of messages `list`; `again` asks for it anew."""

    async def messages() -> AsyncGenerator[bytes]:
        shown = bytes(first.body)
        yield message(shown.decode(), event="list")
        async with contextlib.aclosing(changes(context.control, subjects.EVENTS)) as ticks:
            async for _ in ticks:
                now = bytes((await again()).body)
                if now != shown:
                    shown = now
                    yield message(shown.decode(), event="list")
                await context.control.clock.sleep(_PAUSE_S)

    return EventStream(messages(), context)
