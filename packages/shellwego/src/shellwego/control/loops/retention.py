"""The retention loop: lets go of events and deliveries past their time, a bounded number in each transaction.

Events go from the oldest on, and a mark says how far, so whoever resumes before it is told what he missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shellwego.control.events import published
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.marks import PRUNED, set_mark
from shellwego.control.unit import Control, Unit
from shellwego.core.events import Event
from shellwego.core.webhooks import FINISHED
from shellwego.core.webhooks import KEPT_S as DELIVERIES_KEPT_S
from shellwego.ports.store import Op, Order, Where, within

EVERY_S = 600.0
BATCH = 200


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept, in seconds."""

    events_s: float = 30 * 24 * 3600.0
    deliveries_s: float = DELIVERIES_KEPT_S


DEFAULT = Retention()


def prune_events(unit: Unit, kept_s: float) -> int:
    """Delete the next events past their time, in their order; returns how many. What has a smaller number is older, also
    where a clock that was set back since says that it is of a time to come."""
    oldest = unit.tx.events.select(published(), order=Order("seq"), limit=BATCH)
    past = _past(unit, oldest, unit.now() - kept_s)
    for event in oldest[:past]:
        unit.tx.events.delete(event.id)
        set_mark(unit.tx, PRUNED, event.seq)
    return past


def _past(unit: Unit, oldest: Sequence[Event], before: float) -> int:
    """How many of the first are past their time, or come before one that is."""
    past = max((number for number, event in enumerate(oldest, 1) if event.time < before), default=0)
    if past or not oldest or oldest[0].time <= unit.now():
        return past
    later = unit.tx.events.select(published(), Where("time", Op.LT, before), limit=1)
    return len(oldest) if later else 0


def prune_deliveries(unit: Unit, kept_s: float) -> int:
    """Delete the next finished deliveries past their time; returns how many."""
    past = Where("created_at", Op.LT, unit.now() - kept_s)
    finished = within("state", [state.value for state in FINISHED])
    old = unit.tx.deliveries.select(past, finished, order=Order("created_at"), limit=BATCH)
    for delivery in old:
        unit.tx.deliveries.delete(delivery.id)
    return len(old)


async def prune(control: Control, retention: Retention) -> None:
    """Let go of all that is past its time."""
    while await control.commit(lambda unit: prune_events(unit, retention.events_s)) == BATCH:
        pass
    while await control.commit(lambda unit: prune_deliveries(unit, retention.deliveries_s)) == BATCH:
        pass


async def run(control: Control, retention: Retention = DEFAULT, *, holder: str | Leases = "") -> None:
    """Prune at start and on a timer; `holder`: as for `run_leased`. Runs until cancelled."""

    async def work(fenced: Control) -> None:
        while True:
            await prune(fenced, retention)
            await control.clock.sleep(EVERY_S)

    await run_leased(control, "retention", holder, lambda fenced: lambda: work(fenced))
