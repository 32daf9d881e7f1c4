"""One control plane runs a loop at a time: a lease in the store, judged by the store's clock.

The holder starts its own monotonic timer before it sends the claim, and stops working at two thirds of the term unless it
could renew; so it has stopped before anybody else may begin, whatever either wall clock says.

A process that stood still (stopped, swapped out) wakes up in the middle of its work, and does not know yet that its time is
over. So the loops work with `Lease.fenced`, whose writes look at the lease in their own transaction, and are refused once it
is not theirs.

A holder that comes back under the same name takes its lease at once: a restarted server does not wait for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import TypeVar

import structlog

from shellwego.control.unit import Caller, Control, Unit
from shellwego.core.errors import ShellWeGoError, StaleError
from shellwego.core.events import LoopLease
from shellwego.core.troubles import Troubles

TERM_S = 15.0
_RENEW_S = TERM_S / 3
_STOP_S = TERM_S * 2 / 3
_RETRY_S = 1.0

_log = structlog.get_logger(__name__)

T = TypeVar("T")
_SYSTEM = Caller()


@dataclass(frozen=True, slots=True)
class FencedControl(Control):
    """A control plane's hands while it holds a lease."""

    lease_id: str
    holder: str

    async def commit(self, fn: Callable[[Unit], T], caller: Caller = _SYSTEM) -> T:
        """Run a use case durably, if the lease is held still.

        Raises:
            StaleError: it is over, or another's; nothing was stored.
        """
        return await Control.commit(self, lambda unit: self._guard(unit, fn), caller)

    def _guard(self, unit: Unit, fn: Callable[[Unit], T]) -> T:
        lease = unit.tx.leases.get(self.lease_id)
        if lease is None or lease.holder != self.holder or lease.until <= unit.now():
            raise StaleError("lease-lost", f"{self.lease_id} is not held by {self.holder} any more")
        return fn(unit)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one loop."""

    control: Control
    loop: str
    holder: str
    _troubles: Troubles = field(default_factory=Troubles)

    @property
    def id(self) -> str:
        """Of its row."""
        return f"loop.{self.loop}"

    @property
    def fenced(self) -> Control:
        """What the work writes by."""
        control = self.control
        return FencedControl(control.store, control.bus, control.clock, self.id, self.holder)

    async def run(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do the work while the lease is held, and begin again whenever it ends or fails. Runs until cancelled."""
        pause = _RETRY_S
        while True:
            began = self.control.clock.monotonic()
            if await self._claim():
                await self._work_while_held(work, began)
                lasted = self.control.clock.monotonic() - began >= TERM_S
                pause = _RETRY_S if lasted else min(pause * 2, TERM_S)
            await self.control.clock.sleep(pause)

    async def _work_while_held(self, work: Callable[[], Coroutine[None, None, None]], began: float) -> None:
        task = asyncio.ensure_future(work())
        renewal = asyncio.ensure_future(self._renew_until_lost(began))
        try:
            await asyncio.wait({task, renewal}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            renewal.cancel()
            task.cancel()
            ended = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(ended, Exception):
            self._tell_failure("loop.failed", ended)

    async def _renew_until_lost(self, began: float) -> None:
        """Return when the lease can no longer be counted on; a claim that hangs is one that failed."""
        clock = self.control.clock
        while True:
            await clock.sleep(_RENEW_S)
            sent = clock.monotonic()
            left = began + _STOP_S - sent
            if left > 0 and await self._claim_within(left):
                began = sent
                self._tell_success("loop.failed")
            elif clock.monotonic() - began >= _STOP_S:
                _log.warning("loop.lease_lost", loop=self.loop, holder=self.holder)
                return

    async def _claim_within(self, seconds: float) -> bool:
        claim = asyncio.ensure_future(self._claim())
        limit = asyncio.ensure_future(self.control.clock.sleep(seconds))
        try:
            await asyncio.wait({claim, limit}, return_when=asyncio.FIRST_COMPLETED)
            return claim.done() and claim.result()
        finally:
            claim.cancel()
            limit.cancel()

    async def _claim(self) -> bool:
        try:
            held = await self.control.commit(self._take)
        except ShellWeGoError as error:
            self._tell_failure("loop.lease_claim_failed", error)
            return False
        self._tell_success("loop.lease_claim_failed")
        return held

    def _tell_failure(self, event: str, error: Exception) -> None:
        """A defect of ours with its trace; what the world refuses (a full disk, no store) with its reason."""
        refusal = _refusal(error)
        reason, trace = (str(error), error) if refusal is None else (str(refusal), None)
        if trouble := self._troubles.failed(event, reason, self.control.clock.monotonic()):
            _log.error(event, loop=self.loop, reason=reason, exc_info=trace, **trouble.fields)

    def _tell_success(self, event: str) -> None:
        if trouble := self._troubles.passed(event, self.control.clock.monotonic()):
            _log.info("loop.works_again", loop=self.loop, after=event, **trouble.fields)

    def _take(self, unit: Unit) -> bool:
        now = unit.now()
        stored = unit.tx.leases.get(self.id)
        if stored is None:
            unit.tx.leases.insert(LoopLease(id=self.id, holder=self.holder, until=now + TERM_S))
            return True
        if stored.holder != self.holder and stored.until > now:
            return False
        unit.tx.leases.update(replace(stored, holder=self.holder, until=now + TERM_S))
        return True


def _refusal(error: BaseException) -> ShellWeGoError | None:
    """What the world refused, also to one of several tasks; None where there is a defect in it."""
    if isinstance(error, BaseExceptionGroup):
        found = [_refusal(each) for each in error.exceptions]
        return found[0] if all(found) else None
    return error if isinstance(error, ShellWeGoError) else None
