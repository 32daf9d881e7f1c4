"""Answers to what was asked lately, nearly in their final bytes: by all of a question but its id, whatever its letters.

Theory. Who asks may write one question in very many ways: the case of each letter, and what follows it. So they are bounded
by the bytes that they take, those of the questions too; the oldest go first.
"""

from __future__ import annotations

from plasmavmc.network.dns.turns import Turns

_OVERHEAD = 400
"""Bytes that an entry takes beside what it holds, about."""

_Answer = tuple[bytes, Turns | None, bytes]
"""What stands before the records that come in turn, these, and what follows them."""


class HotAnswers:
    """Those of one network. With no room, which is how it begins, it keeps none."""

    def __init__(self) -> None:
        self._kept: dict[bytes, _Answer] = {}
        self._room = 0
        self.used = 0
        """Bytes, about."""

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, rest: bytes) -> bytes | None:
        """The answer to a question, both without their ids."""
        found = self._kept.get(rest)
        if found is None:
            return None
        head, turns, tail = found
        return head if turns is None else head + turns.take() + tail

    def keep(self, rest: bytes, head: bytes, turns: Turns | None = None, tail: bytes = b"") -> None:
        """Keep one, where it is not there."""
        if rest not in self._kept:
            self._kept[rest] = head, turns, tail
            self.used += _size_of(rest, head, tail)
            self._trim()

    def give_room(self, room: int) -> None:
        """They may take so many bytes from now on."""
        self._room = room
        self._trim()

    def _trim(self) -> None:
        while self.used > self._room:
            rest = next(iter(self._kept))
            head, _, tail = self._kept.pop(rest)
            self.used -= _size_of(rest, head, tail)


def _size_of(rest: bytes, head: bytes, tail: bytes) -> int:
    return _OVERHEAD + len(rest) + len(head) + len(tail)
