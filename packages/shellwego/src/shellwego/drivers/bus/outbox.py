"""Hints on their way to a bus elsewhere: which wait, and which were sent and not confirmed.

A hint that was sent and not confirmed may have arrived or not; so it is sent again under the same id, by which the bus knows
it. One that waits stands for all equal ones that come meanwhile. It is bounded: beyond, the oldest go, and with them some
latency only. `now` is monotonic, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

LIMIT = 8192


@dataclass(slots=True)
class Letter:
    """One hint, with what the bus knows it by."""

    id: str
    subject: str
    payload: bytes
    sent_at: float | None = None


@dataclass(slots=True)
class Outbox:
    """`sender` is unlike every other's, and begins each id."""

    sender: str
    limit: int = LIMIT
    _numbers: count[int] = field(default_factory=count)
    _letters: dict[str, Letter] = field(default_factory=dict)
    _waiting: dict[tuple[str, bytes], str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._letters)

    def post(self, subject: str, payload: bytes) -> Letter:
        """Take a hint; an equal one that waits stands for it."""
        waiting = self._waiting.get((subject, payload))
        if waiting is not None:
            return self._letters[waiting]
        if len(self._letters) >= self.limit:
            self.confirmed(next(iter(self._letters)))
        letter = Letter(f"{self.sender}-{next(self._numbers)}", subject, payload)
        self._letters[letter.id] = letter
        self._waiting[subject, payload] = letter.id
        return letter

    def sent(self, letter: Letter, now: float) -> None:
        """It is on its way."""
        letter.sent_at = now
        self._waiting.pop((letter.subject, letter.payload), None)

    def confirmed(self, id_: str) -> None:
        """The bus has it; or nobody wants to know any more."""
        letter = self._letters.pop(id_, None)
        if letter is not None and letter.sent_at is None:
            self._waiting.pop((letter.subject, letter.payload), None)

    def due(self, sent_before: float) -> list[Letter]:
        """What waits, and what was sent before that moment and is not confirmed yet; the oldest first."""
        return [each for each in self._letters.values() if each.sent_at is None or each.sent_at < sent_before]
