"""`GET …/wait`: hold the answer until a resource reaches a state, at most as long as the client asks. Whoever may not see it
any more hears nothing of it: each look is by what he may then."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import Query

from shellwego.api.rest.context import Context
from shellwego.api.rest.rights import renew
from shellwego.control.authorization import Access
from shellwego.control.events import changes

V = TypeVar("V")

MAX_WAIT_S = 60.0
Timeout = Annotated[float, Query(ge=0, le=MAX_WAIT_S, allow_inf_nan=False, description="Seconds.")]
States = Annotated[str, Query(max_length=200, description="States, separated by commas.")]
SeenVersion = Annotated[
    int | None, Query(ge=0, le=2**62, description="Answer as soon as the resource has another version than this.")
]


async def wait_for(
    context: Context,
    access: Access,
    subject: str,
    look: Callable[[], Awaitable[V]],
    reached: Callable[[V], bool],
    *,
    timeout: float,
) -> V:
    """What `look`, which reads by this access, gives once it is as asked, or at the end of the time, or when the server
    stops. Raises as `rights.renew`, and as `look`.

    Raises:
        ThrottledError: it is not as asked yet, and very much is waited for in this organization.
    """
    clock = context.control.clock
    deadline = clock.monotonic() + timeout
    ticking = changes(context.control, subject, look_again_s=min(1.0, max(timeout, 0.01)))
    with contextlib.ExitStack() as held:
        first = True
        async with contextlib.aclosing(ticking) as ticks:
            async for _ in ticks:
                if not first:
                    await context.shares.turn(clock, access, context.stopping, deadline - clock.monotonic())
                await renew(context, access)
                seen = await look()
                if reached(seen) or clock.monotonic() >= deadline or context.stopping.is_set():
                    return seen
                if first:  # the look has found the organization
                    held.enter_context(context.shares.lasting(access))
                    first = False
    raise AssertionError("the ticks never end")
