"""A guest that stood still is let go on whatever happens to who made it stand."""

from __future__ import annotations

import asyncio
from typing import cast

from plasmavmc.guest.api import GuestCard, GuestChannel
from plasmavmc.parts import EngineParts
from plasmavmc.quiesce import SuspendableBackend, go_on
from plasmavmc.types import VmHandle


class Held:
    """A VMM and a guest that take their time to go on."""

    def __init__(self) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()
        self.thawed = False

    async def go_on(self, _handle: VmHandle) -> None:
        self.asked.set()
        await self.answer.wait()

    async def thaw(self, _card: GuestCard) -> None:
        self.thawed = True


class Parts:
    """The time and entropy."""

    def clock(self) -> float:
        return 5.0

    def entropy(self, size: int) -> bytes:
        return bytes(size)


async def test_a_guest_goes_on_however_often_its_order_is_cancelled_meanwhile() -> None:
    held = Held()
    going = asyncio.ensure_future(
        go_on(
            cast("SuspendableBackend", held),
            VmHandle("vm_one", "memory", "", pid=1, start_time=1),
            cast("GuestChannel", held),
            cast("EngineParts", Parts()),
        )
    )
    await held.asked.wait()
    for _ in range(3):
        going.cancel()
        await asyncio.sleep(0)
    assert not going.done()
    held.answer.set()
    await asyncio.gather(going, return_exceptions=True)
    assert (held.thawed, going.cancelled()) == (True, True)
