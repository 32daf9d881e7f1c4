"""What guests wrote, on the node's disk: per VM a directory of segments with a budget, kept for a while after the VM.

Theory. A guest numbers all bytes of its workload's output and keeps them until the host acknowledges; after a restart of
the host's side it sends what was not acknowledged again. So each line is stored with the number of its last byte: what
comes a second time is recognised by that number, per stream, and dropped. The end of the last whole line of *both*
streams is what may be acknowledged.

The app never waits for us: where the disk is full, output is dropped and counted, and acknowledged all the same.

Format of a line: `<seconds> <stream letter> <end offset> <text>`, undecodable bytes replaced, one newline at the end.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from plasmavmc.types import MIB, LogLine, LogStream

MAX_LINE = 16 * 1024
SEGMENT_BYTES = 8 * MIB
BUDGET_BYTES = 64 * MIB
KEPT_S = 24 * 3600.0
_LETTERS = {LogStream.STDOUT: "o", LogStream.STDERR: "e", LogStream.SYSTEM: "s"}
_STREAMS = {letter: stream for stream, letter in _LETTERS.items()}


@dataclass(slots=True)
class _Stream:
    """One stream's state: where it was stored up to, and the beginning of an unfinished line."""

    stored: int = 0
    partial: bytearray = field(default_factory=bytearray)
    end: int = 0
    """Number of the byte after the last one in `partial`."""


@dataclass(frozen=True, slots=True)
class _Stored:
    line: LogLine
    offset: int


def _parse(raw: str) -> _Stored | None:
    """A stored line; None for a torn one (the disk was full, the host went down)."""
    parts = raw.split(" ", 3)
    if len(parts) != 4 or parts[1] not in _STREAMS:
        return None
    try:
        return _Stored(LogLine(float(parts[0]), _STREAMS[parts[1]], parts[3]), int(parts[2]))
    except ValueError:
        return None


class VmLog:
    """The log of one VM. Writing is synchronous and small; reading opens the files afresh."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time, budget: int = BUDGET_BYTES) -> None:
        self._directory = directory
        self._clock = clock
        self._budget = budget
        self._segment_bytes = min(SEGMENT_BYTES, max(budget // 8, 1))
        self._streams = {LogStream.STDOUT: _Stream(), LogStream.STDERR: _Stream()}
        self._expected = 0
        self._lost_bytes = 0
        self._lines_written = 0
        self._changed = asyncio.Event()
        self.closed = False
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._restore()

    def _restore(self) -> None:
        for stored in self._stored():
            stream = self._streams.get(stored.line.stream)
            if stream is not None:
                stream.stored = max(stream.stored, stored.offset)
        self._expected = max(stream.stored for stream in self._streams.values())

    def write(self, stream: LogStream, offset: int, data: bytes) -> None:
        """Take output whose first byte has this number; what is known already is dropped."""
        state = self._streams[stream]
        end = offset + len(data)
        known = max(state.stored, state.end)
        if end <= known:
            return
        if offset > self._expected:
            self._append(
                LogStream.SYSTEM, offset, f"{offset - self._expected} bytes of output were dropped by the guest"
            )
        self._expected = max(self._expected, end)
        fresh = data[max(0, known - offset) :]
        state.partial += fresh
        state.end = end
        self._cut_lines(stream, state)

    def _cut_lines(self, stream: LogStream, state: _Stream) -> None:
        *whole, rest = bytes(state.partial).split(b"\n")
        position = state.end - len(state.partial)
        for line in whole:
            position += len(line) + 1
            self._append_long(stream, position, line)
        while len(rest) >= MAX_LINE:
            position += MAX_LINE
            self._append_long(stream, position, rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        state.partial = bytearray(rest)

    def _append_long(self, stream: LogStream, end: int, line: bytes) -> None:
        for start in range(0, max(len(line), 1), MAX_LINE):
            self._append(stream, end, line[start : start + MAX_LINE].decode("utf-8", "replace").rstrip("\r"))

    def begin_at(self, offset: int) -> None:
        """What the guest wrote before this number belongs to another's log; only where this one holds nothing yet."""
        if self._expected == 0:
            self._expected = offset

    def note(self, text: str) -> None:
        """A line of the platform itself."""
        self._append(LogStream.SYSTEM, 0, text)

    def flush(self) -> None:
        """Store unfinished lines (a prompt, the last words before an end)."""
        for stream, state in self._streams.items():
            if state.partial:
                self._append_long(stream, state.end, bytes(state.partial))
                state.partial.clear()

    @property
    def acknowledged(self) -> int:
        """All output before this number is stored."""
        pending = [state.end - len(state.partial) for state in self._streams.values() if state.partial]
        return min(pending, default=self._expected)

    @property
    def has_partial(self) -> bool:
        """An unfinished line waits to be stored."""
        return any(state.partial for state in self._streams.values())

    def _append(self, stream: LogStream, offset: int, text: str) -> None:
        text = text.replace("\n", " ")
        raw = f"{self._clock():.3f} {_LETTERS[stream]} {offset} {text}\n".encode()
        if stream in self._streams:
            self._streams[stream].stored = max(self._streams[stream].stored, offset)
        try:
            with self._writable(len(raw)).open("ab") as segment:
                segment.write(raw)
        except OSError:
            self._lost_bytes += len(raw)
            return
        self._lines_written += 1
        self._changed.set()
        if self._lost_bytes and stream is not LogStream.SYSTEM:
            lost, self._lost_bytes = self._lost_bytes, 0
            self._append(LogStream.SYSTEM, 0, f"{lost} bytes of log were lost: the node's disk was full")

    def _segments(self) -> list[Path]:
        return sorted(self._directory.glob("*.log"))

    def _writable(self, room: int) -> Path:
        """The segment to append to; begins a new one and drops the oldest where the budget asks for it."""
        segments = self._segments()
        if segments and segments[-1].stat().st_size + room <= self._segment_bytes:
            return segments[-1]
        number = int(segments[-1].stem) + 1 if segments else 1
        keep = max(self._budget // self._segment_bytes - 1, 1)
        for oldest in segments[:-keep]:
            oldest.unlink(missing_ok=True)
        return self._directory / f"{number:08d}.log"

    def _stored(self) -> Iterator[_Stored]:
        for segment in self._segments():
            try:
                with segment.open(encoding="utf-8", errors="replace", newline="\n") as lines:
                    for raw in lines:
                        stored = _parse(raw.rstrip("\n"))
                        if stored is not None:
                            yield stored
            except FileNotFoundError:
                continue

    def tail(self, count: int, since: float = 0.0) -> list[LogLine]:
        """The last lines, oldest first, not older than `since`."""
        if count <= 0:
            return []
        return list(deque((stored.line for stored in self._stored() if stored.line.time >= since), maxlen=count))

    def close(self) -> None:
        """No more will be written; followers end."""
        self.flush()
        self.closed = True
        self._changed.set()

    async def follow(self, tail: int, since: float = 0.0) -> AsyncIterator[LogLine]:
        """The last lines, then new ones until the log is closed and read."""
        cursor = _Cursor(self._directory)
        for line in deque((line for line in cursor.fresh() if line.time >= since), maxlen=max(tail, 0)):
            yield line
        while True:
            self._changed.clear()
            closed = self.closed
            for line in cursor.fresh():
                yield line
            if closed:
                return
            await self._changed.wait()


class _Cursor:
    """Where a follower is: segment and byte position; a segment that was dropped meanwhile is passed over."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._segment = ""
        self._position = 0

    def fresh(self) -> Iterator[LogLine]:
        """Whole lines that came since the last call."""
        for segment in sorted(self._directory.glob("*.log")):
            if segment.name < self._segment:
                continue
            if segment.name != self._segment:
                self._segment, self._position = segment.name, 0
            yield from self._read(segment)

    def _read(self, segment: Path) -> Iterator[LogLine]:
        try:
            with segment.open("rb") as stream:
                stream.seek(self._position)
                for raw in stream:
                    if not raw.endswith(b"\n"):
                        return
                    self._position += len(raw)
                    stored = _parse(raw[:-1].decode("utf-8", "replace"))
                    if stored is not None:
                        yield stored.line
        except FileNotFoundError:
            return


class LogStore:
    """The logs of all VMs of a node, by VM key."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._clock = clock
        self._logs: dict[str, VmLog] = {}
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def open(self, key: str) -> VmLog:
        """The log of a VM, made where it is missing."""
        if key not in self._logs:
            self._logs[key] = VmLog(self._root / key, clock=self._clock)
        return self._logs[key]

    def find(self, key: str) -> VmLog | None:
        """The log of a VM, if one exists; that of an ended VM is closed already."""
        if key not in self._logs and (self._root / key).is_dir():
            self.open(key).close()
        return self._logs.get(key)

    def sweep(self, living: frozenset[str]) -> int:
        """Remove the logs of VMs that ended long ago; returns how many."""
        removed = 0
        for directory in self._root.iterdir():
            if directory.name in living or self._clock() - _last_change(directory) < KEPT_S:
                continue
            shutil.rmtree(directory, ignore_errors=True)
            self._logs.pop(directory.name, None)
            removed += 1
        return removed


def _last_change(directory: Path) -> float:
    return max((path.stat().st_mtime for path in directory.iterdir()), default=directory.stat().st_mtime)
