"""Bodies of calls: read within a size and a time, and few large ones at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TypeVar

from aiohttp import web

from shellwego.core.errors import MalformedError, UnavailableError
from shellwego.wire.codec import decode

T = TypeVar("T")

BODY_S = 10.0
LARGE = 1 << 20
LARGE_BODY_S = 30.0
LARGE_AT_ONCE = 8
"""Bodies beyond `LARGE` bytes that are held at a time, whoever sends them."""


class Bodies:
    """Reads bodies for one server."""

    def __init__(self, body_s: float = BODY_S, large_body_s: float = LARGE_BODY_S) -> None:
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._body_s = body_s
        self._large_body_s = large_body_s

    async def read(self, request: web.BaseRequest, kind: type[T], limit: int) -> T:
        """The body of a request, which is of this kind and has at most `limit` bytes.

        Raises:
            MalformedError: it is not, is too long, of unknown length, encoded, or did not come in time.
            UnavailableError: too many large ones wait already.
        """
        length = request.content_length
        if length is None or "Content-Encoding" in request.headers:
            raise MalformedError("uplink-length-missing", "a call has a body as it is, and tells its length")
        if length > limit:
            raise MalformedError("uplink-body-too-large", f"a body has {length} bytes, and may have {limit}")
        large = length > LARGE
        try:
            async with asyncio.timeout(self._large_body_s if large else self._body_s):
                async with self._large if large else contextlib.nullcontext():
                    data = await self._receive(request, length)
        except TimeoutError:
            if large and self._large.locked():
                raise UnavailableError("uplink-busy", "the server reads other large bodies now") from None
            raise MalformedError("uplink-body-too-slow", "a body did not come in time") from None
        try:
            return decode(kind, data)
        except ValueError as error:
            raise MalformedError("uplink-malformed", f"a body is no {kind.__name__}: {error}") from None

    async def _receive(self, request: web.BaseRequest, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = await request.content.readany()
            if not piece:
                raise MalformedError("uplink-body-cut", "a body ended before its length")
            data += piece
        return bytes(data)
