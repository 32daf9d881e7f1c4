"""The standbys loop: asks for the next round of each standby replica when that is due, finds nodes for those without, tells
which are behind, and has them become the volume where the volume's node is lost.

A look plans on a snapshot, so that one that changes nothing costs no write; what is to be done is planned again in the
transaction that does it. A step that fails is told, tried again at the next look, and holds up no other.
"""

from __future__ import annotations

from functools import partial

import structlog

from shellwego.control.loops.hints import keep_looking
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.loops.tries import Tries
from shellwego.control.standbys import advance_standby, has_news
from shellwego.control.unit import Control
from shellwego.core.replicas import ReplicaPurpose
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

LOOK_EVERY_S = 1.0

_log = structlog.get_logger(__name__)


async def look(control: Control, tries: Tries) -> None:
    """Do once what is due now."""

    async def advance(replica_id: str) -> None:
        await control.commit(partial(advance_standby, replica_id=replica_id))

    await tries.each(await control.read(_due), advance)


def _due(tx: Transaction) -> list[str]:
    standbys = tx.replicas.select(eq("purpose", ReplicaPurpose.STANDBY.value))
    return [replica.id for replica in standbys if has_news(tx, replica)]


async def _watch(control: Control) -> None:
    tries = Tries(control.clock, _log, "standbys.step_failed", "standbys.step_works_again")
    await keep_looking(control, subjects.REPLICAS, LOOK_EVERY_S, partial(look, control, tries))


async def run(control: Control, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "standbys", holder, lambda fenced: lambda: _watch(fenced))
