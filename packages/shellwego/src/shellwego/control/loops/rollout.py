"""The rollout loop: facts, plan, placement, guarded apply; for every app that may need a next step.

One step plans on a snapshot first, so that an app that needs nothing costs no write; where something is to be done it plans
again inside the transaction that makes the changes, so nothing can have moved underneath. Within it steps are repeated
until the plan is empty: what one change makes possible at once needs no second commit.

Apps are looked at on a hint, at the time that their last plan named, and on a timer: often those with something under way,
less often those whose rows changed since the last time, seldom all others. So a lost hint costs latency only, never much.
What the timers bring waits behind what is asked for: with many apps a look at all takes long.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import structlog

from shellwego.control.changes import apply, prune
from shellwego.control.facts import UNFINISHED, rollout_facts
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.loops.hints import listen, listening, sweep, sweep_changed
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.loops.schedule import Schedule
from shellwego.control.placements import placements, store_placements, waiting_instances
from shellwego.control.placer import Placer
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import ShellWeGoError
from shellwego.core.instances import Desired, Phase, Sleep
from shellwego.core.rollout import plan_rollout
from shellwego.core.troubles import Troubles
from shellwego.ports.clock import Waiter
from shellwego.ports.store import Transaction, eq, within
from shellwego.wire import subjects

BUSY_EVERY_S = 2.0
ALL_EVERY_S = 60.0
_PLANNED = b"planned"
"""What a hint says that comes of a step which left nothing to plan: it is for the other loops."""
_MAX_ROUNDS = 8
"""Steps in one transaction. A plan converges in three or four; the rest is left to the next look."""
_BACKOFF_S = (1.0, 2.0, 5.0, 10.0)
_ON_ITS_WAY = (Phase.PENDING.value, Phase.ASSIGNED.value, Phase.STARTING.value, Phase.STOPPING.value)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    changed: bool
    wait_s: float | None = None
    """In so many seconds look again, if nothing happens before. The store's clock need not be this host's."""


async def rollout_step(control: Control, app_id: str, placer: Placer | None = None) -> StepResult:
    """Bring one app as far as it can be brought now. A placer that is kept from step to step spares reading all nodes."""
    chosen = placer or Placer(control.clock)
    look = await control.read(lambda tx: _look(tx, app_id, chosen))
    if not look.changed:
        return look
    return await control.commit(lambda unit: _advance(unit, app_id, chosen))


def _look(tx: Transaction, app_id: str, placer: Placer) -> StepResult:
    """Whether a step would change anything."""
    app = tx.apps.get(app_id)
    if app is None:
        return StepResult(changed=False)
    plan = plan_rollout(rollout_facts(tx, app), tx.now())
    wait_s = _wait(plan.next_at, tx)
    waiting = waiting_instances(tx, app)
    if not plan.changes and not waiting:
        return StepResult(changed=False, wait_s=wait_s)
    placer.read(tx)
    if plan.changes or next(placements(tx, app, placer), None) is not None:
        return StepResult(changed=True, wait_s=wait_s)
    again_s = placer.due_in_s()
    if again_s > 0:
        wait_s = again_s if wait_s is None else min(again_s, wait_s)
    return StepResult(changed=False, wait_s=wait_s)


def _wait(until: float | None, tx: Transaction) -> float | None:
    return None if until is None else until - tx.now()


def _advance(unit: Unit, app_id: str, placer: Placer) -> StepResult:
    """Plan and apply until nothing is left to do now."""
    next_at, settled = None, False
    placer.begin(unit.tx)
    for _ in range(_MAX_ROUNDS):
        app = unit.tx.apps.get(app_id)
        if app is None:
            settled = True
            break
        plan = plan_rollout(rollout_facts(unit.tx, app), unit.now())
        next_at = plan.next_at
        if plan.changes:
            apply(unit, app, plan.changes)
        placed = store_placements(unit, app, placer)  # what the plan has just called off needs no place
        if not plan.changes and not placed:
            settled = not waiting_instances(unit.tx, app)
            break
    prune(unit, app_id)
    unit.hint(subjects.app(app_id), _PLANNED if settled else b"")
    return StepResult(changed=True, wait_s=_wait(next_at, unit.tx))


class RolloutLoop:
    """Decides which apps to look at, and when."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._schedule = Schedule(control.clock)
        self._heard = Waiter(control.clock)
        self._placer = Placer(control.clock)
        self._failures: dict[str, int] = {}
        self._troubles = Troubles()

    async def run(self) -> None:
        """Look at apps until cancelled."""
        control, schedule, heard = self._control, self._schedule, self._heard
        async with contextlib.aclosing(schedule), contextlib.aclosing(heard), asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(control, schedule, heard, unless=_PLANNED))
            await listening(heard)
            tasks.create_task(self._sweep_busy())
            tasks.create_task(sweep_changed(control, schedule))
            tasks.create_task(sweep(control, schedule, heard, ALL_EVERY_S))
            tasks.create_task(self._work())

    async def _sweep_busy(self) -> None:
        """What is under way; who takes over goes on with it before he looks at anything else."""
        begins = True
        while True:
            for app_id in await self._control.read(busy_apps):
                self._schedule.add(app_id, ahead=begins)
            begins = False
            await self._control.clock.sleep(BUSY_EVERY_S)

    async def _work(self) -> None:
        while True:
            for app_id in await self._schedule.take(1):
                await self._step(app_id)

    async def _step(self, app_id: str) -> None:
        """One app; a failure is logged, and tried again later and later."""
        try:
            result = await rollout_step(self._control, app_id, self._placer)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is logged, and the loop must live on
            failures = self._failures[app_id] = self._failures.get(app_id, 0) + 1
            if trouble := self._troubles.failed(app_id, str(error), self._control.clock.monotonic()):
                trace = None if isinstance(error, ShellWeGoError) else error
                _log.error("rollout.step_failed", app=app_id, reason=str(error), exc_info=trace, **trouble.fields)
            self._schedule.add(app_id, _BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1])
            return
        self._failures.pop(app_id, None)
        if trouble := self._troubles.passed(app_id, self._control.clock.monotonic()):
            _log.info("rollout.step_works_again", app=app_id, **trouble.fields)
        if result.wait_s is not None:
            self._schedule.add(app_id, result.wait_s, ahead=True)


def busy_apps(tx: Transaction) -> set[str]:
    """Apps with something under way: a deployment, an instance that is not where it should be, an end."""
    busy = {d.app_id for d in tx.deployments.select(within("state", UNFINISHED))}
    busy |= {i.app_id for i in tx.instances.select(within("phase", _ON_ITS_WAY))}
    leaving = within("desired", (Desired.DRAIN.value, Desired.STOP.value))
    busy |= {i.app_id for i in tx.instances.select(leaving, within("phase", LIVE_PHASES))}
    dozing = eq("sleep", Sleep.DOZING.value)
    busy |= {i.app_id for i in tx.instances.select(dozing, within("phase", LIVE_PHASES))}
    return busy | {app.id for app in tx.apps.select(eq("deleting", True))}


async def run(control: Control, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "rollout", holder, lambda fenced: RolloutLoop(fenced).run)
