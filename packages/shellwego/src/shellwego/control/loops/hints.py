"""What to look at when hints come: whatever a subject is about, or the apps that a hint names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Set

from shellwego.control.events import changes
from shellwego.control.loops.schedule import Schedule
from shellwego.control.unit import Control
from shellwego.ports.bus import Hint
from shellwego.ports.store import Transaction
from shellwego.wire import subjects

SWEEP_EVERY_S = 30.0


async def keep_looking(control: Control, subject: str, every_s: float, look: Callable[[], Awaitable[None]]) -> None:
    """Have `look` called at once, at every hint on a subject and on a timer, until cancelled."""
    async with contextlib.aclosing(changes(control, subject, every_s)) as ticks:
        async for _ in ticks:
            await look()


def all_apps(tx: Transaction) -> set[str]:
    """Every app."""
    return {app.id for app in tx.apps.select()}


async def hinted_apps(control: Control, hint: Hint) -> set[str]:
    """The apps that a hint on `subjects.ALL_APPS` is about; where hints were missed, all."""
    return await control.read(all_apps) if hint.missed else {hint.subject.partition(".")[2]}


async def follow_apps(control: Control, known: Set[str], look: Callable[[Iterable[str]], Awaitable[None]]) -> None:
    """Have `look` called with apps that may have changed, until cancelled: those that hints are about; at the start, once
    hints are heard, and now and then all there are, and all in `known`, which `look` keeps up to date: some may be gone."""
    async with contextlib.aclosing(Schedule(control.clock)) as schedule, asyncio.TaskGroup() as tasks:
        tasks.create_task(_listen(control, known, schedule))
        tasks.create_task(_sweep(control, known, schedule))
        while True:
            await look(await schedule.take())


async def _listen(control: Control, known: Set[str], schedule: Schedule) -> None:
    async with control.bus.subscribe(subjects.ALL_APPS) as hints:
        await _add_all(control, known, schedule)  # what was said until now nobody heard
        async for hint in hints:
            for app_id in await hinted_apps(control, hint):
                schedule.add(app_id)


async def _sweep(control: Control, known: Set[str], schedule: Schedule) -> None:
    while True:
        await _add_all(control, known, schedule)
        await control.clock.sleep(SWEEP_EVERY_S)


async def _add_all(control: Control, known: Set[str], schedule: Schedule) -> None:
    for app_id in await control.read(all_apps) | known:
        schedule.add(app_id)
