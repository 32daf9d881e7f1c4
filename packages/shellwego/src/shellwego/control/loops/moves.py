"""The moves loop: brings forward each volume that is on its way to another node.

A look plans on a snapshot, so that one that changes nothing costs no write; what is to be done is planned again in the
transaction that does it. A step that fails is told, tried again at the next look, and holds up no other volume. Agents carry
the data.
"""

from __future__ import annotations

from functools import partial

import structlog

from shellwego.control.loops.hints import keep_looking
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.loops.tries import Tries
from shellwego.control.unit import Control
from shellwego.control.volumemoves import advance_move, has_news
from shellwego.core.replicas import ReplicaPurpose
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

LOOK_EVERY_S = 1.0
_STEPS = 8
"""That follow each other at once, at most: most wait for a node."""

_log = structlog.get_logger(__name__)


async def look(control: Control, tries: Tries) -> None:
    """Take every step that can be taken now."""

    async def bring_forward(volume_id: str) -> None:
        await control.commit(partial(advance_move, volume_id=volume_id))

    failed = set[str]()
    for _ in range(_STEPS):
        due = [volume_id for volume_id in await control.read(_due) if volume_id not in failed]
        failed |= await tries.each(due, bring_forward)
        if not due:
            return


def _due(tx: Transaction) -> list[str]:
    moving = tx.replicas.select(eq("purpose", ReplicaPurpose.MOVE.value))
    volumes = filter(None, (tx.volumes.get(replica.volume_id) for replica in moving))
    return [volume.id for volume in volumes if has_news(tx, volume)]


async def _watch(control: Control) -> None:
    tries = Tries(control.clock, _log, "moves.step_failed", "moves.step_works_again")
    await keep_looking(control, subjects.REPLICAS, LOOK_EVERY_S, partial(look, control, tries))


async def run(control: Control, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "moves", holder, lambda fenced: lambda: _watch(fenced))
