"""Two servers on one database, each with its own way to it, its own bus and loops: each job is done once, by one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from shellwego.control.bootstrap import bootstrap
from shellwego.control.loops import nodes as nodes_loop
from shellwego.control.loops import rollout as rollout_loop
from shellwego.control.loops import routes as routes_loop
from shellwego.control.loops.lease import TERM_S, Lease
from shellwego.control.loops.outbox import relay
from shellwego.control.unit import Control, Unit
from shellwego.core.deployments import DeploymentState
from shellwego.core.errors import StaleError
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.ports.store import Order, Store, eq
from tests.contract.store_databases import Database
from tests.control.rollout_world import World

pytestmark = pytest.mark.databases("sqlite", "postgres")


@dataclass(slots=True)
class Server:
    """A second server beside the world's own."""

    name: str
    control: Control
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        loops = (rollout_loop.run, routes_loop.run, nodes_loop.run)
        self.tasks = [asyncio.ensure_future(run(self.control, holder=self.name)) for run in loops]

    async def kill(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    world = World(database.open_inline)
    await world.begin(loops=False)
    yield world
    await world.end()


def server(name: str, database: Database, world: World) -> Server:
    return Server(name, Control(database.open_inline(world.clock), MemoryBus(), world.clock))


async def holders(control: Control) -> set[str]:
    return {lease.holder for lease in await control.read(lambda tx: tx.leases.select())}


async def test_each_job_is_done_once_and_the_other_goes_on_when_one_is_gone(world: World, database: Database) -> None:
    first, second = server("a", database, world), server("b", database, world)
    first.start()
    await world.clock.advance(0.5)
    second.start()
    node, edge = await world.node(), await world.edge()
    deployment = await world.finished(await world.deploy("one"))
    assert (deployment.state, node.boots, len(edge.endpoints())) == (DeploymentState.SUCCEEDED, 1, 1)
    assert await holders(world.control) == {"a"}
    versions = [table.version for table in edge.tables]
    assert versions == sorted(set(versions))
    await first.kill()
    killed_at = world.clock.monotonic()
    deployment = await world.finished(await world.deploy("two"), timeout=TERM_S + 30)
    assert (deployment.state, node.boots) == (DeploymentState.SUCCEEDED, 2)
    assert await holders(world.control) == {"b"}
    assert world.clock.monotonic() - killed_at < TERM_S + 10
    await second.kill()


async def test_a_server_that_stood_still_writes_nothing_once_its_lease_is_over(database: Database) -> None:
    clock = VirtualClock()
    a, b = (Lease(Control(database.open_inline(clock), MemoryBus(), clock), "x", name) for name in "ab")
    assert await a._claim()
    await a.fenced.commit(lambda unit: unit.emit("before", "app_1"))
    await clock.advance(TERM_S)  # and nobody else came
    with pytest.raises(StaleError):
        await a.fenced.commit(lambda unit: unit.emit("late", "app_1"))
    assert await b._claim()
    with pytest.raises(StaleError):
        await a.fenced.commit(lambda unit: unit.emit("late", "app_1"))
    await b.fenced.commit(lambda unit: unit.emit("after", "app_1"))
    events = await a.fenced.read(lambda tx: tx.events.select())
    assert [event.type for event in events] == ["before", "after"]


async def claims_at_once(stores: list[Store], number: int) -> int:
    clock = SystemClock()
    leases = [Lease(Control(store, MemoryBus(), clock), f"x{number}", str(n)) for n, store in enumerate(stores)]
    return sum(await asyncio.gather(*(lease._claim() for lease in leases)))


async def test_of_servers_that_claim_at_once_one_gets_the_lease(database: Database) -> None:
    stores = [database.open() for _ in range(3)]
    assert [await claims_at_once(stores, number) for number in range(10)] == [1] * 10


async def test_servers_that_start_at_once_make_one_first_organization(database: Database) -> None:
    controls = [Control(database.open(), MemoryBus(), SystemClock()) for _ in range(3)]
    made = await asyncio.gather(*(c.commit(lambda unit: bootstrap(unit, "secret")) for c in controls))
    assert sum(first is not None for first in made) == 1
    assert await controls[0].read(lambda tx: (tx.organizations.count(), tx.users.count())) == (1, 1)


async def test_two_relays_number_each_event_once_and_without_a_gap(database: Database) -> None:
    controls = [Control(database.open(), MemoryBus(), SystemClock()) for _ in range(2)]

    def emit(unit: Unit) -> None:
        for _ in range(2):
            unit.emit("app.created", "app_1")

    await asyncio.gather(*(controls[n % 2].commit(emit) for n in range(20)))
    await asyncio.gather(*(relay(control) for control in controls))
    events = await controls[0].read(lambda tx: tx.events.select(order=Order("seq")))
    assert [event.seq for event in events] == list(range(1, 41))
    assert await controls[1].read(lambda tx: tx.events.count(eq("seq", 0))) == 0
