"""All of a simulated platform, in one process and on virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from shellwego.control import replicareports
from shellwego.control.bootstrap import bootstrap
from shellwego.control.quotas import set_organization_quota
from shellwego.control.unit import Control, Unit
from shellwego.core import volumeleases
from shellwego.core.quota import PRIORITY
from shellwego.core.tenancy import Grant, Principal
from shellwego.core.vms import VmPhase
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.images.memory import MemoryImages
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.streams.memory import MemoryStreams
from tests.sim.crashes import Points
from tests.sim.faults import Faults
from tests.sim.hosts import LEASE_S, EdgeHost, NodeHost
from tests.sim.server import Server
from tests.sim.story import Story
from tests.sim.timeline import Dice, Gate, HostClock, Time
from tests.sim.watch import Watch
from tests.sim.ways import cancelled

OPENED_S = 0.5
"""The first part of a story comes so long after the start of everything."""
GOOD = tuple(f"registry.test/good:{number}" for number in range(4))
BAD = ("registry.test/sick:1", "registry.test/exits:1", "registry.test/corrupt:1", "registry.test/absent:1")
"""Passes no check; ends at once; cannot be fetched; is not there."""


class World:
    """Built by `open`; `close` ends every task."""

    def __init__(self, story: Story, scratch: Path, *, keep_trace: bool = False) -> None:
        self.story = story
        self.scratch = scratch
        self.keep_trace = keep_trace
        self._dice: list[Dice] = []
        self.clock = Time()
        self.store_clock = HostClock(self.clock, Gate(), self.dice("ids of the store"))
        self.store = MemoryStore(self.store_clock)
        self.bus = MemoryBus()
        self.streams = MemoryStreams()
        self.kms = MemoryKms()
        self.watch = Watch(self)
        self.faults = Faults(self)
        self.points = Points(self)
        self.counts: Counter[tuple[str, str]] = Counter()
        """Requests by fault and operation."""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """Requests by operation and what came of them."""
        self.images = MemoryImages(self.store_clock.now)
        self._publish()
        self._tasks: set[asyncio.Task[None]] = set()
        self.servers = [Server(self, number) for number in range(story.servers)]
        self.nodes = [NodeHost(self, number) for number in range(story.nodes)]
        self.edges = [EdgeHost(self, number) for number in range(story.edges)]

    def dice(self, name: str) -> Dice:
        """The chance of one part, by name."""
        dice = Dice(self.story.ways[0], name)
        self._dice.append(dice)
        return dice

    def take(self, story: Story, stretch: int) -> None:
        """Go on as this story does from its nth stretch on."""
        self.story = story
        for dice in self._dice:
            dice.take(story.ways[stretch])

    def _publish(self) -> None:
        for reference in (*GOOD, *BAD[:3]):
            self.images.publish(reference)
        self.images.corrupt(BAD[2])
        self.sick = {self.images._tags[BAD[0]].digest}
        self.exits = {self.images._tags[BAD[1]].digest}

    async def open(self) -> None:
        """Make the first organization, and start everything."""
        replicareports.TERM_S = LEASE_S
        volumeleases.OVER_S = LEASE_S + volumeleases.UNWRITTEN_S + volumeleases.MARGIN_S
        control = Control(self.store, MemoryBus(), self.store_clock)
        first = await control.commit(partial(bootstrap, secret="first"))
        assert first is not None
        await control.commit(lambda unit: set_organization_quota(unit, first.organization, None, {PRIORITY: None}))
        self.project_id = first.project.id
        self.owner = _principal(first.user.id, "owner")
        self.viewer = _principal("usr_viewer", "viewer")
        for part in (*self.servers, *self.nodes, *self.edges):
            part.start()
        await self.clock.advance(OPENED_S)

    async def close(self) -> None:
        for host in (*self.nodes, *self.edges):
            await host.kill()
        for server in self.servers:
            await server.kill()
        for node in self.nodes:
            node.engine.power_off()
        await cancelled([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])

    def later(self, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
        """Do something after a while, whatever else happens."""

        async def wait() -> None:
            await self.clock.sleep(seconds)
            await work()

        self.spawn(wait())

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def request(self, instance_id: str) -> None:
        """An instance's VM does what a client asks."""
        for node in self.nodes:
            for view in node.engine.views:
                if view.instance_id == instance_id and view.phase is VmPhase.RUNNING:
                    node.engine.write(view.vm_id)

    def rows(self, table: str) -> dict[str, Any]:
        """What is stored, seen from outside of any transaction."""
        return self.store._tables[table].by_id

    def node_id(self, name: str) -> str:
        return next(node.node_id for node in self.nodes if node.name == name)

    def app(self, name: str) -> Any:
        """The app's row, or None."""
        return next((app for app in self.rows("apps").values() if app.name == name), None)


def _principal(id_: str, role: str) -> Principal:
    grant = Grant(id=f"grn_{role}", principal_id=id_, role=role, scope_id="", created_at=0.0)
    return Principal(principal_id=id_, token_id="tok_x", scopes=(), grants=(grant,))


__all__ = ["BAD", "GOOD", "Unit", "World"]
