"""What to look at when hints come: whatever a subject is about, or the apps that a hint names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set

from shellwego.control.events import changes
from shellwego.control.loops.schedule import Schedule
from shellwego.control.placer import READING_SHARE
from shellwego.control.unit import Control
from shellwego.ports.clock import Waiter
from shellwego.ports.store import Transaction
from shellwego.wire import subjects

SWEEP_EVERY_S = 30.0
"""Apps of which nothing was heard, nor seen to change, are looked at again so often."""
CHANGED_EVERY_S = 10.0
"""So often it is looked which apps changed, whatever became of the hints."""
_HEARD_IN_S = 0.25
"""Whoever begins waits so long for hints to be heard before he looks: else he would have to look again, for what was said
meanwhile."""
_MOST_APPS = 100
"""In one look, but the first: what is hinted at meanwhile waits for no more."""


async def keep_looking(control: Control, subject: str, every_s: float, look: Callable[[], Awaitable[None]]) -> None:
    """Have `look` called at once, at every hint on a subject and on a timer, until cancelled."""
    async with contextlib.aclosing(changes(control, subject, every_s)) as ticks:
        async for _ in ticks:
            await look()


def all_apps(tx: Transaction) -> set[str]:
    """Every app."""
    return set(tx.apps.sums("id", ()))


def versions(tx: Transaction) -> dict[str, object]:
    """By app: what is another value once its row changed, or one of an instance of it. Those that have ended count, too: one
    may come and go between two looks, and leave a slot empty."""
    rows = tx.instances.sums("app_id", ("version",))
    return {app_id: (version, rows.get(app_id)) for app_id, version in tx.apps.sums("id", ("version",)).items()}


async def listen(control: Control, schedule: Schedule, heard: Waiter, *, unless: bytes | None = None) -> None:
    """Put the apps that hints are about ahead in the schedule, until cancelled.

    `heard` is rung once hints are heard, and when some were missed: what was said before, nobody heard. Hints that say
    `unless` are not meant.
    """
    async with control.bus.subscribe(subjects.ALL_APPS) as hints:
        heard.ring()
        async for hint in hints:
            if hint.missed:
                heard.ring()
            elif hint.payload != unless:
                schedule.add(hint.subject.partition(".")[2], ahead=True)


async def listening(heard: Waiter) -> None:
    """Return once hints are heard, or that takes long."""
    await heard.wait(_HEARD_IN_S)
    heard.clear()


async def sweep(
    control: Control, schedule: Schedule, heard: Waiter, every_s: float, known: Set[str] = frozenset()
) -> None:
    """Put all apps there are and all in `known` into the schedule, so often and when `heard` is rung, until cancelled."""
    while True:
        await heard.wait(every_s)
        heard.clear()
        for app_id in await control.read(all_apps) | known:
            schedule.add(app_id)


async def sweep_changed(control: Control, schedule: Schedule, known: Mapping[str, object] | None = None) -> None:
    """Put the apps that changed since the last sweep into the schedule, until cancelled; at first those that are not as in
    `known`. It reads much of the store where that is large, so it takes a twentieth of the time at most."""
    known = known or {}
    while True:
        began = control.clock.monotonic()
        seen = await control.read(versions)
        for app_id, version in seen.items():
            if known.get(app_id) != version:
                schedule.add(app_id)
        known = seen
        await control.clock.sleep(max(CHANGED_EVERY_S, READING_SHARE * (control.clock.monotonic() - began)))


async def follow_apps(control: Control, known: Set[str], look: Callable[[Iterable[str]], Awaitable[None]]) -> None:
    """Have `look` called with apps that may have changed, until cancelled: at first once with all there are, even if these
    are none; then with those that hints are about, and behind them with those that changed, and now and then with all there
    are and all in `known`, which `look` keeps up to date: some may be gone."""
    async with (
        contextlib.aclosing(Schedule(control.clock)) as schedule,
        contextlib.aclosing(Waiter(control.clock)) as heard,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(listen(control, schedule, heard))
        await listening(heard)
        begun = await control.read(versions)
        await look(begun.keys())
        tasks.create_task(sweep_changed(control, schedule, begun))
        tasks.create_task(sweep(control, schedule, heard, SWEEP_EVERY_S, known))
        while True:
            await look(await schedule.take(_MOST_APPS))
