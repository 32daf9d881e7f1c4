"""How many requests a token may make: GCRA, the generic cell rate algorithm (ITU-T I.371).

One number a token: the theoretical time at which its bucket would be empty again. No timer, no window's edge to game.
Kept in memory of this process: with several servers a token gets its rate from each.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from shellwego.core.plans import Rate, plan_named

_KEPT = 65_536


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    limit: int
    remaining: int
    reset_s: int
    """Until the whole burst is there again."""
    retry_after_s: int

    @property
    def headers(self) -> dict[str, str]:
        """The fields of the IETF draft on RateLimit headers, and Retry-After where it was refused."""
        headers = {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }
        return headers if self.allowed else {**headers, "Retry-After": str(self.retry_after_s)}


class RateLimiter:
    """Judges requests by token; the least recently seen tokens are forgotten first, which gives them a full burst."""

    def __init__(self) -> None:
        self._empty_at: OrderedDict[str, float] = OrderedDict()

    def judge(self, token_id: str, plan: str, now: float) -> Verdict | None:
        """Count a request at the monotonic time `now`; None where the plan has no limit."""
        rate = plan_named(plan).rate
        return None if rate is None else self.count(token_id, rate, now)

    def count(self, key: str, rate: Rate, now: float, cost: int = 1) -> Verdict:
        """Count a request of whoever `key` stands for, who has this rate; one that costs more counts as so many."""
        interval = 60.0 / rate.per_minute
        tolerance = interval * rate.burst
        empty_at = max(self._empty_at.get(key, now), now) + interval * cost
        if empty_at - now > tolerance + 1e-9:
            wait = empty_at - now - tolerance
            return Verdict(False, rate.burst, 0, math.ceil(empty_at - interval * cost - now), math.ceil(wait))
        self._keep(key, empty_at)
        remaining = int((tolerance - (empty_at - now)) / interval + 1e-9)
        return Verdict(True, rate.burst, remaining, math.ceil(empty_at - now), 0)

    def _keep(self, key: str, empty_at: float) -> None:
        self._empty_at[key] = empty_at
        self._empty_at.move_to_end(key)
        if len(self._empty_at) > _KEPT:
            self._empty_at.popitem(last=False)
