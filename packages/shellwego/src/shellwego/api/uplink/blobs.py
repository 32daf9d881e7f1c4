"""Blobs of images on the node port: `GET /v1/uplink/blobs/<digest>`, all of one or from an offset on (RFC 9110, 14.2)."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator

from aiohttp import web

from shellwego.api.uplink.sending import breaking_off
from shellwego.control.nodeimages import NodeImages, Opened
from shellwego.core.errors import ForbiddenError, MalformedError
from shellwego.core.nodecallers import Caller, EdgeCaller
from shellwego.wire import uplink

STALL_S = 30.0
"""A reader who takes nothing for so long is let go; he can go on where he was."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=([0-9]{1,18})-")


async def send_blob(request: web.BaseRequest, caller: Caller | None, images: NodeImages) -> web.StreamResponse:
    """Answer with a blob; without a caller it is another server that asks.

    Raises:
        ForbiddenError: an edge asks.
        MalformedError: that is no digest, or no range of the blob.
        NotFoundError: see `NodeImages.open`.
        ConnectionError: the blob, or its reader, stopped in the middle; the connection is closed.
    """
    if isinstance(caller, EdgeCaller):
        raise ForbiddenError("uplink-not-a-node", f"{caller.name} is an edge, and builds no images")
    digest = request.path.removeprefix(f"{uplink.BASE}{uplink.BLOBS}")
    asked = request.headers.get("Range")
    found = _RANGE.fullmatch(asked) if asked is not None else None
    if not _DIGEST.fullmatch(digest) or (asked is not None and found is None):
        raise MalformedError("uplink-bad-blob", "a blob is named by its sha256 digest, a range is bytes=N-")
    offset = int(found[1]) if found else 0
    opened = await images.open(caller.node_id if caller else None, digest, offset)
    if offset > opened.size:
        raise MalformedError("uplink-bad-range", f"the blob has {opened.size} bytes, and none from {offset} on")
    return await _send(request, opened, offset)


async def _send(request: web.BaseRequest, opened: Opened, offset: int) -> web.StreamResponse:
    response = web.StreamResponse(status=206 if offset else 200)
    response.content_length = opened.size - offset
    response.content_type = "application/octet-stream"
    response.headers[uplink.PROTOCOL_HEADER] = str(uplink.PROTOCOL)
    if offset:
        response.headers["Content-Range"] = f"bytes {offset}-{max(opened.size - 1, 0)}/{opened.size}"
    with breaking_off(request):
        await response.prepare(request)
        async with _let_go(opened):
            async for chunk in opened.chunks:
                async with asyncio.timeout(STALL_S):
                    await response.write(chunk)
        await response.write_eof()
    return response


@contextlib.asynccontextmanager
async def _let_go(opened: Opened) -> AsyncGenerator[None]:
    """Close the file also where its reader leaves early."""
    try:
        yield
    finally:
        if isinstance(opened.chunks, AsyncGenerator):
            await opened.chunks.aclose()
