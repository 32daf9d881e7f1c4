"""Turns at what tenants share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from shellwego.control.turns import Turns


async def taken(turns: Turns, asking: Iterable[str]) -> tuple[list[str], list[asyncio.Task[None]]]:
    """Who has a turn, once all have asked for one that they do not give back."""
    having: list[str] = []

    async def take(who: str) -> None:
        async with turns.taken(who):
            having.append(who)
            await asyncio.Event().wait()

    tasks = [asyncio.ensure_future(take(who)) for who in asking]
    await asyncio.sleep(0.01)
    return having, tasks


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_asks_for_many_has_his_own_share_and_leaves_the_rest_to_others() -> None:
    having, tasks = await taken(Turns(each=2, most=4), "aaaaabcd")
    assert having == ["a", "a", "b", "c"]
    await ended(tasks)


async def test_a_turn_that_is_given_back_is_the_next_ones_and_nothing_is_kept_of_who_has_gone() -> None:
    turns = Turns(each=1, most=1)
    for _ in range(3):
        having, tasks = await taken(turns, "ab")
        assert having == ["a"]
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        assert having == ["a", "b"]
        await ended(tasks)
    assert not turns._own
    assert not turns._asking
