"""Records of one name and type as they travel, another one first each time, so that those who take the first share them out.

Theory. Of records that lie twice in a row, each order is one slice: it takes no time to speak of, however many there are and
whoever asks in whatever letters.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from plasmavmc.network.dns import wire
from plasmavmc.network.dns.wire import Record, Section


class Turns:
    """See the module's head. It holds one record at least."""

    __slots__ = ("_next", "_starts", "_twice", "extra", "size")

    def __init__(self, records: Iterable[Record], extra: Section) -> None:
        """`extra` comes along with them, as additional records."""
        told = [wire.section((record,)).data for record in records]
        self._starts = tuple(accumulate(map(len, told[:-1]), initial=0))
        self._twice = b"".join((*told, *told))
        self._next = 0
        self.size = len(self._twice) // 2
        """Bytes of all of them."""
        self.extra = extra

    def __len__(self) -> int:
        return len(self._starts)

    def take(self) -> bytes:
        """All of them, in the order whose turn it is."""
        start = self._starts[self._next]
        self._next = (self._next + 1) % len(self._starts)
        return self._twice[start : start + self.size]
