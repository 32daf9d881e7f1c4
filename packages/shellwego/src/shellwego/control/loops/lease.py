"""One control plane runs a loop at a time: a lease in the store, judged by the store's clock.

The holder starts a monotonic timer of its own before it sends the claim, and stops working at two thirds of the term
unless it has renewed. So it has stopped before anybody else may begin, whatever the wall clocks say.

A process that was paused (stopped, swapped out) wakes up in the middle of its work, and does not know yet that its
lease has run out. So the loops work with `Lease.fenced`: its writes check the lease in their own transaction, and are
refused once it belongs to somebody else.

Work that has to end is cancelled again and again until it has ended, because libraries swallow a cancellation at times,
and nothing new is begun before. The lease is given up first; otherwise it would be renewed for work that writes nothing
any more, or that waits for ever.

Terms are short, so that the work of a dead server goes on elsewhere within three seconds. Therefore `Leases` renews all
that a server holds in one transaction, and over a connection to the store of its own where there is one: behind the
transactions of the loops, which the database may end and have run again, a renewal would come too late just when there
is most to do. A server that holds nothing only reads, and sleeps until the next lease runs out. At a clean end
everything is given back.

Trap: a holder that comes back under the same name takes its leases at once, so names must differ. Of two living servers
with one name, both would work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog

from shellwego.control.unit import Caller, Control, Unit
from shellwego.core.errors import ShellWeGoError, StaleError
from shellwego.core.events import LoopLease
from shellwego.core.troubles import Troubles
from shellwego.ports.store import Store, Transaction, within

TERM_S = 2.5
RENEW_S = 0.75
STOP_S = TERM_S * 2 / 3
_SOON_S = 0.05
_RETRY_S, _LONGEST_PAUSE_S = 1.0, 15.0
_RELEASE_S = 2.0
_CANCEL_AGAIN_S = 1.0

_log = structlog.get_logger(__name__)

T = TypeVar("T")
_SYSTEM = Caller()
Work = Callable[[], Coroutine[None, None, None]]


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


class Leases:
    """What one server holds, or would like to: `run` claims and renews it. `holder` is the server's own name."""

    def __init__(self, control: Control, holder: str, store: Store | None = None) -> None:
        """`store`: the way on which it claims, where that is another one than the loops', which may be full of work."""
        self.control = control
        self._claims = control if store is None else replace(control, store=store)
        self.holder = holder
        self._wanted: dict[str, _Claim] = {}
        self._troubles = Troubles()
        self._asked = asyncio.Event()

    def of(self, loop: str) -> Lease:
        """The right to run one loop, which is claimed from when on it is waited for."""
        return Lease(self, loop)

    async def run(self) -> None:
        """Claim and renew until cancelled; then give back what is held."""
        try:
            while True:
                pause = await self._within(self._renew(), TERM_S)
                await self._wait(RENEW_S if pause is None else pause)
        finally:
            await self._within(self._release(), _RELEASE_S)

    def want(self, loop: str) -> _Claim:
        """Begin to claim a lease."""
        claim = self._wanted.setdefault(lease_id(loop), _Claim())
        self._asked.set()
        return claim

    def let_go(self, loop: str) -> None:
        """Renew it no more, so that another server may have it when its term is over."""
        self._wanted.pop(lease_id(loop), None)

    def fenced(self, loop: str) -> Control:
        """What the work of a loop writes by."""
        control = self.control
        return FencedControl(control.store, control.bus, control.clock, lease_id(loop), self.holder)

    async def claim(self) -> frozenset[str]:
        """Claim or renew all that is wanted, once; returns the ids of those that are held."""
        sent, ids = self.control.clock.monotonic(), tuple(self._wanted)
        held = await self._claims.commit(lambda unit: _take(unit, ids, self.holder))
        for id_ in held & self._wanted.keys():
            self._wanted[id_].extend(sent + STOP_S)
        return held

    async def _renew(self) -> float:
        """Claim what can be had; returns in how many seconds to look again."""
        self._asked.clear()
        ids = tuple(self._wanted)
        try:
            free, wait_s = True, 0.0
            if not self._holds_all():
                free, wait_s = await self._claims.read(lambda tx: _look(tx, ids, self.holder))
            if free:
                await self.claim()
        except ShellWeGoError as error:
            if trouble := self._troubles.failed("claim", str(error), self.control.clock.monotonic()):
                _log.error("loop.lease_claim_failed", holder=self.holder, reason=str(error), **trouble.fields)
            return RENEW_S
        if trouble := self._troubles.passed("claim", self.control.clock.monotonic()):
            _log.info("loop.works_again", after="loop.lease_claim_failed", **trouble.fields)
        return RENEW_S if free else min(wait_s + _SOON_S, RENEW_S)

    def _holds_all(self) -> bool:
        now = self.control.clock.monotonic()
        return all(claim.until > now for claim in self._wanted.values())

    async def _release(self) -> None:
        ids = tuple(self._wanted)
        try:
            await self._claims.commit(lambda unit: _give_back(unit, ids, self.holder))
        except ShellWeGoError as error:
            _log.info("loop.leases_not_given_back", holder=self.holder, reason=str(error))

    async def end(self, task: asyncio.Future[None]) -> None:
        """Cancel a task, again and again, and return when it has ended."""
        task.cancel()
        while not task.done():
            await self._first(task, _CANCEL_AGAIN_S)

    async def _wait(self, seconds: float) -> None:
        """Until then, or until one more is wanted."""
        await self._first(asyncio.ensure_future(self._asked.wait()), seconds)

    async def _within(self, work: Coroutine[None, None, T], seconds: float) -> T | None:
        """What hangs is given up: the store may do it still, or not."""
        task = asyncio.ensure_future(work)
        await self._first(task, seconds)
        return None if task.cancelled() or not task.done() else task.result()

    async def _first(self, task: asyncio.Future[Any], seconds: float) -> None:
        limit: asyncio.Future[Any] = asyncio.ensure_future(self.control.clock.sleep(seconds))
        try:
            await asyncio.wait({task, limit}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            limit.cancel()


class _Claim:
    """How long a lease may be counted on, by the monotonic clock."""

    def __init__(self) -> None:
        self.until = float("-inf")
        self.held = asyncio.Event()

    def extend(self, until: float) -> None:
        self.until = max(self.until, until)
        self.held.set()


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one loop."""

    leases: Leases
    loop: str

    @property
    def fenced(self) -> Control:
        """What the work writes by."""
        return self.leases.fenced(self.loop)

    async def run(self, work: Work) -> None:
        """Do the work while the lease is held, and begin again whenever it ends or fails. Runs until cancelled."""
        clock, troubles, pause = self.leases.control.clock, Troubles(), _RETRY_S
        while True:
            claim = self.leases.want(self.loop)
            await claim.held.wait()
            began = clock.monotonic()
            ended = await self._work_while_held(work, claim, troubles)
            if isinstance(ended, _Lost):
                continue
            if ended is not None:
                self._tell(troubles, ended)
            pause = _RETRY_S if clock.monotonic() - began >= _LONGEST_PAUSE_S else min(pause * 2, _LONGEST_PAUSE_S)
            await clock.sleep(pause)

    async def _work_while_held(self, work: Work, claim: _Claim, troubles: Troubles) -> Exception | None:
        """Returns what the work ended by; None: by itself."""
        task = asyncio.ensure_future(work())
        over = asyncio.ensure_future(self._over(claim, troubles))
        try:
            await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
            lost = not task.done()
            self.leases.let_go(self.loop)  # work that does not end keeps nobody else from it
        finally:
            over.cancel()
            await self.leases.end(task)
        if not task.cancelled() and isinstance(ended := task.exception(), Exception):
            return ended
        return _Lost() if lost else None

    async def _over(self, claim: _Claim, troubles: Troubles) -> None:
        """Return when the lease can no longer be counted on."""
        clock = self.leases.control.clock
        while (left := claim.until - clock.monotonic()) > 0:
            await clock.sleep(left)
            if trouble := troubles.passed(self.loop, clock.monotonic()):
                _log.info("loop.works_again", loop=self.loop, after="loop.failed", **trouble.fields)
        _log.warning("loop.lease_lost", loop=self.loop, holder=self.leases.holder)

    def _tell(self, troubles: Troubles, error: Exception) -> None:
        """A defect of ours with its trace; what the world refuses (a full disk, no store) with its reason."""
        refusal = _refusal(error)
        reason, trace = (str(error), error) if refusal is None else (str(refusal), None)
        if trouble := troubles.failed(self.loop, reason, self.leases.control.clock.monotonic()):
            _log.error("loop.failed", loop=self.loop, reason=reason, exc_info=trace, **trouble.fields)


class _Lost(Exception):
    """The lease could not be renewed in time."""


async def run_leased(control: Control, loop: str, holder: str | Leases, work: Callable[[Control], Work]) -> None:
    """Run a loop under its lease until cancelled. `work` gets what it writes by.

    `holder` is what the server holds, for all its loops together; or the server's name, where this loop is all that it runs;
    or nothing, which stands for a name that nobody else has.
    """
    if isinstance(holder, Leases):
        lease = holder.of(loop)
        await lease.run(work(lease.fenced))
        return
    leases = Leases(control, holder or control.clock.new_id("srv"))
    lease = leases.of(loop)
    async with asyncio.TaskGroup() as both:
        both.create_task(leases.run())
        both.create_task(lease.run(work(lease.fenced)))


def lease_id(loop: str) -> str:
    """Of its row."""
    return f"loop.{loop}"


def _look(tx: Transaction, ids: tuple[str, ...], holder: str) -> tuple[bool, float]:
    """Whether any can be had, or is ours to renew; and in how many seconds the first of the others' runs out."""
    now, wait_s, known = tx.now(), TERM_S, _stored(tx, ids)
    for id_ in ids:
        stored = known.get(id_)
        if stored is None or stored.holder == holder or stored.until <= now:
            return True, 0.0
        wait_s = min(wait_s, stored.until - now)
    return False, wait_s


def _take(unit: Unit, ids: tuple[str, ...], holder: str) -> frozenset[str]:
    now, held, known = unit.now(), set[str](), _stored(unit.tx, ids)
    for id_ in ids:
        stored = known.get(id_)
        if stored is None:
            unit.tx.leases.insert(LoopLease(id=id_, holder=holder, until=now + TERM_S))
        elif stored.holder == holder or stored.until <= now:
            unit.tx.leases.update(replace(stored, holder=holder, until=now + TERM_S))
        else:
            continue
        held.add(id_)
    return frozenset(held)


def _give_back(unit: Unit, ids: tuple[str, ...], holder: str) -> None:
    for stored in _stored(unit.tx, ids).values():
        if stored.holder == holder:
            unit.tx.leases.update(replace(stored, until=0.0))


def _stored(tx: Transaction, ids: tuple[str, ...]) -> dict[str, LoopLease]:
    return {lease.id: lease for lease in tx.leases.select(within("id", ids))}


def _refusal(error: BaseException) -> ShellWeGoError | None:
    """What the world refused, also to one of several tasks; None where there is a defect in it."""
    if isinstance(error, BaseExceptionGroup):
        found = [_refusal(each) for each in error.exceptions]
        return found[0] if all(found) else None
    return error if isinstance(error, ShellWeGoError) else None
