"""The rewrap loop: moves data keys under the current master key, a batch at a time, while everything goes on.

What is stored of a secret is not touched: its data key is unwrapped, wrapped again, and swapped in by compare-and-set; an
instance that starts meanwhile finds one or the other, and both open. A key that does not open stays where it is and is
told; so does everything while the KMS does not answer. The loop also notices a master key that was rotated elsewhere.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial

import structlog

from shellwego.control.events import changes
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.loops.tries import Tries
from shellwego.control.sealing import Sealer, note_master_key, rewrapped
from shellwego.control.unit import Control, Unit
from shellwego.core.envelope import DataKey
from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.ports.kms import MISSING_MASTER_KEY, WrappedKey
from shellwego.ports.store import Op, Transaction, Where
from shellwego.wire import subjects

BATCH = 50
LOOK_AGAIN_S = 60.0

_log = structlog.get_logger(__name__)


async def run(control: Control, sealer: Sealer, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "rewrap", holder, lambda fenced: Rewrapper(fenced, sealer).run)


@dataclass(slots=True)
class Rewrapper:
    """One holder's work."""

    control: Control
    sealer: Sealer

    async def run(self) -> None:
        """Look at every hint and on a timer, for ever."""
        tries = Tries(self.control.clock, _log, "rewrap.step_failed", "rewrap.step_works_again")
        async with contextlib.aclosing(changes(self.control, subjects.MASTER_KEYS, LOOK_AGAIN_S)) as ticks:
            async for _ in ticks:
                with tries.tried():
                    await self.step()

    async def step(self) -> int:
        """Move all that are under another master key than the current one; returns how many were moved."""
        current = await self.sealer.current()
        moved = 0
        for op in (Op.LT, Op.GT):
            moved += await self._move(Where("master_key", op, current))
        return moved

    async def _move(self, elsewhere: Where) -> int:
        moved, after = 0, ""
        while rows := await self.control.read(partial(_batch, elsewhere=elsewhere, after=after)):
            wrapped = [(row, fresh) for row in rows if (fresh := await self._wrapped(row))]
            moved += await self.control.commit(partial(_swap, wrapped=wrapped))
            after = rows[-1].id
        return moved

    async def _wrapped(self, row: DataKey) -> WrappedKey | None:
        """The key wrapped anew; None where it does not open, be it broken or its master key not here."""
        try:
            return await self.sealer.wrap_again(row)
        except (ConflictError, UnavailableError) as error:
            if isinstance(error, UnavailableError) and error.code != MISSING_MASTER_KEY:
                raise
            said = {"purpose": row.purpose, "subject": row.subject, "master_key": row.master_key}
            _log.error("rewrap.key_does_not_open", key=row.id, reason=error.message, **said)
            return None


def _batch(tx: Transaction, elsewhere: Where, after: str) -> list[DataKey]:
    return tx.data_keys.select(elsewhere, limit=BATCH, after=(after, after) if after else None)


def _swap(unit: Unit, wrapped: list[tuple[DataKey, WrappedKey]]) -> int:
    """Store what was not changed meanwhile."""
    moved = 0
    for row, fresh in wrapped:
        stored = unit.tx.data_keys.get(row.id)
        if stored is not None and stored.version == row.version:
            note_master_key(unit, fresh.master_key)
            unit.tx.data_keys.update(rewrapped(stored, fresh, unit.now()))
            moved += 1
    return moved
