"""The stream that confirms hints: in memory, bounded, the last hint of each subject, for a minute."""

from __future__ import annotations

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError

STREAM = "SWG_HINTS"
KEPT_S = 60.0
MOST_BYTES = 16 * 1024 * 1024
_TIMEOUT_S = 3.0


class _Problem(msgspec.Struct):
    description: str = ""


class _Answer(msgspec.Struct):
    error: _Problem | None = None


async def ensure_stream(client: Client, subjects: str) -> None:
    """Make the stream, or bring it to what is said here.

    Raises:
        nats.errors.Error: the server has no JetStream for us, or does not answer.
    """
    stream = client.jetstream(timeout=_TIMEOUT_S)
    wanted = StreamConfig(
        name=STREAM,
        subjects=[subjects],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.MEMORY,
        max_age=KEPT_S,
        max_bytes=MOST_BYTES,
        max_msgs_per_subject=1,
        duplicate_window=KEPT_S,
    )
    try:
        await stream.add_stream(wanted)
    except BadRequestError:  # there is one that was made otherwise
        await stream.update_stream(wanted)


def refusal(answer: Msg) -> str:
    """Why the stream did not take a hint; empty: it did."""
    if answer.headers and answer.headers.get("Status") == "503":
        return "the bus has no stream for hints"
    try:
        problem = msgspec.json.decode(answer.data, type=_Answer).error
    except msgspec.DecodeError:
        return "the bus gave an answer that is none"
    return problem.description or "refused" if problem is not None else ""
