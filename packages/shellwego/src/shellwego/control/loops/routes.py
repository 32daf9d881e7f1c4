"""The routes loop: numbers the route table.

It compares each app's route with the one it last saw. Where one differs, or an instance entered or left that has no number
for it yet, the counter rises in the transaction that gives those instances the new number as their `routed_version` or
`unrouted_version`: whoever applies that version has a table with, or without, them, because a table is read together with
its number. One loop numbers; everybody may read.

After a start nothing is known, so the number rises once, and every edge looks once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from shellwego.control.facts import ROUTES_COUNTER, lingering, route_facts
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.loops.hints import all_apps, hinted_apps
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.loops.schedule import Schedule
from shellwego.control.unit import Control, Unit
from shellwego.core.instances import Desired, Instance, Sleep
from shellwego.core.routes import route_of
from shellwego.core.routing import Route
from shellwego.ports.store import Transaction, eq, within
from shellwego.wire import subjects

SWEEP_EVERY_S = 30.0


@dataclass(slots=True)
class RoutesLoop:
    """The routes as last numbered, by app."""

    control: Control
    _known: dict[str, Route | None] = field(default_factory=dict)

    async def run(self) -> None:
        """Keep the numbers until cancelled."""
        async with contextlib.aclosing(Schedule(self.control.clock)) as schedule, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(schedule))
            tasks.create_task(self._sweep(schedule))
            tasks.create_task(self._work(schedule))

    async def _listen(self, schedule: Schedule) -> None:
        async with self.control.bus.subscribe(subjects.ALL_APPS) as hints:
            async for hint in hints:
                for app_id in await hinted_apps(self.control, hint):
                    schedule.add(app_id)

    async def _sweep(self, schedule: Schedule) -> None:
        while True:
            known = await self.control.read(all_apps)
            for app_id in known | self._known.keys():
                schedule.add(app_id)
            await self.control.clock.sleep(SWEEP_EVERY_S)

    async def _work(self, schedule: Schedule) -> None:
        while True:
            await self.renumber(await schedule.take())

    async def renumber(self, app_ids: Iterable[str]) -> None:
        """Look at some apps; where a route changed, give the table its next number."""
        ids = set(app_ids)
        news = await self.control.read(lambda tx: self._news(tx, ids))
        if news:
            self._known.update(await self.control.commit(lambda unit: _number(unit, news)))

    def _news(self, tx: Transaction, app_ids: set[str]) -> set[str]:
        """The apps whose route differs from the known one, or who have an instance to number."""
        return {
            id_
            for id_, route in _routes(tx, app_ids).items()
            if id_ not in self._known or route != self._known[id_] or _leaving(tx, id_) or _entering(tx, route)
        }


def _number(unit: Unit, app_ids: set[str]) -> dict[str, Route | None]:
    version, routes = unit.tx.next(ROUTES_COUNTER), _routes(unit.tx, app_ids)
    for app_id, route in routes.items():
        leaving = [replace(instance, unrouted_version=version) for instance in _leaving(unit.tx, app_id)]
        entering = [replace(instance, routed_version=version) for instance in _entering(unit.tx, route)]
        for instance in (*leaving, *entering):
            unit.tx.instances.update(instance)
            unit.hint(subjects.app(app_id))
    unit.hint(subjects.ROUTES)
    return routes


def _routes(tx: Transaction, app_ids: Iterable[str]) -> dict[str, Route | None]:
    """The routes of some apps, each made once: every look at an app, and so every cold start, waits for this."""
    left = lingering(tx)
    apps = {app_id: tx.apps.get(app_id) for app_id in app_ids}
    return {app_id: route_of(route_facts(tx, app, left)) if app else None for app_id, app in apps.items()}


def _entering(tx: Transaction, route: Route | None) -> list[Instance]:
    """Instances in the route that no version was given to."""
    rows = [tx.instances.get(endpoint.instance_id) for endpoint in route.endpoints] if route else []
    return [instance for instance in rows if instance is not None and instance.routed_version is None]


def _leaving(tx: Transaction, app_id: str) -> list[Instance]:
    """Instances that drain, or are to sleep, and that no version was given to."""
    living = tx.instances.select(eq("app_id", app_id), within("phase", LIVE_PHASES))
    leaving = (row for row in living if row.desired is Desired.DRAIN or row.sleep is Sleep.DOZING)
    return [instance for instance in leaving if instance.unrouted_version is None]


async def run(control: Control, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "routes", holder, lambda fenced: lambda: RoutesLoop(fenced).run())
