"""The store's contract on the memory driver, and wrong drivers that it rejects."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.store import Store, Transaction
from tests.contract.store_contract import StoreContract

T = TypeVar("T")


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore(VirtualClock())


async def test_the_stores_time_is_that_of_its_clock() -> None:
    clock = VirtualClock(start=1000.0)
    store = MemoryStore(clock)
    await clock.advance(5)
    assert await store.transact(lambda tx: tx.now()) == 1005.0


class KeepsWhatFailed(MemoryStore):
    """Wrong: commits what the function did before it raised."""

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        failures: list[Exception] = []

        def run(tx: Transaction) -> T | None:
            try:
                return fn(tx)
            except Exception as error:  # noqa: BLE001
                failures.append(error)
                return None

        result = await super().transact(run)
        if failures:
            raise failures[0]
        return result  # type: ignore[return-value]


class WritesInReads(MemoryStore):
    """Wrong: a read may write."""

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        return await self.transact(fn)


class TestTheContractRejectsAWrongStore:
    async def test_that_keeps_what_failed(self) -> None:
        with pytest.raises(AssertionError):
            await StoreContract().test_an_exception_undoes_the_whole_of_a_transaction(KeepsWhatFailed(VirtualClock()))

    async def test_that_lets_a_read_write(self) -> None:
        with pytest.raises(pytest.fail.Exception):
            await StoreContract().test_a_read_cannot_write(WritesInReads(VirtualClock()), lambda tx: tx.next("routes"))
