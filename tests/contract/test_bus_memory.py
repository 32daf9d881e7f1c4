"""The bus's contract on the memory driver, and a wrong driver that it rejects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shellwego.drivers.bus.memory import SUBJECTS_KEPT, MemoryBus
from shellwego.ports.bus import Bus, Hint
from tests.contract.bus_contract import BusContract


class TestMemoryBus(BusContract):
    @pytest.fixture
    def bus(self) -> Bus:
        return MemoryBus()


async def test_subjects_without_end_are_heard_and_not_all_kept() -> None:
    bus = MemoryBus()
    async with bus.subscribe("app.*") as hints, asyncio.timeout(20):
        for number in range(SUBJECTS_KEPT + 10):
            await bus.publish(f"app.{number}")
            assert await anext(hints) == Hint(f"app.{number}")
        assert len(bus._hearing) <= SUBJECTS_KEPT


class BlockingBus:
    """Wrong: a listener's full queue holds up the publisher, and only the first word of a pattern counts."""

    def __init__(self) -> None:
        self._queues: list[tuple[str, asyncio.Queue[Hint]]] = []

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        for pattern, queue in self._queues:
            if subject.split(".", maxsplit=1)[0] == pattern.split(".")[0]:
                await queue.put(Hint(subject, payload))

    @asynccontextmanager
    async def subscribe(self, pattern: str) -> AsyncIterator[AsyncIterator[Hint]]:
        queue: asyncio.Queue[Hint] = asyncio.Queue(maxsize=8)
        self._queues.append((pattern, queue))

        async def hints() -> AsyncIterator[Hint]:
            while True:
                yield await queue.get()

        yield hints()

    async def close(self) -> None:
        pass


class Impatient(BusContract):
    __test__ = False
    deadline_s = 0.2


class TestTheContractRejectsAWrongBus:
    async def test_that_lets_a_slow_listener_block_the_others(self) -> None:
        with pytest.raises(TimeoutError):
            await Impatient().test_a_listener_that_stalls_blocks_nobody_and_loses_the_oldest(BlockingBus())

    async def test_that_hears_too_much(self) -> None:
        with pytest.raises(AssertionError):
            await BusContract().test_a_pattern_hears_the_subjects_that_fit(
                BlockingBus(), "node.*.assignments", ["node.1.assignments"]
            )
