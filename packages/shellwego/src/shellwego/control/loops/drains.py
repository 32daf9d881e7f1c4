"""The drains loop: looks at each node that is to be emptied, and at what is to move for balance, and says whose turn it is.

A look plans on a snapshot, so that one that changes nothing costs no write; what is to be done is planned again in the
transaction that does it. A step that fails is told, tried again at the next look, and holds up no other.
"""

from __future__ import annotations

from functools import partial

import structlog

from shellwego.control import rebalance
from shellwego.control.drains import advance, drain_plan, has_news
from shellwego.control.loops.hints import keep_looking
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.loops.tries import Tries
from shellwego.control.unit import Control
from shellwego.core.nodes import Scheduling
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

LOOK_EVERY_S = 1.0

_log = structlog.get_logger(__name__)


async def look(control: Control, tries: Tries) -> None:
    """Look once at every node that is to be emptied, and at the queue."""

    async def empty(node_id: str) -> None:
        await control.commit(partial(advance, node_id=node_id))

    await tries.each(await control.read(_due), empty)
    with tries.tried("rebalance"):
        if await control.read(rebalance.is_due):
            await control.commit(rebalance.advance)


def _due(tx: Transaction) -> list[str]:
    draining = tx.nodes.select(eq("scheduling", Scheduling.DRAINING.value))
    planned = [(node, drain_plan(tx, node)) for node in draining]
    return [node.id for node, plan in planned if plan is not None and has_news(node, plan)]


async def _watch(control: Control) -> None:
    tries = Tries(control.clock, _log, "drains.step_failed", "drains.step_works_again")
    await keep_looking(control, subjects.DRAINS, LOOK_EVERY_S, partial(look, control, tries))


async def run(control: Control, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "drains", holder, lambda fenced: lambda: _watch(fenced))
