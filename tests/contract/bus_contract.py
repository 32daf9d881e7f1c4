"""What every bus must do. A hint may be lost, so only a bus that loses needlessly, or blocks, is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shellwego.ports.bus import Bus, Hint


class BusContract:
    """Inherit, and give a fixture `bus`."""

    deadline_s = 5.0

    async def take(self, hints: AsyncIterator[Hint], count: int = 1) -> list[Hint]:
        """The next hints, within the deadline."""
        async with asyncio.timeout(self.deadline_s):
            return [await anext(hints) for _ in range(count)]

    async def test_a_listener_hears_what_is_published(self, bus: Bus) -> None:
        async with bus.subscribe("routes") as hints:
            await bus.publish("routes", b"7")
            assert await self.take(hints) == [Hint("routes", b"7")]

    async def test_every_listener_hears_it(self, bus: Bus) -> None:
        async with bus.subscribe("routes") as first, bus.subscribe("routes") as second:
            await bus.publish("routes")
            assert await self.take(first) == await self.take(second) == [Hint("routes")]

    async def test_hints_of_one_publisher_keep_their_order(self, bus: Bus) -> None:
        async with bus.subscribe("n") as hints:
            for number in range(100):
                await bus.publish("n", str(number).encode())
            assert [int(hint.payload) for hint in await self.take(hints, 100)] == list(range(100))

    async def test_who_comes_later_hears_what_is_published_from_then_on(self, bus: Bus) -> None:
        await bus.publish("routes", b"1")
        async with bus.subscribe("routes") as first:
            await bus.publish("routes", b"2")
            assert await self.take(first) == [Hint("routes", b"2")]
            async with bus.subscribe("*") as second:
                await bus.publish("routes", b"3")
                assert await self.take(first) == await self.take(second) == [Hint("routes", b"3")]
            await bus.publish("routes", b"4")
            assert await self.take(first) == [Hint("routes", b"4")]

    async def test_publishing_to_nobody_is_fine(self, bus: Bus) -> None:
        await bus.publish("routes")

    @pytest.mark.parametrize(
        ("pattern", "heard"),
        [
            ("app.a", ["app.a"]),
            ("app.*", ["app.a", "app.b"]),
            ("*.a", ["app.a"]),
            ("node.*.assignments", ["node.1.assignments"]),
            ("node.>", ["node.1", "node.1.assignments"]),
            (">", ["app.a", "app.b", "node", "node.1", "node.1.assignments", "end"]),
        ],
    )
    async def test_a_pattern_hears_the_subjects_that_fit(self, bus: Bus, pattern: str, heard: list[str]) -> None:
        async with bus.subscribe(pattern) as hints, bus.subscribe("end") as end:
            for subject in ("app.a", "app.b", "node", "node.1", "node.1.assignments", "end"):
                await bus.publish(subject)
            await self.take(end)
            assert [hint.subject for hint in await self.take(hints, len(heard))] == heard

    async def test_a_listener_that_stalls_blocks_nobody_and_loses_the_oldest(self, bus: Bus) -> None:
        async with bus.subscribe("n") as stalled, bus.subscribe("n") as quick, asyncio.timeout(self.deadline_s):
            for number in range(5000):
                await bus.publish("n", str(number).encode())
                await anext(quick)
            await bus.publish("n", b"last")
            hint = await anext(stalled)
            assert hint.payload != b"0"
            while hint.payload != b"last":
                hint = await anext(stalled)

    async def test_who_has_left_hears_no_more(self, bus: Bus) -> None:
        async with bus.subscribe("routes") as hints:
            pass
        await bus.publish("routes")
        with pytest.raises(StopAsyncIteration):
            await self.take(hints)

    async def test_closing_ends_every_listener(self, bus: Bus) -> None:
        async with bus.subscribe("routes") as hints:
            waiting = asyncio.ensure_future(anext(hints, None))
            await asyncio.sleep(0)
            await bus.close()
            async with asyncio.timeout(self.deadline_s):
                assert await waiting is None
