"""Plays one story from its first event to a platform in peace, and says what was wrong."""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from traceback import extract_tb
from typing import Any

import structlog

from shellwego.core.errors import ShellWeGoError
from shellwego.core.nodes import Scheduling
from shellwego.core.vms import VmPhase
from tests.sim import timeline
from tests.sim.admin import Operator
from tests.sim.client import Client
from tests.sim.settled import Patience, steps, unsettled
from tests.sim.story import NODE_OPERATIONS, STARTS, Event, Fault, Story
from tests.sim.tenant import Tenant
from tests.sim.watch import Violation
from tests.sim.world import OPENED_S, World

ANSWERS_S = 60.0
"""After the healing every request is answered within so long."""
DEAD_S = 60.0
"""A node that died just before has to be found out before everything can agree."""
LOOK_EVERY_S = 0.25
"""So often it is looked whether they do."""
Take = Callable[[int], Story]
"""Says which story goes on with the nth stretch."""
Tell = Callable[["Outcome"], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    story: Story
    violation: Violation | None
    """The first."""
    digest: str
    counts: Mapping[tuple[str, str], int]
    """Requests by fault and operation."""
    outcomes: Mapping[tuple[str, str], int]
    trace: tuple[str, ...]
    commits: int
    seconds: float
    """Of virtual time."""


class _Stop(Exception):
    """Something was violated; what follows is no news."""


def play(story: Story, *, take: Take | None = None, tell: Tell | None = None, keep_trace: bool = False) -> Outcome:
    """Play it, up to the first violation. `take` is asked at each fork for the story that goes on; it begins alike. `tell`
    is told what came of it, before all that is left is cleared away."""
    collects = gc.isenabled()
    gc.disable()
    world = None
    try:
        with tempfile.TemporaryDirectory(dir=_memory()) as scratch:
            world = World(story, Path(scratch), keep_trace=keep_trace)
            return timeline.run(_play(world, take or (lambda _: story), tell or (lambda _: None)))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is of this story
        last = extract_tb(error.__traceback__)[-1]
        violation = Violation("broken", f"{error!r} in {last.name}, line {last.lineno} of {last.filename}", 0.0)
        return Outcome(world.story if world else story, violation, "", {}, {}, (), 0, 0.0)
    finally:
        if collects:
            gc.enable()


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class People:
    """Who asks for something: a tenant for each app, and the platform's operator."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tenants = [Tenant(world, index) for index in range(world.story.apps)]
        self._operator = Operator(world)

    @property
    def all(self) -> list[Client]:
        return [*self._tenants, self._operator]

    def begin(self) -> None:
        for each in self.all:
            self._world.spawn(each.run())

    def ask(self, event: Event) -> None:
        asked = self._operator if event.kind in NODE_OPERATIONS else self._tenants[event.app]
        asked.ask(event)

    def open_a_node(self) -> None:
        """Where none that lives may have anything new, nothing could ever be right again."""
        closed = {row.name for row in self._world.rows("nodes").values() if row.scheduling is not Scheduling.OPEN}
        if all(node.dead or node.name in closed for node in self._world.nodes):
            living = next(index for index, name in enumerate(sorted(closed)) if not self._is_dead(name))
            self._operator.ask(Event(self._world.clock.monotonic(), "uncordon", 0, living))

    def _is_dead(self, name: str) -> bool:
        return next(node.dead for node in self._world.nodes if node.name == name)


async def _play(world: World, take: Take, tell: Tell) -> Outcome:
    listen(world)
    people = People(world)
    try:
        await world.open()
        people.begin()
        for stretch, begin in enumerate(STARTS):
            if stretch:
                await _wait(world, begin)
                world.take(take(stretch), stretch)
            await _go_on(world, people, world.story.stretch(stretch))
        await world.clock.advance(2.0)
    except _Stop:
        pass
    await finish(world, people)
    outcome = _outcome(world)
    tell(outcome)
    await world.close()
    return outcome


def _outcome(world: World) -> Outcome:
    return Outcome(
        story=world.story,
        violation=next(iter(world.watch.violations), None),
        digest=world.watch.digest,
        counts=world.counts,
        outcomes=world.outcomes,
        trace=tuple(world.watch.trace),
        commits=world.watch.commits,
        seconds=world.clock.monotonic(),
    )


async def _go_on(world: World, people: People, parts: tuple[Event | Fault, ...]) -> None:
    for part in parts:
        await _wait(world, part.at)
        await _begin(world, people, part)
        _check(world, people)


async def _wait(world: World, hour: float) -> None:
    await world.clock.advance(max(0.0, hour + OPENED_S - world.clock.monotonic()))


async def _begin(world: World, people: People, part: Event | Fault) -> None:
    match part:
        case Fault():
            await world.faults.begin(part)
        case Event(kind="session"):
            edge = world.edges[part.number % len(world.edges)]
            await edge.open_session(part.number // 2, 0.1 + part.number % 50 / 10)
        case Event(kind="workload-ends"):
            _end_workload(world, part.number)
        case Event():
            people.ask(part)


def _end_workload(world: World, number: int) -> None:
    running = [
        (node, view.vm_id) for node in world.nodes for view in node.engine.views if view.phase is VmPhase.RUNNING
    ]
    if running:
        node, vm_id = running[number % len(running)]
        node.engine.end(vm_id, number % 2)


def _check(world: World, people: People) -> None:
    """The invariants of every step, beside those of every commit."""
    for each in people.all:
        each.check()
    _check_addresses(world)
    if world.watch.violations:
        raise _Stop


def _check_addresses(world: World) -> None:
    owners: dict[str, str] = {}
    for node in world.nodes:
        for view in node.engine.views:
            if view.address and view.phase is not VmPhase.ENDED:
                other = owners.setdefault(view.address, view.vm_id)
                if other != view.vm_id:
                    world.watch.violated("two-owners", f"{view.address} is of {other} and of {view.vm_id}")
    for edge in world.edges:
        _check_tenants(world, edge, owners)


def _check_tenants(world: World, edge: Any, owners: Mapping[str, str]) -> None:
    """No request of one app reaches another's VM."""
    apps = {host: app.id for app in world.rows("apps").values() for host in (app.hostname,)}
    rows = world.rows("instances")
    by_backend: dict[str, set[str]] = {}
    for (backend, server), _ in edge.ready().items():
        row = rows.get(server.partition(".")[0])
        if row is not None:
            by_backend.setdefault(backend, set()).add(row.app_id)
    for host, backend in edge.pool.hosts.items():
        foreign = by_backend.get(backend, set()) - {apps.get(host, "")}
        if foreign and host in apps:
            world.watch.violated("two-owners", f"{edge.name}: {host} leads to VMs of {sorted(foreign)}")


async def finish(world: World, people: People) -> None:
    """Heal what can be healed, and see whether all agrees soon; not where something was violated already."""
    if not world.watch.violations:
        with suppress(_Stop):
            await _end(world, people)


async def _end(world: World, people: People) -> None:
    healing = world.spawn(world.faults.heal())  # what was told to end before takes its time
    await _until(world, healing.done, ANSWERS_S)
    await _answered(world, people)
    people.open_a_node()
    await _answered(world, people)
    patience = Patience(world.clock.monotonic(), DEAD_S * any(node.dead for node in world.nodes))
    while (
        next(unsettled(world), None)
        and patience.lasts(world.clock.monotonic(), steps(world))
        and not world.watch.violations
    ):
        await world.clock.advance(LOOK_EVERY_S)
    left = list(islice(unsettled(world), 6))
    if left:
        world.watch.violated("not-settled", "; ".join(left))
    _check(world, people)


async def _answered(world: World, people: People) -> None:
    await _until(world, lambda: all(each.idle for each in people.all), ANSWERS_S)
    unanswered = [each.name for each in people.all if not each.idle]
    if unanswered:
        world.watch.violated("no-answer", f"{', '.join(unanswered)} got no answer")
        raise _Stop


async def _until(world: World, reached: Any, seconds: float) -> None:
    end = world.clock.monotonic() + seconds
    while not reached() and world.clock.monotonic() < end and not world.watch.violations:
        await world.clock.advance(LOOK_EVERY_S)


def listen(world: World) -> None:
    """Whatever the platform logs with a trace is a defect of it; the rest is not kept."""

    def hear(logger: Any, method: str, line: dict[str, Any]) -> Any:
        error = line.get("exc_info")
        if isinstance(error, BaseException) and not isinstance(error, ShellWeGoError):
            world.watch.violated("defect", f"{line['event']}: {error!r} {line.get('reason', '')}")
        elif error is True:
            world.watch.violated("defect", f"{line['event']}")
        raise structlog.DropEvent

    structlog.configure(
        processors=[hear],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        cache_logger_on_first_use=False,
    )
