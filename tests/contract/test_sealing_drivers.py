"""The contract of sealers, on each and on wrong ones."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from shellwego.control.sealedtexts import EnvelopeSealer
from shellwego.control.sealing import Sealer as KeySealer
from shellwego.control.unit import Control
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.sealing.memory import MemorySealer
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.sealing import Sealer
from shellwego.ports.store import Transaction
from tests.contract.sealing_contract import SealingContract


class TestMemorySealer(SealingContract):
    @pytest.fixture
    def sealer(self) -> Sealer:
        return MemorySealer()

    @pytest.fixture
    def other(self) -> Sealer:
        return MemorySealer()


def envelope() -> EnvelopeSealer:
    clock = VirtualClock()
    control = Control(MemoryStore(clock), MemoryBus(), clock)
    return EnvelopeSealer(control, KeySealer(control, MemoryKms()))


class TestEnvelopeSealer(SealingContract):
    @pytest.fixture
    def sealer(self) -> Sealer:
        return envelope()

    @pytest.fixture
    def other(self) -> Sealer:
        return envelope()


async def test_a_row_has_one_data_key_however_often_its_value_is_replaced() -> None:
    sealer = envelope()
    for _ in range(3):
        sealed = await sealer.seal(b"x", purpose="totp", id_="usr_1")
    assert await sealer._control.read(lambda tx: tx.data_keys.count()) == 1
    assert await sealer.unseal(sealed, purpose="totp", id_="usr_1") == b"x"


async def test_a_data_key_that_does_not_open_any_more_keeps_nobody_from_a_new_value() -> None:
    sealer = envelope()
    await sealer.seal(b"x", purpose="totp", id_="usr_1")

    def damage(tx: Transaction) -> None:
        (row,) = tx.data_keys.select()
        tx.data_keys.update(replace(row, wrapped=b"?" * 60))

    await sealer._control.store.transact(damage)
    sealed = await sealer.seal(b"y", purpose="totp", id_="usr_1")
    assert await sealer.unseal(sealed, purpose="totp", id_="usr_1") == b"y"


class Unbound(MemorySealer):
    """Forgets for what it sealed."""

    async def unseal(self, sealed: str, *, purpose: str, id_: str) -> bytes:
        return next((value for _, _, value in self._kept.values()), b"")


class Plain:
    async def seal(self, value: bytes, *, purpose: str, id_: str) -> str:
        return value.decode()

    async def unseal(self, sealed: str, *, purpose: str, id_: str) -> bytes:
        return base64.b64decode(sealed)


async def test_the_contract_rejects_wrong_sealers() -> None:
    contract = SealingContract()
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        await contract.test_it_opens_for_its_purpose_and_row_alone(Unbound())
    with pytest.raises(AssertionError):
        await contract.test_what_is_sealed_tells_nothing_and_is_never_the_same(Plain())
