"""By which road hints come to a joined host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from shellwego.boot.hintroad import ASK_AGAIN_S, LOST_S, RETRY_S, HintRoad
from shellwego.core.buskeys import statement
from shellwego.core.errors import ConflictError, NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.nkeys import NKey, verify
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.busaccess.memory import MemoryBusAccess, MemoryDoor
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.ports.bus import Hint
from shellwego.ports.busaccess import PASS_S, BusPass
from shellwego.wire import subjects
from shellwego.wire.uplink import BusPassAnswer, BusPassCall
from tests.contract.busaccess_contract import EDGE, MINE, OTHER

URLS = ("tls://bus.example:4222",)


@dataclass
class Door:
    """A bus as who has a pass has it; the way to it may be cut."""

    inner: MemoryDoor
    world: World
    closed: bool = False

    @property
    def connected(self) -> bool:
        return self.inner.open and not self.world.cut and not self.closed

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        await self.inner.publish(subject, payload)

    def subscribe(self, pattern: str) -> AbstractAsyncContextManager[AsyncIterator[Hint]]:
        return self.inner.subscribe(pattern)

    async def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """A platform with a bus apart, and one host that listens."""

    member_id: str = MINE
    clock: VirtualClock = field(default_factory=VirtualClock)
    bus: MemoryBus = field(default_factory=MemoryBus)
    hints: MemoryBus = field(default_factory=MemoryBus)
    passes: bool = True
    refusal: ShellWeGoError | None = None
    cut: bool = False
    keys: list[str] = field(default_factory=list)
    doors: list[Door] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.access = MemoryBusAccess(self.bus, self.clock)
        self.road = HintRoad(self.member_id, self.hints, self.clock, self.enter)

    async def enter(self, found: BusPass, key: NKey) -> Door:
        self.doors.append(Door(self.access.enter(found, key), self))
        return self.doors[-1]

    async def call(self, method: str, asked: object, answer: type[BusPassAnswer]) -> BusPassAnswer:
        assert isinstance(asked, BusPassCall)
        assert verify(asked.public_key, asked.signature, statement(self.member_id))
        self.keys.append(asked.public_key)
        if self.refusal is not None:
            raise self.refusal
        if not self.passes:
            return BusPassAnswer()
        found = self.access.admit(self.member_id, asked.public_key)
        return BusPassAnswer(
            bus_pass=BusPass(token=found.token, urls=URLS, expires_at=found.expires_at, lifetime_s=found.lifetime_s)
        )

    async def listen(self) -> None:
        async with self.hints.subscribe(">") as hints:
            async for hint in hints:
                self.heard.append(hint.subject)

    async def hears(self, bus: str = "", link: str = "") -> list[str]:
        """What comes of what the bus and a link say."""
        self.heard.clear()
        if bus:
            await self.bus.publish(bus)
        if link:
            await self.road.publish(link)
        await self.clock.advance(0.01)
        return list(self.heard)


@asynccontextmanager
async def running(world: World) -> AsyncIterator[World]:
    tasks = [asyncio.create_task(part) for part in (world.listen(), world.road.keep(world))]
    await world.clock.advance(0.1)
    try:
        yield world
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(("member_id", "mine"), [(MINE, subjects.assignments(MINE)), (EDGE, subjects.ROUTES)])
async def test_hints_come_over_the_bus_where_there_is_a_pass_and_then_not_over_links(member_id: str, mine: str) -> None:
    async with running(World(member_id)) as world:
        assert world.road.road == "bus"
        assert await world.hears(bus=mine) == [mine]
        assert await world.hears(link=mine) == []
        assert await world.hears(bus=subjects.assignments(OTHER)) == []


async def test_over_links_where_there_are_no_passes_until_there_are() -> None:
    mine = subjects.assignments(MINE)
    async with running(World(passes=False)) as world:
        assert world.road.road == "link"
        assert await world.hears(bus=mine, link=mine) == [mine]
        world.passes = True
        await world.clock.advance(ASK_AGAIN_S)
        assert world.road.road == "bus"


async def test_over_links_while_the_bus_cannot_be_reached() -> None:
    mine = subjects.assignments(MINE)
    async with running(World()) as world:
        world.cut = True
        assert world.road.road == "link"
        assert await world.hears(link=mine) == [mine]
        world.cut = False
        assert world.road.road == "bus"
        assert await world.hears(link=mine) == []


async def test_a_pass_is_renewed_before_it_ends_for_another_key_and_nothing_is_missed_between() -> None:
    mine = subjects.assignments(MINE)
    async with running(World()) as world:
        for _ in range(3):
            await world.clock.advance(PASS_S * 0.7)
            assert world.road.road == "bus"
            assert await world.hears(bus=mine) == [mine]
        assert len(set(world.keys)) == len(world.keys) == 4
        assert [door.closed for door in world.doors] == [True, True, True, False]


async def test_a_pass_that_leads_nowhere_for_long_is_asked_for_again_by_the_same_key() -> None:
    async with running(World()) as world:
        world.cut = True
        await world.clock.advance(LOST_S + 100)
        assert len(world.keys) == 2
        assert len(set(world.keys)) == 1


async def test_an_older_server_has_no_passes() -> None:
    async with running(World(refusal=NotFoundError("uplink-method-unknown", "no"))) as world:
        await world.clock.advance(ASK_AGAIN_S - 1)
        assert (world.road.road, len(world.keys)) == ("link", 1)
        world.refusal = None
        await world.clock.advance(2)
        assert world.road.road == "bus"


@pytest.mark.parametrize(
    ("refusal", "keys"), [(UnavailableError("uplink-unavailable", "no"), 1), (ConflictError("bus-key-known", "no"), 2)]
)
async def test_who_gets_no_pass_asks_again_and_hears_links_meanwhile(refusal: ShellWeGoError, keys: int) -> None:
    """With another key where this one was refused, and the same where nobody knows whether it was."""
    mine = subjects.assignments(MINE)
    async with running(World(refusal=refusal)) as world:
        assert await world.hears(link=mine) == [mine]
        world.refusal = None
        await world.clock.advance(RETRY_S + 1)
        assert world.road.road == "bus"
        assert (len(world.keys), len(set(world.keys))) == (2, keys)


async def test_what_links_said_while_the_bus_was_entered_is_made_up_for() -> None:
    async with running(World()) as world:
        assert world.heard == [subjects.assignments(MINE)]
