"""Sealing small values: what is stored, whom it opens for, and how long an open key is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.control import sealing
from shellwego.control.sealing import Sealer, Sealing, forget, keep
from shellwego.control.unit import Control
from shellwego.core.envelope import Label, MasterKey, SealedValue
from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore

LABEL = Label(purpose="totp", subject="usr_1")
SEED = Sensitive.of("JBSWY3DPEHPK3PXP")


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.kms = MemoryKms()
        self.control = Control(MemoryStore(self.clock), MemoryBus(), self.clock)
        self.sealer = Sealer(self.control, self.kms)

    async def kept(self, label: Label = LABEL) -> SealedValue:
        made = await self.sealer.seal(SEED, label)
        return await self.control.commit(lambda unit: keep(unit, made))


@pytest.fixture
def world() -> World:
    return World()


async def test_a_kept_value_is_had_back(world: World) -> None:
    sealed = await world.kept()
    assert await world.sealer.unseal(sealed, LABEL) == SEED
    assert SEED.reveal() not in sealed.ciphertext


async def test_two_values_have_two_data_keys(world: World) -> None:
    assert (await world.kept()).key_id != (await world.kept()).key_id


@pytest.mark.parametrize("other", [replace(LABEL, subject="usr_2"), replace(LABEL, purpose="secret")])
async def test_it_opens_for_nobody_else_even_while_its_key_is_kept_open(world: World, other: Label) -> None:
    sealed = await world.kept()
    await world.sealer.unseal(sealed, LABEL)
    with pytest.raises(ConflictError):
        await world.sealer.unseal(sealed, other)


async def test_a_value_whose_key_is_forgotten_is_lost(world: World) -> None:
    sealed = await world.kept()
    for _ in range(2):
        await world.control.commit(lambda unit: forget(unit, sealed.key_id))
    with pytest.raises(ConflictError):
        await world.sealer.unseal(sealed, LABEL)


async def test_an_open_key_is_kept_for_a_minute_and_no_longer(world: World) -> None:
    sealed = await world.kept()
    await world.sealer.unseal(sealed, LABEL)
    world.kms.available = False
    await world.clock.advance(sealing.CACHED_S - 1)
    assert await world.sealer.unseal(sealed, LABEL) == SEED
    await world.clock.advance(2)
    with pytest.raises(UnavailableError):
        await world.sealer.unseal(sealed, LABEL)


async def test_no_more_open_keys_are_kept_than_are_allowed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "CACHED_KEYS", 2)
    kept = [await world.kept() for _ in range(3)]
    for each in kept:
        await world.sealer.unseal(each, LABEL)
    world.kms.available = False
    assert await world.sealer.unseal(kept[2], LABEL) == SEED
    with pytest.raises(UnavailableError):
        await world.sealer.unseal(kept[0], LABEL)


async def test_nothing_new_is_stored_under_a_retired_master_key(world: World) -> None:
    made: Sealing = await world.sealer.seal(SEED, LABEL)
    name = made.key.row.master_key
    retired = MasterKey(id=name, created_at=1.0, retired_at=2.0)
    await world.control.commit(lambda unit: unit.tx.master_keys.insert(retired))
    with pytest.raises(UnavailableError):
        await world.control.commit(lambda unit: keep(unit, made))
    assert await world.control.read(lambda tx: tx.data_keys.count()) == 0


async def test_nothing_of_what_holds_a_value_shows_it(world: World) -> None:
    made = await world.sealer.seal(SEED, LABEL)
    key = made.key.key.reveal()
    assert SEED.reveal_text() not in repr(made)
    assert repr(key) not in repr(made)
