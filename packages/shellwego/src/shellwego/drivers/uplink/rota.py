"""Which server is asked: pure, and random only by what it is given.

Who calls stays with the server that answered him last, so that its connections serve again. One that failed rests for a
while, longer each time, and is asked last; the others come in random order, so that the callers of a server that died spread
over those that live. After some minutes the choice is made anew: else all would have left the server that was away once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

FIRST_REST_S = 0.5
LONGEST_REST_S = 15.0
STAY_S = 300.0
MOST_RIVALS = 3
RIVAL_EVERY_S = 5.0


@dataclass(slots=True)
class _Server:
    url: str
    failures: int = 0
    rests_until: float = 0.0


class Rota:
    """Times are monotonic seconds; `jitter` gives a random number from 0 up to 1."""

    def __init__(self, urls: Callable[[], Sequence[str]], jitter: Callable[[], float]) -> None:
        """`urls` are asked for each time, for servers come and go."""
        self._urls = urls
        self._servers: dict[str, _Server] = {}
        self._jitter = jitter
        self._chosen = ""
        self._chosen_until = 0.0

    def order(self, now: float) -> list[str]:
        """All servers, the one to ask first at the front."""
        servers = self._known()
        if now >= self._chosen_until:
            self._chosen = ""
        keys = {
            each.url: (each.rests_until > now, each.url != self._chosen, self._jitter()) for each in servers.values()
        }
        return sorted(keys, key=lambda url: keys[url])

    def answered(self, url: str, now: float) -> None:
        """It did its work, whatever the answer was."""
        server = self._known().get(url)
        if server is None:
            return
        server.failures, server.rests_until = 0, 0.0
        if self._chosen != url:
            self._chosen, self._chosen_until = url, now + STAY_S * (0.5 + self._jitter())

    def failed(self, url: str, now: float) -> None:
        """It did not answer, or could do nothing."""
        server = self._known().get(url)
        if server is None:
            return
        rest = min(FIRST_REST_S * 2.0**server.failures, LONGEST_REST_S)
        server.failures = min(server.failures + 1, 10)
        server.rests_until = now + rest * (0.5 + self._jitter() / 2)
        if self._chosen == url:
            self._chosen = ""

    def _known(self) -> dict[str, _Server]:
        """The servers there are now, with what is known of them."""
        before, urls = self._servers, (url.rstrip("/") for url in self._urls())
        self._servers = {url: before.get(url) or _Server(url) for url in urls}
        return self._servers


class Rivals:
    """How often a call that waits may be made to another server as well: a few times at once, then once in a while."""

    def __init__(self) -> None:
        self._spent_until = 0.0

    def take(self, now: float) -> bool:
        """Whether one more may be made."""
        until = max(self._spent_until, now) + RIVAL_EVERY_S
        if until > now + MOST_RIVALS * RIVAL_EVERY_S:
            return False
        self._spent_until = until
        return True
