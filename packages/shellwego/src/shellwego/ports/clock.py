"""Port: time and randomness, so that logic runs on virtual time in tests."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch, UTC. May step; only for records and for people."""

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back; for every duration."""

    async def sleep(self, seconds: float) -> None:
        """Wait so long."""

    def new_id(self, prefix: str) -> str:
        """A fresh id (`core.ids`)."""
