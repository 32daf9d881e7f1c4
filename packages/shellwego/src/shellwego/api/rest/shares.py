"""What one tenant may have open at once of what the API bears for all.

The rate of a token counts what begins; a stream lasts as long as its token, a wait for a minute, and a body that comes
slowly for longer. So what is open is counted, too: all requests of a principal, however many tokens it has, and of an
organization what is about it and lasts. Operators are no tenants, and are not counted. Each server counts for itself.

What lasts looks again and again, at each event of the platform and on a timer, and no request is counted for that. So the
looks of an organization's streams and waits take turns: a few of them never wait for one another, very many do.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

from shellwego.control.authorization import Access
from shellwego.core.errors import ThrottledError
from shellwego.core.tenancy import Principal
from shellwego.ports.clock import Clock, Waiter

OF_PRINCIPAL = 128
OF_ORGANIZATION = 256
LOOKS_PER_S = 16
"""Of an organization; where what is asked for lies in none, of a principal."""
LONGEST_TURN_S = OF_ORGANIZATION / LOOKS_PER_S
"""In this time each of all that an organization may have open has looked, so the turn of none is further off."""
_RETRY_AFTER_S = 5


class Shares:
    """What is open on one server."""

    def __init__(self, of_principal: int = OF_PRINCIPAL, of_organization: int = OF_ORGANIZATION) -> None:
        self._of_principal = of_principal
        self._of_organization = of_organization
        self._open: Counter[str] = Counter()
        self._free_at: dict[str, float] = {}
        """When the next look of each may be: monotonic seconds. Who looked last is the last."""

    @contextmanager
    def request(self, principal: Principal) -> Iterator[None]:
        """A request, from when it is known who asks until it is answered whole; raises `ThrottledError`."""
        with self._held(principal, principal.principal_id, self._of_principal, "requests of this principal"):
            yield

    @contextmanager
    def lasting(self, access: Access) -> Iterator[None]:
        """A stream, or a wait, about what was found last; raises `ThrottledError`."""
        organization, most = access.scope.organization_id, self._of_organization
        with self._held(access.principal, organization, most, "streams and waits of this organization"):
            yield

    async def turn(self, clock: Clock, access: Access, stopping: asyncio.Event, most_s: float = math.inf) -> None:
        """Return when it is the turn of one more look at what was found last, or when the server stops. Where its turn would
        be later than `most_s` seconds from now, or than `LONGEST_TURN_S`, it has none, and returns after that time."""
        if _is_operator(access.principal):
            return
        key, now = access.scope.organization_id or access.principal.principal_id, clock.monotonic()
        at = max(self._free_at.get(key, now), now)
        longest = min(most_s, LONGEST_TURN_S)
        if at - now > longest:  # it would not use a turn, only put off those of all others
            await _pause(clock, longest, stopping)
            return
        self._free_at.pop(key, None)
        self._free_at[key] = at + 1 / LOOKS_PER_S
        self._forget(now)
        if at > now:
            try:
                await _pause(clock, at - now, stopping)
            except asyncio.CancelledError:
                if key in self._free_at:  # who leaves does not hold up who comes next
                    self._free_at[key] -= 1 / LOOKS_PER_S
                raise

    def _forget(self, now: float) -> None:
        while self._free_at and self._free_at[first := next(iter(self._free_at))] <= now:
            del self._free_at[first]

    @contextmanager
    def _held(self, principal: Principal, key: str, most: int, words: str) -> Iterator[None]:
        if not key or _is_operator(principal):
            yield
            return
        if self._open[key] >= most:
            raise ThrottledError(
                "too-many-open",
                f"{most} {words} are open",
                resolution="End some of them, or try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]


async def _pause(clock: Clock, seconds: float, stopping: asyncio.Event) -> None:
    async with aclosing(Waiter(clock, stopping.wait)) as waiter:
        await waiter.wait(seconds)


def _is_operator(principal: Principal) -> bool:
    return any(not grant.scope_id for grant in principal.grants)
