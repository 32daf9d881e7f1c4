"""`GET …/wait`: hold the answer until a resource reaches a state, at most as long as the client asks."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import Query

from shellwego.api.rest.context import Context
from shellwego.control.events import changes

V = TypeVar("V")

MAX_WAIT_S = 60.0
Timeout = Annotated[float, Query(ge=0, le=MAX_WAIT_S, allow_inf_nan=False, description="Seconds.")]
States = Annotated[str, Query(max_length=200, description="States, separated by commas.")]
SeenVersion = Annotated[
    int | None, Query(ge=0, le=2**62, description="Answer as soon as the resource has another version than this.")
]


async def wait_for(
    context: Context, subject: str, timeout: float, look: Callable[[], Awaitable[V]], reached: Callable[[V], bool]
) -> V:
    """What `look` gives once it is as asked, or at the end of the time, or when the server stops."""
    clock = context.control.clock
    deadline = clock.monotonic() + timeout
    async with contextlib.aclosing(
        changes(context.control, subject, look_again_s=min(1.0, max(timeout, 0.01)))
    ) as ticks:
        async for _ in ticks:
            seen = await look()
            if reached(seen) or clock.monotonic() >= deadline or context.stopping.is_set():
                return seen
    raise AssertionError("the ticks never end")
