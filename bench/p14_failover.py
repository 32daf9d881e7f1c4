"""P14: a node is lost; how long until that is noticed, and until all that ran there serves elsewhere.

Real loops, agents, time and a durable store in one process; engines are the memory driver, whose boots take no time here,
and wires are cut at a random moment of a beat. Serving means: healthy by its node's word, and in a numbered route table.
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from bench.measure import Result, median, percentile
from shellwego.agent.daemon import Agent
from shellwego.agent.probes import Target
from shellwego.agent.state import NodeState
from shellwego.control import scheduling
from shellwego.control.bootstrap import bootstrap
from shellwego.control.loops import drains, nodes, rollout, routes
from shellwego.control.nodes import Nodes
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control, Unit
from shellwego.core.apps import App, AppConfig, Check, Release, Service, content_hash
from shellwego.core.deployments import Deployment, DeploymentState, Stage
from shellwego.core.images import Image, ImageState
from shellwego.core.liveness import BEAT_S
from shellwego.core.nodes import Node, NodeHealth
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.drivers.uplink.memory import LinkState, MemoryLink, MemoryNodeUplink
from shellwego.ports.store import Transaction, eq

ROUNDS = 10
APPS = 60
HOSTS = ("one", "two", "three")
PATIENCE_S = 60.0
_POLL_S = 0.02
DIGEST = f"sha256:{'0' * 64}"
CONFIG = AppConfig(image="hello:v1", services=(Service(port=8080),))


class Passing:
    """Every check passes at once."""

    async def probe(self, target: Target, check: Check, connect_s: float) -> str:
        return ""


@dataclass(slots=True)
class Fleet:
    """A control plane, and hosts with an agent each."""

    directory: Path
    control: Control
    links: dict[str, MemoryLink] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        clock = self.control.clock
        for name in HOSTS:
            self.links[name] = MemoryLink(clock)
            agent = Agent(
                engine=MemoryEngine(clock, boot_s=0.0),
                uplink=MemoryNodeUplink(Nodes(self.control, Sealer(self.control, MemoryKms())), self.links[name]),
                listener=MemoryStreams(),
                bus=self.control.bus,
                clock=clock,
                name=name,
                state=NodeState(self.directory / name),
                prober=Passing(),
            )
            self.tasks.append(asyncio.ensure_future(agent.run()))
        for loop in (rollout, routes, nodes, drains):
            self.tasks.append(asyncio.ensure_future(loop.run(self.control)))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def until(self, condition: Callable[[Transaction], bool]) -> float:
        """When it holds, by the monotonic clock, to some twenty milliseconds."""
        give_up = time.monotonic() + PATIENCE_S
        while not await self.control.read(condition):
            if time.monotonic() > give_up:
                raise TimeoutError("the platform does not come to what is waited for")
            await asyncio.sleep(_POLL_S)
        return time.monotonic()


def add_apps(unit: Unit) -> None:
    """Apps with one instance each, as deploys make them."""
    bootstrap(unit, "secret")
    (project,) = unit.tx.projects.select()
    for number in range(APPS):
        app = App(
            id=unit.new_id("app"),
            project_id=project.id,
            name=f"app-{number}",
            hostname=f"app-{number}.localhost",
            config=CONFIG,
            counts={},
            created_at=unit.now(),
            updated_at=unit.now(),
        )
        release = Release(
            id=unit.new_id("rel"),
            app_id=app.id,
            number=1,
            config=CONFIG,
            image_digest=DIGEST,
            content_hash=content_hash(CONFIG, DIGEST),
            created_at=unit.now(),
            created_by="bench",
        )
        deployment = Deployment(
            id=unit.new_id("dep"),
            app_id=app.id,
            release_id=release.id,
            state=DeploymentState.PENDING,
            stage=Stage.ADMISSION,
            strategy="rolling",
            rollback_on_failure=True,
            wait_timeout_s=PATIENCE_S,
            created_at=unit.now(),
            created_by="bench",
        )
        unit.tx.apps.insert(app)
        unit.tx.releases.insert(release)
        unit.tx.deployments.insert(deployment)
        unit.hint(f"app.{app.id}")
    image = Image(
        id=unit.new_id("img"),
        project_id=project.id,
        reference="hello:v1",
        digest=DIGEST,
        state=ImageState.READY,
        created_at=unit.now(),
    )
    unit.tx.images.insert(image)


def all_serve(tx: Transaction) -> bool:
    served = {i.app_id for i in tx.instances.select() if i.serving and i.routed_version is not None}
    return len(served) == APPS


def placed_again(tx: Transaction) -> bool:
    """Every app has a living instance with a node."""
    return len({i.app_id for i in tx.instances.select() if i.live and i.node_id}) == APPS


def fullest(tx: Transaction) -> Node:
    return max(tx.nodes.select(), key=lambda node: sum(i.live for i in tx.instances.select(eq("node_id", node.id))))


async def lose(fleet: Fleet) -> tuple[float, float, float, int]:
    """Seconds until the loss is noticed; from then until all is placed, and serves; and how much there was."""
    victim = await fleet.control.read(fullest)
    count = await fleet.control.read(lambda tx: sum(i.live for i in tx.instances.select(eq("node_id", victim.id))))
    await asyncio.sleep(random.uniform(0, BEAT_S))
    began = time.monotonic()
    fleet.links[victim.name].state = LinkState.CUT
    noticed = await fleet.until(lambda tx: _health(tx, victim) is NodeHealth.DOWN)
    placed = await fleet.until(placed_again)
    served = await fleet.until(all_serve)
    fleet.links[victim.name].state = LinkState.UP
    await fleet.until(lambda tx: _health(tx, victim) is NodeHealth.READY)
    await fleet.control.commit(lambda unit: _forgive(unit, victim))
    return noticed - began, placed - noticed, served - noticed, count


def _health(tx: Transaction, node: Node) -> NodeHealth | None:
    found = tx.nodes.get(node.id)
    return found.health if found else None


def _forgive(unit: Unit, node: Node) -> None:
    """A node that is lost again and again gets nothing new; here it shall."""
    found = unit.tx.nodes.get(node.id)
    if found is not None:
        scheduling.uncordon(unit, found)


async def measure() -> list[tuple[float, float, float, int]]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        async with AsyncExitStack() as stack:
            clock = SystemClock()
            store = open_sqlite(Path(name) / "state.db", clock)
            stack.push_async_callback(store.close)
            fleet = Fleet(Path(name), Control(store, MemoryBus(), clock))
            stack.push_async_callback(fleet.stop)
            fleet.start()
            await fleet.until(lambda tx: tx.nodes.count() == len(HOSTS))
            await fleet.control.commit(add_apps)
            await fleet.until(all_serve)
            await asyncio.sleep(2 * BEAT_S)  # a node that was never heard is given a longer term
            return [await lose(fleet) for _ in range(ROUNDS)]


def run() -> list[Result]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    rounds = asyncio.run(measure())
    noticed, placed, served = ([each[part] for each in rounds] for part in range(3))
    worst = max(noticed), max(placed)
    return [
        Result(
            "P14",
            "node loss: until it is noticed; from then until all that ran there is placed, and serves elsewhere",
            f"{median(noticed).text(' s')}; {median(placed).text(' s')}, {median(served).text(' s')}",
            "noticed ≤ 5 s, placed ≤ 1 s after",
            median(noticed).value <= 5.0 and median(placed).value <= 1.0,
            (
                f"{ROUNDS} losses of the fullest of {len(HOSTS)} nodes, {min(r[3] for r in rounds)} to "
                f"{max(r[3] for r in rounds)} instances each; the worst {worst[0]:.2f} s and {worst[1]:.2f} s",
                f"all serve elsewhere {percentile(served, 0.9):.2f} s after (9 of 10); boots take no time",
            ),
        )
    ]
