"""Rotating the master key: what is stored moves under the new one, and everything opens all the while."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from shellwego.control import masterkeys
from shellwego.control.loops import rewrap
from shellwego.control.loops.rewrap import Rewrapper
from shellwego.control.sealing import Sealer, keep_key
from shellwego.control.unit import Control
from shellwego.core.envelope import DataKey, Label, SealedValue
from shellwego.core.errors import ConflictError, NotFoundError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore

VALUE = Sensitive.of("a value")


def label(number: int) -> Label:
    return Label(purpose="secret", subject=f"sec_{number}", organization_id="org_1", project_id="prj_1")


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.kms = MemoryKms()
        self.control = Control(MemoryStore(self.clock), MemoryBus(), self.clock)
        self.sealer = Sealer(self.control, self.kms)
        self.rewrapper = Rewrapper(self.control, self.sealer)
        self.kept: list[SealedValue] = []

    async def keep(self, count: int) -> None:
        for number in range(len(self.kept), len(self.kept) + count):
            key = await self.sealer.new_key(label(number))
            await self.control.commit(partial(keep_key, row=key.row))
            self.kept.append(key.seal(VALUE))

    async def rotate(self) -> str:
        name = await self.sealer.rotate()
        await self.control.commit(lambda unit: masterkeys.note_rotation(unit, name))
        return name

    async def rows(self) -> list[DataKey]:
        return await self.control.read(lambda tx: tx.data_keys.select())

    async def statuses(self) -> dict[str, int]:
        current = await self.sealer.current()
        found = await self.control.read(lambda tx: masterkeys.key_statuses(tx, current))
        return {status.key.id: status.data_keys for status in found}

    async def all_open(self) -> bool:
        """Asked of a control plane that has no key open."""
        fresh = Sealer(self.control, self.kms)
        return all([await fresh.unseal(each, label(number)) == VALUE for number, each in enumerate(self.kept)])

    async def retire(self, name: str) -> None:
        current = await self.sealer.current()
        await self.control.commit(lambda unit: masterkeys.retire_key(unit, name, current))
        await self.sealer.retire(name)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(rewrap, "BATCH", 3)
    return World()


async def test_all_data_keys_move_and_all_values_still_open(world: World) -> None:
    await world.keep(8)
    old = await world.sealer.current()
    new = await world.rotate()
    assert await world.statuses() == {old: 8, new: 0}
    assert await world.all_open()
    assert await world.rewrapper.step() == 8
    assert await world.statuses() == {old: 0, new: 8}
    assert await world.all_open()
    assert await world.rewrapper.step() == 0


async def test_the_old_key_goes_when_nothing_needs_it_and_not_before(world: World) -> None:
    await world.keep(2)
    old = await world.sealer.current()
    await world.rotate()
    with pytest.raises(ConflictError):
        await world.retire(old)
    await world.rewrapper.step()
    await world.retire(old)
    await world.retire(old)
    assert await world.all_open()


async def test_the_current_key_and_an_unknown_one_are_not_retired(world: World) -> None:
    await world.keep(1)
    with pytest.raises(ConflictError):
        await world.retire(await world.sealer.current())
    with pytest.raises(NotFoundError):
        await world.retire("elsewhere:1")


async def test_what_was_wrapped_before_a_retirement_is_not_stored_after_it(world: World) -> None:
    await world.keep(1)
    late = await world.sealer.new_key(label(1))
    old = await world.sealer.current()
    await world.rotate()
    await world.rewrapper.step()
    await world.retire(old)
    with pytest.raises(UnavailableError):
        await world.control.commit(lambda unit: keep_key(unit, late.row))


async def test_a_key_that_does_not_open_stays_and_holds_up_no_other(world: World) -> None:
    await world.keep(5)
    broken = (await world.rows())[1]
    await world.control.commit(lambda unit: unit.tx.data_keys.update(replace(broken, wrapped=b"x" * 60)))
    old = await world.sealer.current()
    await world.rotate()
    assert await world.rewrapper.step() == 4
    assert (await world.statuses())[old] == 1
    with pytest.raises(ConflictError):
        await world.retire(old)


async def test_a_key_under_a_master_key_that_is_not_here_holds_up_no_other(world: World) -> None:
    await world.keep(3)
    lost = replace((await world.rows())[0], master_key="elsewhere:1")
    await world.control.commit(lambda unit: unit.tx.data_keys.update(lost))
    await world.rotate()
    assert await world.rewrapper.step() == 2


async def test_a_key_that_changed_meanwhile_is_left_to_the_next_look(world: World) -> None:
    await world.keep(1)
    await world.rotate()
    (row,) = await world.rows()
    fresh = await world.sealer.wrap_again(row)
    await world.control.commit(lambda unit: unit.tx.data_keys.update(row))
    assert await world.control.commit(lambda unit: rewrap._swap(unit, [(row, fresh)])) == 0
    assert await world.rewrapper.step() == 1


async def test_the_loop_does_it_by_itself_and_again_once_the_kms_answers(world: World) -> None:
    await world.keep(4)
    loop = asyncio.ensure_future(rewrap.run(world.control, world.sealer))
    try:
        await world.clock.advance(5)
        world.kms.available = False
        await world.clock.advance(100)
        world.kms.available = True
        await world.kms.rotate()  # elsewhere: nobody says so here
        name = await world.sealer.current()
        await world.clock.advance(100)
        assert (await world.statuses())[name] == 4
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
