"""Port: hints. A message says "look again" and carries no truth; losing, doubling or reordering one costs latency only.

Subjects are dotted words (`app.app_01j…`, `node.node_01j….assignments`, `routes`); in a pattern `*` stands for one word
and a last `>` for one or more, as in NATS.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Hint:
    subject: str
    payload: bytes = b""
    missed: bool = False
    """Hints may have been lost, as when the way to the bus was cut: whoever listens looks at all that the pattern could
    have named. `subject` is the pattern itself then."""


class Bus(Protocol):
    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """Send a hint to whoever listens now. Never waits for a slow listener."""

    def subscribe(self, pattern: str) -> AbstractAsyncContextManager[AsyncIterator[Hint]]:
        """Listen within the context. A listener that falls behind loses the oldest, never blocks others."""

    async def close(self) -> None: ...
