"""The outbox relay: gives every committed event its number, in order, and says that there are new ones.

An event is written in the transaction of the change that it tells of, with `seq` 0. Numbers are given in a transaction of
their own, one after another from a counter, so a reader who has seen number n will never find a smaller one appear: that is
what lets a stream resume without loss. Ids sort by birth, so events of one transaction keep their order. Two control planes
may relay at once; the store lets one go first and the other finds nothing.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import structlog

from shellwego.control.events import changes
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import UnavailableError
from shellwego.core.troubles import Troubles
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

BATCH = 500
COUNTER = "events"

_log = structlog.get_logger(__name__)


async def relay_forever(control: Control) -> None:
    """Relay at start, on hints and on a timer, until cancelled."""
    troubles = Troubles()
    async with contextlib.aclosing(changes(control, subjects.EVENTS)) as ticks:
        async for _ in ticks:
            try:
                await relay(control)
            except UnavailableError as error:
                if trouble := troubles.failed("relay", error.message, control.clock.monotonic()):
                    _log.warning("outbox.unavailable", reason=error.message, **trouble.fields)
            else:
                if trouble := troubles.passed("relay", control.clock.monotonic()):
                    _log.info("outbox.works_again", **trouble.fields)


async def relay(control: Control) -> int:
    """Number and announce all events that have no number yet; returns how many there were."""
    total = 0
    while await control.read(_has_pending):
        total += await control.commit(number_events)
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
    """Asked on a snapshot, so that an idle platform writes nothing."""
    return bool(tx.events.select(eq("seq", 0), limit=1))
