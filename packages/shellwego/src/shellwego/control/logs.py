"""The logs of an app's instances, told as one.

Theory. Each instance has a log of its own on its node, in the order of its time. The last lines of several are read side by
side and kept in one heap of as many lines as were asked for, and of `MAX_TEXT` in all, so the memory is that of the answer
and not of the logs. Who follows gets these last lines first, in the order of their time, then each line as it comes: each
instance is read on from its last line that was seen. A node tells all lines from a moment on, that moment's included; what
was seen is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from shellwego.control.events import changes
from shellwego.control.scopes import missing
from shellwego.control.streams import open_stream, records
from shellwego.control.unit import Control
from shellwego.core.errors import NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.instances import Instance
from shellwego.ports.engine import LogRecord
from shellwego.ports.streams import StreamKind, StreamRequest, Streams
from shellwego.wire import codec, subjects
from shellwego.wire.streams import Record, RecordKind

MAX_TAIL = 10_000
MAX_TEXT = 8 * 1024 * 1024
"""Characters of the last lines; a line has up to 15,000, and many may ask at once."""
LAST_LINES_S = 3.0
"""Who follows waits so long for the last lines of all instances; those of slower nodes come when they come."""
AWAY_S = 10.0
"""So long the last lines of an instance that has ended are asked for where its node does not tell them; it may be gone."""
_NO_INSTANCE = missing("instance", "").code
_QUEUE = 256
"""Lines read ahead of a slow reader; beyond it the streams are not read, and wait."""
_MOST_OF_A_MOMENT = 1000

Look = Callable[[], Awaitable[list[Instance]]]


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line, and who wrote it."""

    instance_id: str
    process: str
    record: LogRecord


@dataclass(frozen=True, slots=True)
class LogQuery:
    tail: int = 100
    since: float = 0.0
    instance_id: str = ""
    process: str = ""


async def read_log(streams: Streams, instance: Instance, query: LogQuery, *, follow: bool) -> AsyncGenerator[LogLine]:
    """The lines of one instance, oldest first; raises as `streams.records`."""
    request = StreamRequest(
        kind=StreamKind.LOGS,
        instance_id=instance.id,
        attempt=instance.observed.attempt,
        follow=follow,
        tail=query.tail,
        since=query.since,
    )
    stream = await open_stream(streams, instance, request)
    try:
        async with contextlib.aclosing(records(stream)) as incoming:
            async for record in incoming:
                if record.kind is RecordKind.LOG:
                    yield LogLine(instance.id, instance.process, _parse(record))
    finally:
        await stream.aclose()


def _parse(record: Record) -> LogRecord:
    try:
        return codec.decode(LogRecord, record.payload)
    except (ValueError, msgspec.DecodeError):
        raise UnavailableError("stream-broken", "the node sent what is not a log line") from None


def _moment(record: LogRecord) -> float:
    """When it was written; a node may say anything."""
    return record.time if math.isfinite(record.time) else 0.0


class _Newest:
    """The newest of the lines that are added, at most so many, and of so many characters; those of one moment as they were
    added. Nothing is kept that is older than what was left out."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._added = 0
        self._text = 0
        self._heap: list[tuple[float, int, LogLine]] = []
        self._left_out = (-math.inf, 0)

    def add(self, line: LogLine) -> None:
        self._added += 1
        entry = (_moment(line.record), self._added, line)
        if entry[:2] < self._left_out:
            return
        heapq.heappush(self._heap, entry)
        self._text += len(line.record.text)
        while len(self._heap) > self._most or self._text > MAX_TEXT:
            moment, added, oldest = heapq.heappop(self._heap)
            self._text -= len(oldest.record.text)
            self._left_out = (moment, added)

    def in_order(self) -> list[LogLine]:
        """Oldest first."""
        return [line for _, _, line in sorted(self._heap)]


async def read_logs(streams: Streams, instances: list[Instance], query: LogQuery) -> list[LogLine]:
    """The last lines of several instances in the order of their time. One that has no VM (any more, or yet) has no lines;
    one that cannot be reached is left out, unless none can: then `UnavailableError` says why."""
    newest = _Newest(query.tail)
    reading = (_read_into(newest, streams, instance, query) for instance in instances)
    gathered = await asyncio.gather(*reading, return_exceptions=True)
    failures = [result for result in gathered if isinstance(result, BaseException)]
    unexpected = [failure for failure in failures if not isinstance(failure, ShellWeGoError)]
    if unexpected or (failures and len(failures) == len(instances)):
        raise (unexpected or failures)[0]
    return newest.in_order()


async def _read_into(newest: _Newest, streams: Streams, instance: Instance, query: LogQuery) -> None:
    with contextlib.suppress(NotFoundError):
        async with contextlib.aclosing(read_log(streams, instance, query, follow=False)) as lines:
            async for line in lines:
                newest.add(line)


@dataclass(slots=True)
class _Seen:
    """How far the log of one instance was read: the moment of its last line, and the lines of that moment."""

    moment: float | None = None
    _last: Counter[LogRecord] = field(default_factory=Counter)
    _again: Counter[LogRecord] = field(default_factory=Counter)

    def onwards(self, query: LogQuery) -> LogQuery:
        """The query that goes on from here; its first lines may be those that were seen."""
        self._again = Counter(self._last)
        return query if self.moment is None else replace(query, since=self.moment, tail=MAX_TAIL)

    def is_new(self, record: LogRecord) -> bool:
        """Take note of a line. False where it was seen before the query."""
        if self._again[record] > 0:
            self._again[record] -= 1
            return False
        if _moment(record) != self.moment or len(self._last) >= _MOST_OF_A_MOMENT:
            self.moment = _moment(record)
            self._last.clear()
        self._last[record] += 1
        return True


class LogFollower:
    """The lines of all instances that `look` gives, those that appear later included: the last ones in the order of their
    time, then as they are written. Of one instance that is named in the query, until it has ended, or is forgotten, and all
    was read; where its node is away, and not all could be, the last line says so."""

    def __init__(self, control: Control, streams: Streams, query: LogQuery) -> None:
        self._control = control
        self._streams = streams
        self._query = query
        self._lines: asyncio.Queue[LogLine] = asyncio.Queue(_QUEUE)
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, _Seen] = {}
        self._known: set[str] = set()
        """Those that are neither forgotten nor hidden by newer ones."""
        self._live: set[str] = set()

    async def lines(self, app_id: str, look: Look) -> AsyncGenerator[LogLine]:
        """Go on until the reader leaves, or `look` raises, or there can be no more."""
        watcher = asyncio.ensure_future(self._watch(app_id, look))
        try:
            while not (watcher.done() and self._lines.empty()):
                line = asyncio.ensure_future(self._lines.get())
                await asyncio.sleep(0)  # a line that is there already is taken, even after the watcher has ended
                await asyncio.wait({line, watcher}, return_when=asyncio.FIRST_COMPLETED)
                if line.done():
                    yield line.result()
                line.cancel()
            await watcher
        finally:
            tasks = [watcher, *self._readers.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, app_id: str, look: Look) -> None:
        query = self._query
        async with contextlib.aclosing(changes(self._control, subjects.app(app_id))) as ticks:
            async for _ in ticks:
                found = await self._found(look)
                if found is None:
                    continue
                if query is self._query and len(found) > 1:
                    await self._tell_last_lines(found)
                self._known = {instance.id for instance in found}
                self._live = {instance.id for instance in found if instance.live}
                for instance in found:
                    if instance.id not in self._readers:
                        self._readers[instance.id] = asyncio.ensure_future(self._read(instance, query))
                query = replace(self._query, tail=MAX_TAIL)
                if self._over():
                    return

    async def _found(self, look: Look) -> list[Instance] | None:
        """None: the store does not answer now, so nothing is known to be another."""
        try:
            return await look()
        except ShellWeGoError as error:
            if self._query.instance_id and error.code == _NO_INSTANCE:
                return []
            if error.temporary:
                return None
            raise

    async def _tell_last_lines(self, instances: list[Instance]) -> None:
        """What the instances wrote so far, as one; a log that cannot be read now is left to its reader."""
        newest = _Newest(self._query.tail)
        reading = [asyncio.ensure_future(self._read_last(newest, instance)) for instance in instances]
        alarm = asyncio.ensure_future(self._control.clock.sleep(LAST_LINES_S))
        try:
            waited: list[asyncio.Future[Any]] = [asyncio.gather(*reading, return_exceptions=True), alarm]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*reading, alarm):
                task.cancel()
            await asyncio.gather(*reading, alarm, return_exceptions=True)
        for line in newest.in_order():
            await self._lines.put(line)

    async def _read_last(self, newest: _Newest, instance: Instance) -> None:
        seen = self._seen.setdefault(instance.id, _Seen())
        async with contextlib.aclosing(read_log(self._streams, instance, self._query, follow=False)) as lines:
            async for line in lines:
                seen.is_new(line.record)
                newest.add(line)

    def _over(self) -> bool:
        one = self._query.instance_id
        reader = self._readers.get(one)
        return bool(one) and one not in self._live and (reader is None or reader.done())

    async def _read(self, instance: Instance, query: LogQuery) -> None:
        """One instance until its end. A node that cannot be reached, or has no VM of it yet, is asked again; so is one whose
        log ended before the instance did, such as that of an agent that has just begun. Once the instance has ended its node
        may be gone with it, so it is asked for a while only; and not at all once the instance is forgotten."""
        seen = self._seen.setdefault(instance.id, _Seen())
        until = math.inf
        while True:
            trouble: ShellWeGoError | None = None
            onwards = seen.onwards(query)
            try:
                async with contextlib.aclosing(read_log(self._streams, instance, onwards, follow=True)) as lines:
                    async for line in lines:
                        if seen.is_new(line.record):
                            await self._lines.put(line)
            except ShellWeGoError as error:
                trouble = error
            now = self._control.clock.monotonic()
            until = math.inf if instance.id in self._live else min(until, now + AWAY_S)
            if not self._is_asked_again(instance.id, trouble, late=now >= until):
                break
            await self._control.clock.sleep(1.0)
        if trouble is not None and trouble.temporary and self._query.instance_id:
            await self._lines.put(self._unread(instance, trouble))

    def _is_asked_again(self, id_: str, trouble: ShellWeGoError | None, *, late: bool) -> bool:
        if id_ in self._live:
            return trouble is None or trouble.temporary or isinstance(trouble, NotFoundError)
        return trouble is not None and trouble.temporary and id_ in self._known and not late

    def _unread(self, instance: Instance, trouble: ShellWeGoError) -> LogLine:
        words = f"the instance has ended, and the rest of its log cannot be read now: {trouble.message}"
        record = LogRecord(time=self._control.clock.now(), stream="system", text=words)
        return LogLine(instance.id, instance.process, record)
