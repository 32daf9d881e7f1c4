"""What the calls of all services have in common: their errors, their streams, and the ids of their requests."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from plasmavmc.rpc.errors import error_of
from plasmavmc.types import MIB

UPLOAD_CHUNK = MIB
"""Bytes that are sent in one message."""

Answer = TypeVar("Answer")
Metadata = tuple[tuple[str, str], ...]


@contextmanager
def translated() -> Iterator[None]:
    """What the server said, as the engine's errors."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def answers_of(call: grpc.aio.Call, answers: AsyncIterable[Answer]) -> AsyncGenerator[Answer, None]:
    """What a stream tells, as long as somebody reads it: then the call ends, too."""
    try:
        with translated():
            async for answer in answers:
                yield answer
    finally:
        call.cancel()


def request_id_of(given: str) -> str:
    """The id of a request: as it was given, else a new one."""
    return given or secrets.token_hex(16)
