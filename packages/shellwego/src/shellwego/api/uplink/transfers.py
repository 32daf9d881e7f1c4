"""What goes from node to node, on the node port: `GET /v1/uplink/memories/<instance>`, all of one, for the node that it
moves to, and `GET /v1/uplink/replicas/<replica>/<snapshot>[/<since>]`, for the node that keeps a copy of a volume.

How long it is nobody knows before, and what broke off cannot be gone on with: it is fetched anew. What is whole its reader
tells by what is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from aiohttp import web

from shellwego.api.uplink.sending import breaking_off
from shellwego.core.errors import ForbiddenError, MalformedError, UnavailableError
from shellwego.core.ids import is_id
from shellwego.core.nodecallers import Caller, NodeCaller
from shellwego.core.replicas import marked
from shellwego.ports.uplink import Memories, Replicas
from shellwego.wire import uplink

STALL_S = 30.0
"""A reader who takes nothing for so long, or a sender who sends nothing, is let go."""
LOOK_S = 0.5
"""So often it is seen whether the reader is still there, while nothing comes that could be sent."""


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
    return await _pass_on(request, memories.memory(caller.node_id, instance_id))


async def send_replica(request: web.BaseRequest, caller: Caller, replicas: Replicas) -> web.StreamResponse:
    """Answer with a snapshot of a volume.

    Raises:
        ForbiddenError: an edge asks.
        MalformedError: those are no ids of a replica and snapshots.
        NotFoundError, ConflictError, UnavailableError: see `ports.uplink.Replicas`.
        ConnectionError: as `send_memory`.
    """
    if not isinstance(caller, NodeCaller):
        raise ForbiddenError("uplink-not-a-node", f"{caller.name} is an edge, and keeps no volumes")
    replica_id, *snapshots = request.path.removeprefix(f"{uplink.BASE}{uplink.REPLICAS}").split("/")
    if not is_id("rep", replica_id) or len(snapshots) not in (1, 2) or not all(map(_is_snapshot, snapshots)):
        raise MalformedError("uplink-bad-replica", "it is named by a replica, a snapshot, and perhaps an earlier one")
    snapshot_id, since = (*snapshots, "")[:2]
    return await _pass_on(request, replicas.replica(caller.node_id, replica_id, snapshot_id, since))


def _is_snapshot(text: str) -> bool:
    return is_id("snap", text) or marked(text) is not None


async def _pass_on(request: web.BaseRequest, source: AsyncGenerator[bytes]) -> web.StreamResponse:
    async with contextlib.aclosing(source) as chunks:
        return await _send(request, await _first(request, chunks), chunks)


async def _first(request: web.BaseRequest, chunks: AsyncGenerator[bytes]) -> bytes | None:
    """What can be refused in words is, before anything was sent."""
    try:
        return await _next(request, chunks)
    except TimeoutError:
        raise UnavailableError("transfer-stalled", "the node that has it does not send it") from None


async def _send(request: web.BaseRequest, chunk: bytes | None, following: AsyncGenerator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_type = "application/octet-stream"
    response.headers[uplink.PROTOCOL_HEADER] = str(uplink.PROTOCOL)
    response.enable_chunked_encoding()
    with breaking_off(request):
        await response.prepare(request)
        while chunk is not None:
            async with asyncio.timeout(STALL_S):
                await response.write(chunk)
            chunk = await _next(request, following)
        await response.write_eof()
    return response


async def _next(request: web.BaseRequest, chunks: AsyncGenerator[bytes]) -> bytes | None:
    """The next piece; None at the end. A reader that left is not sent to any more, so that it can ask again at once.

    Raises:
        TimeoutError: none comes.
        ConnectionError: the reader left.
    """
    coming = asyncio.ensure_future(anext(chunks, None))
    try:
        async with asyncio.timeout(STALL_S):
            while not coming.done():
                await asyncio.wait({coming}, timeout=LOOK_S)
                if request.transport is None or request.transport.is_closing():
                    raise ConnectionResetError("the reader left")
        return coming.result()
    finally:
        coming.cancel()
        await asyncio.wait({coming})
