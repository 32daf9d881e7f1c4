"""Places that tenants share, and wait for."""

from __future__ import annotations

import asyncio

from shellwego.control.places import Places


async def test_who_asks_for_many_has_his_share_and_whoever_leaves_makes_room_for_the_next() -> None:
    places, having = Places(4, 2), list[str]()

    async def take(who: str) -> None:
        async with places.turn(who):
            having.append(who)
            await asyncio.Event().wait()

    tasks = {name: asyncio.ensure_future(take(name[0])) for name in ("a1", "a2", "a3", "a4", "b1", "c1", "d1")}
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert having == ["a", "a", "b", "c"]
    for name in ("a3", "a1"):  # one that waits, and one that has a place
        tasks[name].cancel()
        await asyncio.gather(tasks[name], return_exceptions=True)
    await asyncio.sleep(0)
    assert having == ["a", "a", "b", "c", "d"]
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
