"""Two servers on one database, each with its own way to it, its own bus and loops: each job is done once, by one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from shellwego.control.bootstrap import bootstrap
from shellwego.control.imagework import ImageWork
from shellwego.control.loops import images as images_loop
from shellwego.control.loops import nodes as nodes_loop
from shellwego.control.loops import outbox as outbox_loop
from shellwego.control.loops import retention as retention_loop
from shellwego.control.loops import rollout as rollout_loop
from shellwego.control.loops import routes as routes_loop
from shellwego.control.loops.lease import RENEW_S, TERM_S, Leases
from shellwego.control.loops.outbox import relay
from shellwego.control.unit import Control, Unit
from shellwego.core.deployments import DeploymentState
from shellwego.core.errors import StaleError, UnavailableError
from shellwego.core.liveness import DEFAULT_TERMS
from shellwego.core.nodes import NodeHealth
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.images.memory import MemoryImages
from shellwego.ports.store import Order, Store, Transaction, eq
from tests.contract.store_databases import Database
from tests.control.rollout_world import World, living_world, node_row

T = TypeVar("T")
TAKEOVER_S = 3.0
"""Within so many seconds another does what a dead or paused server did."""

pytestmark = pytest.mark.databases("sqlite", "postgres")


@dataclass(slots=True)
class Way:
    """A server's way to the database. `stopped`: nothing goes through until it goes on, as for a process that stands still;
    `cut`: nothing ever, as for one that was killed."""

    store: Store
    going: asyncio.Event
    cut: bool = False
    writes: int = 0

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        await self._pass()
        self.writes += 1
        return await self.store.transact(fn)

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        await self._pass()
        found = await self.store.read(fn)
        await self.going.wait()
        return found

    async def _pass(self) -> None:
        await self.going.wait()
        if self.cut:
            raise UnavailableError("store-closed", "killed")

    async def close(self) -> None:
        pass


@dataclass(slots=True)
class Server:
    """A server beside the world's own, with all loops."""

    name: str
    way: Way
    control: Control
    images: ImageWork = field(default_factory=lambda: ImageWork(MemoryImages(VirtualClock().now), VirtualClock()))
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        leases = Leases(self.control, self.name)
        loops = (rollout_loop.run, routes_loop.run, nodes_loop.run, outbox_loop.run, retention_loop.run)
        parts = [leases.run(), images_loop.run(self.control, self.images, holder=leases)]
        parts += [run(self.control, holder=leases) for run in loops]
        self.tasks = [asyncio.ensure_future(part) for part in parts]

    async def end(self) -> None:
        """A clean one."""
        self.way.going.set()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def kill(self) -> None:
        self.way.cut = True
        await self.end()


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with living_world(database.open_inline, loops=False) as world:
        yield world


def server(name: str, database: Database, world: World) -> Server:
    way = Way(database.open_inline(world.clock), asyncio.Event())
    way.going.set()
    return Server(name, way, Control(way, MemoryBus(), world.clock))


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
    await world.clock.until(lambda: second_works(second), timeout=TAKEOVER_S)
    assert world.clock.monotonic() - killed_at <= TAKEOVER_S
    deployment = await world.finished(await world.deploy("two"))
    assert (deployment.state, node.boots) == (DeploymentState.SUCCEEDED, 2)
    assert await holders(world.control) == {"b"}
    await second.end()


def second_works(server: Server) -> bool:
    """It wrote something: all that a server without a lease does is to read."""
    return server.way.writes > 0


async def test_what_a_paused_server_did_goes_on_elsewhere_and_it_disturbs_nobody_when_it_wakes(
    world: World, database: Database
) -> None:
    first, second = server("a", database, world), server("b", database, world)
    first.start()
    await world.clock.advance(0.5)
    second.start()
    node, edge = await world.node(), await world.edge()
    await world.finished(await world.deploy("one"))
    first.way.going.clear()  # in the middle of whatever it does
    deployment = await world.finished(await world.deploy("two"), timeout=TAKEOVER_S + 20)
    assert (deployment.state, node.boots) == (DeploymentState.SUCCEEDED, 2)
    first.way.going.set()
    deployment = await world.finished(await world.deploy("three"))
    assert (deployment.state, node.boots) == (DeploymentState.SUCCEEDED, 3)
    assert await holders(world.control) == {"b"}
    versions = [table.version for table in edge.tables]
    assert versions == sorted(set(versions))
    await first.end()
    await second.end()


@pytest.mark.databases("sqlite")
async def test_a_node_that_dies_with_the_server_that_judged_is_lost_a_term_after_another_goes_on(
    world: World, database: Database
) -> None:
    first, second = server("a", database, world), server("b", database, world)
    first.start()
    await world.clock.advance(0.5)
    second.start()
    node = await world.node()
    await world.clock.advance(3)
    node.silent = True
    await first.kill()
    term = DEFAULT_TERMS.down_s
    await world.clock.advance(term + 1)
    assert node_row(world, node).health is not NodeHealth.DOWN, "who begins to judge gives it a term to turn elsewhere"
    await world.clock.until(lambda: node_row(world, node).health is NodeHealth.DOWN, timeout=TAKEOVER_S)
    await second.end()


@pytest.mark.databases("sqlite")
async def test_a_dead_node_is_noticed_though_another_server_judges_every_few_seconds(
    world: World, database: Database
) -> None:
    servers = [server(name, database, world) for name in "abc"]
    for each in servers:
        each.start()
    node = await world.node()
    await world.clock.advance(3)
    node.silent = True
    for _ in range(4):
        ((leader,),) = [[each for each in servers if each.name in await holders(world.control)]]
        leader.way.going.clear()
        await world.clock.advance(3)
        leader.way.going.set()
    assert node_row(world, node).health is NodeHealth.DOWN
    for each in servers:
        await each.end()


@pytest.mark.databases("sqlite")
async def test_at_a_clean_end_another_goes_on_at_once(world: World, database: Database) -> None:
    first, second = server("a", database, world), server("b", database, world)
    first.start()
    await world.clock.advance(5)
    second.start()
    await world.clock.advance(5)
    assert second.way.writes == 0, "who holds nothing only reads"
    await first.end()
    await world.clock.advance(RENEW_S + 0.1)
    assert await holders(world.control) == {"b"}
    await second.end()


@pytest.mark.databases("sqlite")
async def test_a_server_that_idles_writes_little(world: World, database: Database) -> None:
    only = server("a", database, world)
    only.start()
    await world.clock.advance(2)
    before = only.way.writes
    await world.clock.advance(30)
    assert only.way.writes - before <= 30 / RENEW_S + 3, "one transaction renews all leases"
    await only.end()


async def test_a_server_that_stood_still_writes_nothing_once_its_lease_is_over(database: Database) -> None:
    clock = VirtualClock()
    a, b = (Leases(Control(database.open_inline(clock), MemoryBus(), clock), name) for name in "ab")
    for each in (a, b):
        each.want("x")
    assert await a.claim() == {"loop.x"}
    await a.fenced("x").commit(lambda unit: unit.emit("before", "app_1"))
    await clock.advance(TERM_S)  # and nobody else came
    with pytest.raises(StaleError):
        await a.fenced("x").commit(lambda unit: unit.emit("late", "app_1"))
    assert await b.claim() == {"loop.x"}
    with pytest.raises(StaleError):
        await a.fenced("x").commit(lambda unit: unit.emit("late", "app_1"))
    await b.fenced("x").commit(lambda unit: unit.emit("after", "app_1"))
    events = await a.fenced("x").read(lambda tx: tx.events.select())
    assert [event.type for event in events] == ["before", "after"]


async def claims_at_once(stores: list[Store], number: int) -> int:
    clock = SystemClock()
    servers = [Leases(Control(store, MemoryBus(), clock), str(n)) for n, store in enumerate(stores)]
    for each in servers:
        each.want(f"x{number}")
    return sum(len(held) for held in await asyncio.gather(*(each.claim() for each in servers)))


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
