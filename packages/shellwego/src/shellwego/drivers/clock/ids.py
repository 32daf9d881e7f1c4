"""Ids that sort in the order they were made, also within one millisecond and when the clock steps back.

As the ULID specification proposes for a monotonic generator: in the same millisecond the last entropy is raised by one.
Events of one transaction keep their order by this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shellwego.core.ids import make_id

_BYTES = 10
_LIMIT = 1 << (8 * _BYTES)


class IdSource:
    """Makes ids from `entropy(size)`. Use cases run in the store's thread, so it is safe to call from any."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._lock = threading.Lock()
        self._last = 0

    def new(self, prefix: str, unix_ms: int) -> str:
        """A fresh id, above every earlier one."""
        with self._lock:
            fresh = (unix_ms << (8 * _BYTES)) | int.from_bytes(self._entropy(_BYTES), "big")
            same_or_older = fresh >> (8 * _BYTES) <= self._last >> (8 * _BYTES)
            self._last = self._last + 1 if same_or_older else fresh
            return make_id(prefix, self._last >> (8 * _BYTES), (self._last % _LIMIT).to_bytes(_BYTES, "big"))
