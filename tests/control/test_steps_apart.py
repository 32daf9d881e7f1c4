"""A step of a loop that fails holds up none of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import pytest
import structlog

from shellwego.control import scheduling
from shellwego.control.loops import drains as drains_loop
from shellwego.control.loops.tries import Tries
from shellwego.control.unit import Control
from shellwego.core.errors import UnavailableError
from shellwego.core.nodes import Scheduling
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.ports.store import Store, Transaction
from tests.control.rollout_world import FakeNode, World, node_row

T = TypeVar("T")


@dataclass(slots=True)
class Refusing:
    """A database that ends every transaction which asks for certain rows; reads on a snapshot it answers."""

    store: Store
    ids: set[str] = field(default_factory=set)

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        return await self.store.transact(lambda tx: fn(cast(Transaction, _Refusing(tx, self.ids))))

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        return await self.store.read(fn)

    async def close(self) -> None:
        await self.store.close()


class _Refusing:
    """Stands for a transaction, or for a table."""

    def __init__(self, real: Any, ids: set[str]) -> None:
        self._real, self._ids = real, ids

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return found if callable(found) else _Refusing(found, self._ids)

    def get(self, id_: str) -> Any:
        if id_ in self._ids:
            raise UnavailableError("store-busy", "the change met others again and again")
        return self._real.get(id_)


@pytest.fixture
def world(quiet_world: World) -> World:
    return quiet_world


async def drain(world: World, node: FakeNode) -> None:
    await world.control.commit(lambda unit: scheduling.drain(unit, node_row(world, node), scheduling.DrainWish()))


async def test_a_node_that_cannot_be_looked_at_holds_up_the_drain_of_no_other(world: World) -> None:
    first, second = await world.node("one"), await world.node("two")
    for node in (first, second):
        await drain(world, node)
    store = Refusing(world.store, {first.node_id})
    world.spawn(drains_loop.run(Control(store, world.control.bus, world.clock)))
    await world.clock.until(lambda: node_row(world, second).scheduling is Scheduling.DRAINED, 3)
    assert node_row(world, first).scheduling is Scheduling.DRAINING
    store.ids.clear()
    await world.clock.until(lambda: node_row(world, first).scheduling is Scheduling.DRAINED, 3)


async def test_each_key_has_its_step_and_those_that_failed_are_told() -> None:
    taken: list[str] = []

    async def step(key: str) -> None:
        taken.append(key)
        if key == "b":
            raise UnavailableError("store-busy", "the change met others again and again")

    tries = Tries(VirtualClock(), structlog.get_logger(), "failed", "passed")
    assert await tries.each("abc", step) == {"b"}
    assert taken == ["a", "b", "c"]
