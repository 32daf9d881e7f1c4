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
from tests.sim.story import Event, Story

if TYPE_CHECKING:
    from tests.sim.world import World

BACK_S = 1.0
"""So long somebody who died is away."""
OPERATIONS = ("deploy", "deploy-bad", "rollback", "scale", "sleep", "attach", "destroy")


class Mortal(Protocol):
    name: str

    async def kill(self) -> None: ...

    def start(self) -> None: ...


class Points:
    """Counts the steps from `arm` on, and has whoever does the deadly one die in it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._deadly: int | None = None
        self._armed = False
        self.steps: list[str] = []

    def arm(self, deadly: int | None) -> None:
        self._armed, self._deadly = True, deadly

    async def reached(self, who: Mortal, step: str) -> None:
        if not self._armed:
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
    from tests.sim.play import finish, listen  # noqa: PLC0415 - it plays worlds, which know crash points
    from tests.sim.tenant import Tenant  # noqa: PLC0415
    from tests.sim.world import World  # noqa: PLC0415

    world = World(Story(seed=1, nodes=3, servers=1, edges=1, apps=1, parts=()), scratch)
    listen(world)
    tenant = Tenant(world, 0)
    await world.open()
    world.spawn(tenant.run())
    for kind, number in (("create", 1), ("scale", 2), ("deploy", 4), ("deploy", 0)):
        tenant.ask(Event(0.0, kind, 0, number))
        await world.clock.advance(4.0)
    world.points.arm(deadly)
    tenant.ask(Event(0.0, operation, 0, 3 if operation == "scale" else 1))
    await world.clock.advance(4.0)
    steps = list(world.points.steps)
    await finish(world, [tenant])
    violations = list(world.watch.violations)
    await world.close()
    return steps, str(violations[0]) if violations else ""
