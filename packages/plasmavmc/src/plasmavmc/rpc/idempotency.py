"""The same write twice: the answer of the first.

Theory. A client gives each write an id of its choice. An id that was answered with the same request gives the same answer
again, with another request an error. While the first still runs, a second waits for it. Failures are not kept: what
failed has changed nothing, and a repetition tries again.

What was begun is carried to its end though nobody waits any more, for a stop that is cut in half helps nobody; only where
`abandon` is set is it cancelled with its last caller, and who asks again before it has ended begins anew then. So it counts
for itself, and not by the call, which ends with its caller: one principal has so many under way, as many as its calls can
be, and all together as many as all calls.

Bounds: a day, and for each principal so many answers and bytes, oldest first. Answers live in memory: a restarted server
knows none. Ids that the server chooses for a request are made from its request id (`identifiers.py`), so a repeated
create finds its VM even then.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from plasmavmc.errors import ConflictError, InvalidSpecError, NotFoundError, UnavailableError
from plasmavmc.rpc.access import Request
from plasmavmc.rpc.gate import CALLS, CALLS_EACH, STREAMS, STREAMS_EACH, Call, current_call
from plasmavmc.rpc.shares import Shares
from plasmavmc.types import MIB

Answer = TypeVar("Answer", bound=Message)

KEPT_S = 24 * 3600.0
MAX_ANSWERS = 1000
MAX_BYTES = 16 * MIB
MAX_ID = 128
WRITES_EACH, WRITES = CALLS_EACH + STREAMS_EACH, CALLS + STREAMS
"""Under way at once: of one principal, and of all."""


@dataclass(slots=True)
class _Work:
    """Something under way, and who waits for it."""

    call: Call
    """The first caller's, which did the asking."""
    digest: bytes
    task: asyncio.Task[Message]
    waiting: int = 0
    given_up: bool = False
    """Cancelled with its last caller; it may take a while to end."""


@dataclass(frozen=True, slots=True)
class _Kept:
    digest: bytes
    answer: Message
    asked: tuple[Request, ...]
    """What the first had to be allowed; a repetition must be allowed it still."""
    size: int
    at: float


@dataclass(slots=True)
class _Book:
    """One principal's."""

    kept: OrderedDict[tuple[str, str], _Kept] = field(default_factory=OrderedDict)
    running: dict[tuple[str, str], _Work] = field(default_factory=dict)
    size: int = 0

    def keep(self, key: tuple[str, str], kept: _Kept) -> None:
        self.kept[key] = kept
        self.size += kept.size

    def drop_oldest(self) -> None:
        _, dropped = self.kept.popitem(last=False)
        self.size -= dropped.size

    def trim(self, now: float) -> None:
        while self.kept and (
            len(self.kept) > MAX_ANSWERS or self.size > MAX_BYTES or now - next(iter(self.kept.values())).at > KEPT_S
        ):
            self.drop_oldest()


class Answers:
    """See the module's head. One per server, shared by all its listeners. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._books: dict[str, _Book] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._shares = Shares("writes under way", each=WRITES_EACH, most=WRITES)

    async def once(self, request: Message, work: Callable[[], Awaitable[Answer]], *, abandon: bool = False) -> Answer:
        """The answer to a request with a `request_id`, by `work` or by an earlier call.

        Raises:
            InvalidSpecError: the id is too long or not printable.
            ConflictError: `request-id-reused`.
            CapacityError: `too-many` are under way, though perhaps nobody waits for them any more.
            What `work` raises.
        """
        call = current_call()
        request_id = _checked_id(str(getattr(request, "request_id", "")))
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        if not request_id:
            return cast("Answer", await self._attend(self._begin(call, digest, work), abandon))
        key = (request.DESCRIPTOR.full_name, request_id)
        book = self._books.setdefault(call.principal.id, _Book())
        while (left := book.running.get(key)) is not None and left.given_up:
            await asyncio.wait([left.task])
        book.trim(self._clock())
        kept = book.kept.get(key)
        if kept is not None:
            _check_same(kept.digest, digest, request_id)
            await _allow_again(call, kept.asked)
            return cast("Answer", kept.answer)
        under_way = book.running.get(key)
        if under_way is not None:
            _check_same(under_way.digest, digest, request_id)
            answer = await self._attend(under_way, abandon)
            await _allow_again(call, under_way.call.asked)
            return cast("Answer", answer)
        begun = self._begin(call, digest, work)
        book.running[key] = begun
        begun.task.add_done_callback(lambda _task: self._note(book, key, begun))
        return cast("Answer", await self._attend(begun, abandon))

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, call: Call, digest: bytes, work: Callable[[], Awaitable[Message]]) -> _Work:
        give_back = self._shares.take(call.principal.id)

        async def run() -> Message:
            return await work()

        task = asyncio.create_task(run(), name="write")
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        task.add_done_callback(lambda _task: give_back())
        return _Work(call, digest, task)

    def _forget(self, task: asyncio.Task[Message]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at: nobody may be left who waits for it

    async def _attend(self, work: _Work, abandon: bool) -> Message:
        """Wait for work. Where the waiting is cancelled the work goes on, or, with the last one, ends."""
        work.waiting += 1
        try:
            await asyncio.wait([work.task])
        finally:
            work.waiting -= 1
            if abandon and work.waiting == 0 and not work.task.done():
                work.given_up = True
                work.task.cancel()
                await asyncio.wait([work.task])
        if work.task.cancelled():
            raise UnavailableError("server-ending", "the server is about to end", resolution="Try again.")
        return work.task.result()

    def _note(self, book: _Book, key: tuple[str, str], work: _Work) -> None:
        del book.running[key]
        if not work.task.cancelled() and work.task.exception() is None:
            answer = work.task.result()
            book.keep(key, _Kept(work.digest, answer, tuple(work.call.asked), answer.ByteSize(), self._clock()))
            book.trim(self._clock())


def _checked_id(request_id: str) -> str:
    if len(request_id) > MAX_ID or not request_id.isprintable():
        raise InvalidSpecError("request_id", f"at most {MAX_ID} printable characters are taken")
    return request_id


def _check_same(first: bytes, second: bytes, request_id: str) -> None:
    if first != second:
        raise ConflictError(
            "request-id-reused",
            f"the request id {request_id!r} was used for another request",
            resolution="Give each new request an id of its own.",
        )


async def _allow_again(call: Call, asked: Sequence[Request]) -> None:
    await call.admit_all(asked, absent=NotFoundError("answer-not-found", "what was asked for is not there any more"))
