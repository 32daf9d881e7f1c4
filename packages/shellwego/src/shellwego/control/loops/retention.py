"""The retention loop: lets go of events and deliveries past their time, a bounded number in each transaction.

Events go from the oldest on, and a mark says how far, so whoever resumes before it is told what he missed.
"""

from __future__ import annotations

from dataclasses import dataclass

from shellwego.control.events import published
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.marks import PRUNED, set_mark
from shellwego.control.unit import Control, Unit
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
    """Delete the next events past their time, in their order; returns how many."""
    oldest = unit.tx.events.select(published(), order=Order("seq"), limit=BATCH)
    gone = 0
    for event in oldest:
        if event.time >= unit.now() - kept_s:
            break
        unit.tx.events.delete(event.id)
        set_mark(unit.tx, PRUNED, event.seq)
        gone += 1
    return gone


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
