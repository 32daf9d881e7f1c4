"""Waiting for whatever comes first: a timer of the given clock, or something that happens."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from shellwego.ports.clock import Clock


async def wait_any(clock: Clock, seconds: float, *happenings: Coroutine[Any, Any, object]) -> None:
    """Return after `seconds`, or as soon as one of the happenings is over; the others are cancelled. Raises what that
    one raised."""
    tasks = [asyncio.ensure_future(waiting) for waiting in (clock.sleep(seconds), *happenings)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_all(tasks)
    for task in done:
        task.result()


async def cancel_all(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they are gone; what they raise is theirs alone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
