"""The host's clock, and the kernel's randomness."""

from __future__ import annotations

import asyncio
import secrets
import time

from shellwego.drivers.clock.ids import IdSource


class SystemClock:
    """See `ports.clock.Clock`."""

    def __init__(self) -> None:
        self._ids = IdSource(secrets.token_bytes)

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def new_id(self, prefix: str) -> str:
        return self._ids.new(prefix, int(self.now() * 1000))
