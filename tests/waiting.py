"""Waiting for what an answer of something real will show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T]], what: str, within_s: float = 60.0) -> T:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + within_s
    while not (seen := await look()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.01)
    return seen


async def eventually(look: Callable[[], T], what: str, within_s: float = 60.0) -> T:
    """As `until`, where nobody has to be asked."""

    async def seen() -> T:
        return look()

    return await until(seen, what, within_s)
