"""The outbox relay: gives every committed event its number, and every audit record its place in its chain, in order.

An event is written in the transaction of the change that it tells of, with `seq` 0. Numbers are given in a transaction of
their own, one after another from a counter, so a reader who has seen number n will never find a smaller one appear: that is
what lets a stream resume without loss. Ids sort by birth, so events of one transaction keep their order. One control plane
relays at a time, under a lease; if two did, the store would let one go first, and the other find nothing. Audit records go
the same way (`control.audit`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from shellwego.control import audit
from shellwego.control.events import changes
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import UnavailableError
from shellwego.core.troubles import Troubles
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

BATCH = 500
COALESCE_S = 0.01
"""From a hint to the batch, so that what many commits write in a row is numbered together: each batch is a commit, too."""
COUNTER = "events"

_log = structlog.get_logger(__name__)


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
    return await _all(control, _has_pending, number_events, BATCH)


async def relay_audit(control: Control) -> int:
    """Chain all audit records that have no place yet; returns how many there were."""
    return await _all(control, audit.has_pending, audit.chain_records, audit.BATCH)


async def _all(
    control: Control, pending: Callable[[Transaction], bool], step: Callable[[Unit], int], batch: int
) -> int:
    """Do a step as long as there is something; asked on a snapshot, so that an idle platform writes nothing. A step that
    found less than a batch left nothing; what comes after it is hinted at anew."""
    total, found = 0, batch
    while found >= batch and await control.read(pending):
        found = await control.commit(step)
        total += found
    return total


def number_events(unit: Unit) -> int:
    """Give the next events their numbers, at most `BATCH`; returns how many there were."""
    pending = unit.tx.events.select(eq("seq", 0), limit=BATCH)
    for event in pending:
        unit.tx.events.update(replace(event, seq=unit.tx.next(COUNTER)))
    if pending:
        unit.hint(subjects.EVENTS)
    return len(pending)


def _has_pending(tx: Transaction) -> bool:
    return bool(tx.events.select(eq("seq", 0), limit=1))
