"""How long somebody who guesses waits: a delay that doubles with each failure, and fades when it is quiet.

Theory. The first failures are free, since people mistype. From then on each doubles the wait, up to a most; while one
waits nothing is tried at all, so that a refusal costs no hash. An attempt counts as a failure when it begins and is
forgiven when it succeeds: a thousand at once are as slow as a thousand in turn. After `forget_s` without an attempt all is
forgotten, which is longer than the longest wait, so that the longest wait is no way to begin anew.

Three things are counted. The *source*: an address, whatever it tries. The *account*, over all sources that never signed in
to it: so a guesser with many addresses is as slow as one with one. And each *known source* of an account, one that signed
in to it before, by itself: strangers who keep an account waiting do not keep its owner waiting at the device he uses.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    free: int
    """Failures without a wait."""
    first_s: float
    most_s: float
    forget_s: float


SOURCE = Limit(free=20, first_s=1.0, most_s=900.0, forget_s=3600.0)
ACCOUNT = Limit(free=5, first_s=1.0, most_s=900.0, forget_s=3600.0)
KNOWN_SOURCE = Limit(free=10, first_s=1.0, most_s=300.0, forget_s=3600.0)


@dataclass(frozen=True, slots=True)
class Attempts:
    """Failures that are not forgotten, and the time of the last one."""

    failures: int = 0
    last_at: float = 0.0


NONE = Attempts()


def wait(limit: Limit, attempts: Attempts, now: float) -> float:
    """Seconds until the next attempt may begin; 0: now."""
    doublings = _remembered(limit, attempts, now) - limit.free
    if doublings <= 0:
        return 0.0
    delay = min(limit.first_s * 2.0 ** min(doublings - 1, 62), limit.most_s)
    return max(attempts.last_at + delay - now, 0.0)


def begun(limit: Limit, attempts: Attempts, now: float) -> Attempts:
    """An attempt begins, which counts as failed until it is forgiven."""
    return Attempts(_remembered(limit, attempts, now) + 1, now)


def forgiven(attempts: Attempts) -> Attempts:
    """The attempt succeeded: it was no failure. Earlier ones stay."""
    return Attempts(max(attempts.failures - 1, 0), attempts.last_at)


def _remembered(limit: Limit, attempts: Attempts, now: float) -> int:
    return attempts.failures if now - attempts.last_at < limit.forget_s else 0
