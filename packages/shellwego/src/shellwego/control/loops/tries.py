"""Something that a loop tries again at its next look: it is logged when it begins to fail, and when it works again
(`core.troubles`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager

from structlog.typing import FilteringBoundLogger

from shellwego.core.errors import ShellWeGoError
from shellwego.core.troubles import Troubles
from shellwego.ports.clock import Clock


class Tries:
    """The tries of one loop, told to `log` by the events `failed` and `passed`."""

    def __init__(self, clock: Clock, log: FilteringBoundLogger, failed: str, passed: str) -> None:
        self._clock = clock
        self._log = log
        self._failed = failed
        self._passed = passed
        self._troubles = Troubles()

    @contextmanager
    def tried(self, key: str = "step", **said: str) -> Iterator[None]:
        """Around one try of what `key` names; a `ShellWeGoError` goes no further. `said` is told with it."""
        try:
            yield
        except ShellWeGoError as error:
            if trouble := self._troubles.failed(key, error.message, self._clock.monotonic()):
                self._log.warning(self._failed, **said, reason=error.message, **trouble.fields)
        else:
            if trouble := self._troubles.passed(key, self._clock.monotonic()):
                self._log.info(self._passed, **said, **trouble.fields)

    async def each(self, keys: Iterable[str], step: Callable[[str], Awaitable[object]]) -> set[str]:
        """Take one step for each key; one that fails holds up no other. Returns those that failed."""
        failed = set[str]()
        for key in keys:
            failed.add(key)
            with self.tried(key, about=key):
                await step(key)
                failed.discard(key)
        return failed
