"""The last lines of VMs that do not pass their checks: what a failed deploy shows its user.

A VM that ended brings its last lines with its end. One that runs and is not well has none yet, so they are read from its
log, seldom, and only while it is not well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shellwego.core.errors import ShellWeGoError
from shellwego.core.health import Health, Verdict
from shellwego.core.logtails import LINES, log_tail
from shellwego.ports.clock import Clock
from shellwego.ports.engine import Engine

EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class _Tail:
    lines: tuple[str, ...]
    read_at: float


class Tails:
    """Remembers what was read, by VM id."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._tails: dict[str, _Tail] = {}

    async def joined(self, health: Mapping[str, Health]) -> dict[str, Health]:
        """The verdicts, with the last lines of each VM that does not pass."""
        unwell = {vm_id for vm_id, each in health.items() if each.verdict is not Verdict.PASSING and each.reason}
        self._tails = {vm_id: await self._tail(vm_id) for vm_id in unwell}
        return {
            vm_id: replace(each, log_tail=self._tails[vm_id].lines) if vm_id in unwell else each
            for vm_id, each in health.items()
        }

    async def _tail(self, vm_id: str) -> _Tail:
        now, known = self._clock.monotonic(), self._tails.get(vm_id)
        if known is not None and now - known.read_at < EVERY_S:
            return known
        try:
            records = [record async for record in self._engine.logs(vm_id, follow=False, tail=LINES, since=0.0)]
        except ShellWeGoError:
            return _Tail((), now)
        return _Tail(log_tail([record.text for record in records]), now)
