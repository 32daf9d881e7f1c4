"""The drains loop: looks at each node that is to be emptied, and at what is to move for balance, and says whose turn it is.

A look plans on a snapshot, so that one that changes nothing costs no write; what is to be done is planned again in the
transaction that does it.
"""

from __future__ import annotations

from functools import partial

from shellwego.control import rebalance
from shellwego.control.drains import advance, drain_plan, has_news
from shellwego.control.loops.hints import keep_looking
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.unit import Control, Unit
from shellwego.core.nodes import Scheduling
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

LOOK_EVERY_S = 1.0


async def look(control: Control) -> None:
    """Look once at every node that is to be emptied, and at the queue."""
    for node_id in await control.read(_due):
        await _advance(control, node_id)
    if await control.read(rebalance.is_due):
        await control.commit(rebalance.advance)


def _due(tx: Transaction) -> list[str]:
    draining = tx.nodes.select(eq("scheduling", Scheduling.DRAINING.value))
    planned = [(node, drain_plan(tx, node)) for node in draining]
    return [node.id for node, plan in planned if plan is not None and has_news(node, plan)]


async def _advance(control: Control, node_id: str) -> None:
    def work(unit: Unit) -> None:
        advance(unit, node_id)

    await control.commit(work)


async def _watch(control: Control) -> None:
    await keep_looking(control, subjects.DRAINS, LOOK_EVERY_S, partial(look, control))


async def run(control: Control, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "drains", holder, lambda fenced: lambda: _watch(fenced))
