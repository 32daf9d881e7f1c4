"""Which failures are worth a line, of what is tried again and again.

Theory. What fails each second for an hour (a full disk, a server that is away) is one trouble: told when it begins, once a
minute while it lasts, and when it is over. A try that passes does not end it, or a step that fails every other time would be
told each time; it is over once nothing failed for a while. A cause that is new in a trouble is told at once, up to a few.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TELL_EVERY_S = 60.0
SETTLED_S = 10.0
_MOST_CAUSES = 5
_MOST_TROUBLES = 1000


@dataclass(frozen=True, slots=True)
class Lasting:
    """A trouble so far."""

    failures: int
    seconds: float

    @property
    def fields(self) -> dict[str, float]:
        """For a line of the log."""
        return {"failures": self.failures, "for_s": round(self.seconds, 1)}


@dataclass(slots=True)
class _Trouble:
    began: float
    told: float
    last: float
    failures: int = 0
    causes: set[str] = field(default_factory=set)


class Troubles:
    """The troubles of one part of the platform; a key names what was tried. `now` is monotonic, in seconds."""

    def __init__(self) -> None:
        self._troubles: dict[str, _Trouble] = {}

    def failed(self, key: str, cause: str, now: float) -> Lasting | None:
        """It failed. What to tell of it; None: enough was said."""
        trouble = self._troubles.get(key) or self._begin(key, now)
        trouble.failures += 1
        trouble.last = now
        new = cause not in trouble.causes and len(trouble.causes) < _MOST_CAUSES
        trouble.causes |= {cause} if new else set()
        if not new and now - trouble.told < TELL_EVERY_S:
            return None
        trouble.told = now
        return Lasting(trouble.failures, now - trouble.began)

    def passed(self, key: str, now: float) -> Lasting | None:
        """It worked. The trouble that is over with it, if one is."""
        trouble = self._troubles.get(key)
        if trouble is None or now - trouble.last < SETTLED_S:
            return None
        del self._troubles[key]
        return Lasting(trouble.failures, now - trouble.began)

    def _begin(self, key: str, now: float) -> _Trouble:
        if len(self._troubles) >= _MOST_TROUBLES:  # of things that are gone, and so never pass
            del self._troubles[min(self._troubles, key=lambda each: self._troubles[each].last)]
        trouble = self._troubles[key] = _Trouble(began=now, told=now, last=now)
        return trouble
