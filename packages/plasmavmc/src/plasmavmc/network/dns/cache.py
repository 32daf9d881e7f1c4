"""Answers of other resolvers, for as long as they last. Bounded by number and by bytes; the longest unused go first."""

from __future__ import annotations

from collections import OrderedDict

from plasmavmc.network.dns.reply import Reply
from plasmavmc.network.dns.wire import CD, Query

Key = tuple[bytes, int, bool, bool]
_OVERHEAD = 300
"""Bytes that an entry takes beside its answer, about."""


def key_of(query: Query) -> Key:
    """What answers depend on."""
    return query.name, query.type, query.dnssec, bool(query.flags & CD)


class Cache:
    """Times are seconds of any one clock."""

    def __init__(self, *, entries: int = 10_000, bytes_: int = 16 << 20) -> None:
        self._entries = entries
        self._bytes = bytes_
        self._kept: OrderedDict[Key, tuple[float, Reply]] = OrderedDict()
        self._used = 0

    def get(self, key: Key, now: float) -> tuple[Reply, int] | None:
        """An answer that still lasts, and its age in whole seconds."""
        found = self._kept.get(key)
        if found is None:
            return None
        born, reply = found
        if now >= born + reply.lifetime_s:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return reply, int(now - born)

    def put(self, key: Key, reply: Reply, now: float) -> None:
        """Keep an answer, if it lasts at all."""
        self._drop(key)
        if reply.lifetime_s <= 0:
            return
        self._kept[key] = now, reply
        self._used += len(reply.body) + _OVERHEAD
        while len(self._kept) > self._entries or self._used > self._bytes:
            self._drop(next(iter(self._kept)))

    def __len__(self) -> int:
        return len(self._kept)

    def _drop(self, key: Key) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self._used -= len(found[1].body) + _OVERHEAD
