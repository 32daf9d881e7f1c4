"""Counts the failed attempts of whoever guesses passwords and codes, in the memory of this process. The number of
entries is bounded: the one that was quiet longest is forgotten first.

Each server counts for itself, so with three servers a guesser has three times as many tries.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from shellwego.core import throttle
from shellwego.core.errors import ThrottledError
from shellwego.core.throttle import Attempts, Limit

_KEPT = 65_536


@dataclass(frozen=True, slots=True)
class Counted:
    """One thing that is counted, by what limit."""

    limit: Limit
    key: str


@dataclass(slots=True)
class Throttle:
    """Attempts by limit and key."""

    kept: int = _KEPT
    _attempts: dict[Limit, OrderedDict[str, Attempts]] = field(default_factory=dict)

    def begin(self, counted: Sequence[Counted], now: float) -> None:
        """An attempt begins at the monotonic time `now`, and counts as failed until `succeed`.

        Raises:
            ThrottledError: one of the counted has to wait still; nothing is counted then.
        """
        waits = [throttle.wait(each.limit, self._of(each), now) for each in counted]
        if max(waits) > 0:
            raise throttled(max(waits))
        for each in counted:
            self._keep(each, throttle.begun(each.limit, self._of(each), now))

    def succeed(self, counted: Sequence[Counted], own: Sequence[Counted]) -> None:
        """The attempt was none of a guesser. What is the account's own is forgotten whole; of the source only this
        attempt, or an account of one's own would make guessing at others free."""
        for each in counted:
            self._keep(each, throttle.NONE if each in own else throttle.forgiven(self._of(each)))

    def wait(self, counted: Sequence[Counted], now: float) -> float:
        """Seconds until the next attempt may begin."""
        return max(throttle.wait(each.limit, self._of(each), now) for each in counted)

    def _of(self, counted: Counted) -> Attempts:
        return self._attempts.get(counted.limit, OrderedDict()).get(counted.key, throttle.NONE)

    def _keep(self, counted: Counted, attempts: Attempts) -> None:
        kept = self._attempts.setdefault(counted.limit, OrderedDict())
        kept[counted.key] = attempts
        kept.move_to_end(counted.key)
        if not attempts.failures:
            del kept[counted.key]
        elif len(kept) > self.kept:
            kept.popitem(last=False)


def throttled(wait_s: float) -> ThrottledError:
    """Told to whoever has to wait."""
    seconds = math.ceil(wait_s)
    return ThrottledError(
        "too-many-attempts",
        "too many attempts failed",
        resolution=f"Try again in {seconds} s.",
        retry_after_s=seconds,
    )


def source_of(address: str) -> str:
    """Who is behind an address, as far as it tells: a network of IPv6 is one subscriber's (RFC 6177)."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "local"
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed)
