"""Crash points: whoever takes part in an operation dies at each of its steps in turn, comes back, and all must agree then.

A step is a transaction or a hint of a server (before it, and after it), an order to an engine, a change at an edge.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tests.sim import timeline
from tests.sim.disks import EFFECTS as VOLUMES
from tests.sim.story import Event, Story

if TYPE_CHECKING:
    from tests.sim.world import World

BACK_S = 1.0
"""So long somebody who died is away."""
LASTS_S = {
    "deploy": 4.0,
    "deploy-bad": 4.0,
    "rollback": 4.0,
    "scale": 4.0,
    "sleep": 4.0,
    "attach": 4.0,
    "detach": 4.0,
    "volume-resize": 2.0,
    "snapshot": 2.0,
    "restore": 2.0,
    "volume-move": 6.0,
    "replicate": 4.0,
    "prioritize": 6.0,
    "destroy": 4.0,
    "drain": 7.0,
    "node-remove": 4.0,
    "rebalance": 7.0,
}
"""Operations, and how long the steps of each are counted."""
OPERATIONS = tuple(LASTS_S)
_NUMBERS = {"scale": 3, "prioritize": 11, "node-remove": 3}
_DEPLOYED = (("create", 0, 1), ("scale", 0, 2), ("deploy", 0, 4), ("deploy", 0, 0))
_VOLUME = 7
_ATTACHED = (*_DEPLOYED, ("volume-create", 0, _VOLUME), ("attach", 0, _VOLUME))
_FULL = (
    *(("create", app, 3) for app in (0, 1)),
    ("prioritize", 1, 9),
    *((kind, app, 3) for app in (0, 1) for kind in ("scale", "deploy")),
)
"""App 1 has the lowest priority, and leaves on no node as much as app 0 is to need."""
_CROWDED = (
    ("cordon", 0, 1),
    ("cordon", 0, 2),
    *((kind, app, 3) for app in (0, 1) for kind in ("create", "scale", "deploy")),
)
_BEFORE = {
    "attach": (*_DEPLOYED, ("volume-create", 0, _VOLUME)),
    **dict.fromkeys(("detach", "volume-resize", "snapshot", "volume-move", "replicate"), _ATTACHED),
    "restore": (*_ATTACHED, ("snapshot", 0, _VOLUME), ("detach", 0, _VOLUME)),
    "prioritize": _FULL,
    "drain": (*_DEPLOYED, ("scale", 0, 3), ("sleep", 0, 1)),
    "rebalance": (*_CROWDED, ("uncordon", 0, 0), ("uncordon", 0, 0)),
}
"""What is asked before: kind, app, number."""


class Mortal(Protocol):
    name: str

    async def kill(self) -> None: ...

    def start(self) -> None: ...


class Points:
    """Counts the steps from `arm` on, and has whoever does the deadly one die in it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._deadly: int | None = None
        self.armed = False
        self.steps: list[str] = []

    def arm(self, deadly: int | None) -> None:
        self.armed, self._deadly = True, deadly

    async def reached(self, who: Mortal, step: str) -> None:
        if not self.armed:
            return
        self.steps.append(f"{step} of {who.name}")
        if len(self.steps) == self._deadly:
            self._world.watch.note(f"{who.name} dies: {step}")
            self._world.spawn(self._die(who))
            await asyncio.get_running_loop().create_future()  # what follows never happens

    async def _die(self, who: Mortal) -> None:
        await who.kill()
        await self._world.clock.sleep(BACK_S)
        who.start()


@dataclass(frozen=True, slots=True)
class Crash:
    operation: str
    step: int
    died: str
    violation: str

    def __str__(self) -> str:
        return f"{self.operation}, step {self.step} ({self.died}): {self.violation or 'no violation'}"


def crashes(every: int) -> Iterator[Crash]:
    """One for each step of each operation; of long ones every so many."""
    for operation in OPERATIONS:
        steps, violation = _played(operation, None)
        yield Crash(operation, 0, f"nobody, {len(steps)} steps", violation)
        for number in range(1, len(steps) + 1, every):
            _, violation = _played(operation, number)
            yield Crash(operation, number, steps[number - 1], violation)


def _played(operation: str, deadly: int | None) -> tuple[list[str], str]:
    with tempfile.TemporaryDirectory() as scratch:
        return timeline.run(_play(operation, deadly, Path(scratch)))


async def _play(operation: str, deadly: int | None, scratch: Path) -> tuple[list[str], str]:
    from tests.sim.play import People, finish, listen  # noqa: PLC0415 - it plays worlds, which know crash points
    from tests.sim.world import World  # noqa: PLC0415

    world = World(Story(seed=1, nodes=3, servers=1, edges=1, apps=2, parts=()), scratch)
    listen(world)
    people = People(world)
    await world.open()
    people.begin()
    for kind, app, number in _BEFORE.get(operation, _DEPLOYED):
        people.ask(Event(0.0, kind, app, number))
        await world.clock.advance(4.0)
    world.points.arm(deadly)
    people.ask(Event(0.0, operation, 0, _NUMBERS.get(operation, _VOLUME if operation in VOLUMES else 1)))
    await world.clock.advance(LASTS_S[operation])
    steps = list(world.points.steps)
    await finish(world, people)
    violations = list(world.watch.violations)
    await world.close()
    return steps, str(violations[0]) if violations else ""
