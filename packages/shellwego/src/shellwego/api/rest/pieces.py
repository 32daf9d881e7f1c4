"""An answer in pieces, each of which is made when the one before was taken; a reader that takes nothing is cut off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.responses import StreamingResponse
from starlette.types import Message, Send

SLOW_S = 30.0
"""A reader that takes nothing for so long is cut off; it can ask again."""


class Pieces(StreamingResponse):
    """As Starlette's, with an end to each wait for the reader."""

    async def stream_response(self, send: Send) -> None:
        """As Starlette does; an answer that was not completed is closed."""

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(SLOW_S):
                    await send(message)
            except TimeoutError:
                raise _TooSlowError from None

        with contextlib.suppress(_TooSlowError):
            await super().stream_response(send_in_time)
        if isinstance(self.body_iterator, AsyncGenerator):
            await self.body_iterator.aclose()


class _TooSlowError(Exception):
    """The reader took nothing for too long."""
