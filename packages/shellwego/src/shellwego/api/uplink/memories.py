"""Memories of instances on the node port: `GET /v1/uplink/memories/<instance>`, all of one, for the node that it moves to.

How long it is nobody knows before, and a memory that broke off cannot be gone on with: it is fetched anew. What is whole
its reader tells by what is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import structlog
from aiohttp import web

from shellwego.core.errors import ForbiddenError, MalformedError, UnavailableError
from shellwego.core.ids import is_id
from shellwego.core.nodecallers import Caller, NodeCaller
from shellwego.ports.uplink import Memories
from shellwego.wire import uplink

STALL_S = 30.0
"""A reader who takes nothing for so long, or a sender who sends nothing, is let go."""

_log = structlog.get_logger(__name__)


async def send_memory(request: web.BaseRequest, caller: Caller, memories: Memories) -> web.StreamResponse:
    """Answer with a memory.

    Raises:
        ForbiddenError: an edge asks.
        MalformedError: that is no id of an instance.
        NotFoundError, ConflictError, UnavailableError: see `ports.uplink.Memories`.
        ConnectionError: it, or its reader, stopped in the middle; the connection is closed.
    """
    if not isinstance(caller, NodeCaller):
        raise ForbiddenError("uplink-not-a-node", f"{caller.name} is an edge, and runs no instances")
    instance_id = request.path.removeprefix(f"{uplink.BASE}{uplink.MEMORIES}")
    if not is_id("ins", instance_id):
        raise MalformedError("uplink-bad-memory", "a memory is named by the id of the instance that is to have it")
    async with contextlib.aclosing(memories.memory(caller.node_id, instance_id)) as chunks:
        return await _send(request, await _first(chunks), chunks)


async def _first(chunks: AsyncGenerator[bytes]) -> bytes | None:
    """What can be refused in words is, before anything was sent."""
    try:
        async with asyncio.timeout(STALL_S):
            return await anext(chunks, None)
    except TimeoutError:
        raise UnavailableError("memory-stalled", "the node that has the memory does not send it") from None


async def _send(request: web.BaseRequest, chunk: bytes | None, following: AsyncGenerator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_type = "application/octet-stream"
    response.headers[uplink.PROTOCOL_HEADER] = str(uplink.PROTOCOL)
    response.enable_chunked_encoding()
    try:
        await response.prepare(request)
        while chunk is not None:
            async with asyncio.timeout(STALL_S):
                await response.write(chunk)
                chunk = await anext(following, None)
        await response.write_eof()
    except ConnectionError:
        raise
    except Exception as error:
        _log.warning("uplink.memory_broke", path=request.path, reason=repr(error))
        raise ConnectionError("the memory broke off") from error
    return response
