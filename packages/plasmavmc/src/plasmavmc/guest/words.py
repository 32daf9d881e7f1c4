"""What a guest says of itself: its events in order, and single words that somebody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from plasmavmc.deadlines import within
from plasmavmc.errors import GuestError
from plasmavmc.guest.api import GuestEvent
from plasmavmc.guest.framing import FrameType

HOLD_S = 60.0
"""For a word about holding or letting go: the guest may have to bring much to its disks first."""


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """The block has the time that a guest is given to hold or let go.

    Raises:
        GuestError: `guest-silent`, it took longer.
    """
    try:
        async with within(HOLD_S):
            yield
    except TimeoutError as error:
        raise GuestError("guest-silent", f"the guest did not answer within {HOLD_S:g} s") from error


class Events:
    """A guest's events in order. Cancelling a reader loses none: the next read finds them."""

    def __init__(self, next_event: Callable[[], Awaitable[GuestEvent]]) -> None:
        """`next_event` raises `StopAsyncIteration` at the end."""
        self._next_event = next_event

    def __aiter__(self) -> AsyncIterator[GuestEvent]:
        return self

    async def __anext__(self) -> GuestEvent:
        return await self._next_event()


class Words:
    """Words that answer what was asked, whoever asked; each may be waited for before or after it was said."""

    def __init__(self) -> None:
        self._words: dict[FrameType, asyncio.Future[None]] = {}

    def expect(self, word: FrameType) -> None:
        """It will be said from now on."""
        said = self._words.get(word)
        if said is None or said.done():
            self._words[word] = asyncio.get_running_loop().create_future()

    async def heard(self, word: FrameType) -> None:
        """Return when a word that was expected is said.

        Raises:
            GuestError: `guest-silent`; or what `say` was given.
        """
        async with in_time():
            await asyncio.shield(self._words[word])

    def say(self, word: FrameType, error: GuestError | None) -> bool:
        """The guest said it, or why it cannot. Returns whether it was expected."""
        said = self._words.get(word)
        if said is None or said.done():
            return False
        if error is None:
            said.set_result(None)
        else:
            said.set_exception(error)
            said.exception()  # it may be that nobody waits for it any more
        return True

    def end(self, error: GuestError) -> None:
        """Nothing more will be said."""
        for word in self._words:
            self.say(word, error)
