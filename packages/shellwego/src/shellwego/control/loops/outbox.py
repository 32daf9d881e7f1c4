"""The outbox relay: gives every committed event its number, and every audit record its place in its chain, in order.

An event is written in the transaction of the change that it tells of, with `seq` 0. Numbers are given in a transaction of
their own, one after another from a counter, so a reader who has seen number n will never find a smaller one appear: that is
what lets a stream resume without loss. Ids sort by birth, so events of one transaction keep their order. One control plane
relays at a time, under a lease; if two did, the store would let one go first, and the other look again. Audit records go
the same way (`control.audit`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import structlog

from shellwego.control.audit import chain_records, next_records
from shellwego.control.events import changes
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.marks import mark
from shellwego.control.numbering import PORTION, Numbers, give
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import UnavailableError
from shellwego.core.events import Event
from shellwego.core.troubles import Troubles
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

COALESCE_S = 0.01
"""From a hint to the batch, so that what many commits write in a row is numbered together: each batch is a commit, too."""
COUNTER = "events"

_log = structlog.get_logger(__name__)

R = TypeVar("R")
_Step = Callable[[Unit, Numbers[R]], bool]


async def run(control: Control, *, holder: str | Leases = "") -> None:
    """The relay of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "outbox", holder, lambda fenced: lambda: relay_forever(fenced))


async def relay_forever(control: Control) -> None:
    """Relay at start, on hints and on a timer, until cancelled."""
    async with asyncio.TaskGroup() as both:
        both.create_task(_forever(control, subjects.OUTBOX, relay))
        both.create_task(_forever(control, subjects.AUDIT, relay_audit))


async def _forever(control: Control, subject: str, work: Callable[[Control], Awaitable[int]]) -> None:
    troubles, pause_s = Troubles(), 0.0
    async with contextlib.aclosing(changes(control, subject)) as ticks:
        async for _ in ticks:
            await control.clock.sleep(pause_s)
            pause_s = COALESCE_S
            try:
                await work(control)
            except UnavailableError as error:
                if trouble := troubles.failed(subject, error.message, control.clock.monotonic()):
                    _log.warning("outbox.unavailable", relay=subject, reason=error.message, **trouble.fields)
            else:
                if trouble := troubles.passed(subject, control.clock.monotonic()):
                    _log.info("outbox.works_again", relay=subject, **trouble.fields)


async def relay(control: Control) -> int:
    """Number and announce all events that have no number yet; returns how many there were."""
    return await _all(control, _next_events, _number_events)


async def relay_audit(control: Control) -> int:
    """Chain all audit records that have no place yet; returns how many there were."""
    return await _all(control, next_records, chain_records)


async def _all(control: Control, plan: Callable[[Transaction], Numbers[R]], step: _Step[R]) -> int:
    """Give numbers as long as there is something without; an idle platform only reads. A portion that was not full left
    nothing; what comes after it is hinted at anew."""
    total = 0
    while (numbers := await control.read(plan)).rows:
        given = await _given(control, numbers, step)
        total += given
        if 0 < given < PORTION:
            break
    return total


async def _given(control: Control, numbers: Numbers[R], step: _Step[R]) -> int:
    """How many rows got their numbers: all, or none, where another relay gave some meanwhile."""
    return len(numbers.rows) if await control.commit(lambda unit: step(unit, numbers)) else 0


def _next_events(tx: Transaction) -> Numbers[Event]:
    """The next events with their numbers."""
    pending = tx.events.select(eq("seq", 0), limit=PORTION)
    if not pending:
        return Numbers({}, {}, ())
    last = mark(tx, COUNTER)
    rows = tuple(replace(event, seq=seq) for seq, event in enumerate(pending, last + 1))
    return Numbers({COUNTER: last}, {COUNTER: last + len(rows)}, rows)


def _number_events(unit: Unit, numbers: Numbers[Event]) -> bool:
    unit.hint(subjects.EVENTS)
    return give(unit.tx, numbers, unit.tx.events)
