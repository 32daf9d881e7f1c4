"""What guests wrote, on the node's disk: per VM a directory of segments with a budget, kept for a while after the VM.

Theory. A guest numbers all bytes of its workload's output and keeps them until the host acknowledges; after a restart of
the host's side it sends what was not acknowledged again. So each line is stored with the number of its last byte: what
comes a second time is recognised by that number, per stream, and dropped. The end of the last whole line of *both*
streams is what may be acknowledged.

The app never waits for us: where the disk is full, output is dropped and counted, and acknowledged all the same.

Trap: one frame of a guest may hold 65,536 lines, and all guests share one event loop with the API. So what one call brings
is written with as few calls to the disk as segments allow, and the last lines are found from the end.

Trap: who reads a log may stop in its middle, and many may do so at once. So nothing but a place in a file is kept for a
reader.

A log is its VM's owner's. An id is free again once its VM is gone, and the next VM of it may be another project's: so the
owner is noted beside the segments, and only a VM of the same one goes on with a log. What an older engine left without
that note is nobody's.

Trap: who reads a log that was set aside for another's goes on in its files, not in the new ones of the same names.

Format of a line: `<seconds> <stream letter> <end offset> <text>`, undecodable bytes replaced, one newline at the end. A
line of ours with the offset -1 says that a new run begins, whose guest numbers from 0 again.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec

from plasmavmc.errors import HostError
from plasmavmc.types import MIB, LogLine, LogStream, Scope

MAX_LINE = 16 * 1024
SEGMENT_BYTES = 8 * MIB
BUDGET_BYTES = 64 * MIB
KEPT_S = 24 * 3600.0
_ASIDE = "."
"""Before the name of a directory that is being removed; no key begins so."""
_OWNER = "owner"
"""The file beside the segments that says whose the log is."""
_NEW_RUN = -1
_NEW_RUN_TEXT = "a new run of this VM begins"
_MAX_RUNS_LOOKED_AT = 100
_LETTERS = {LogStream.STDOUT: "o", LogStream.STDERR: "e", LogStream.SYSTEM: "s"}
_STREAMS = {letter: stream for stream, letter in _LETTERS.items()}


@dataclass(slots=True)
class _Stream:
    """One stream's state: where it was stored up to, and the beginning of an unfinished line."""

    stored: int = 0
    partial: bytearray = field(default_factory=bytearray)
    end: int = 0
    """Number of the byte after the last one in `partial`."""


_ENDS = {
    stream: re.compile(rb"^[0-9]+\.[0-9]{3} %c ([0-9]{1,19}) " % letter.encode(), re.MULTILINE)
    for letter, stream in _STREAMS.items()
}
"""The numbers of the last bytes of a stream's lines, in the content of a segment."""
_RESTORED_SEGMENTS = 5
"""A guest keeps at most 1 MiB; as lines of one byte each that is 40 MiB here."""
_NEAR_END = 64 * 1024
_AT_ONCE = 16
"""Lines that are read before others get their turn."""
_Line = tuple[LogStream, int, str]
"""Stream, number of the byte after the line, text."""


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


def _pieces(stream: LogStream, end: int, line: bytes) -> Iterator[_Line]:
    """A line, cut where it is too long."""
    for start in range(0, max(len(line), 1), MAX_LINE):
        yield stream, end, line[start : start + MAX_LINE].decode("utf-8", "replace").rstrip("\r")


def _content(segment: Path) -> bytes:
    """All of it; nothing where the budget has just taken it."""
    try:
        return segment.read_bytes()
    except FileNotFoundError:
        return b""


def _start_of_run(data: bytes) -> int:
    """Where the last line stands that says that a new run begins; 0 where none does. An app that writes the same words
    without end is not followed: it hurts its own log."""
    mark = f" {_LETTERS[LogStream.SYSTEM]} {_NEW_RUN} {_NEW_RUN_TEXT}\n".encode()
    position = len(data)
    for _ in range(_MAX_RUNS_LOOKED_AT):
        position = data.rfind(mark, 0, position)
        if position < 0:
            break
        start = data.rfind(b"\n", 0, position) + 1
        if data[start:position].replace(b".", b"").isdigit():
            return start
    return 0


def _from_end(segment: Path, count: int) -> Iterator[tuple[int, _Stored]]:
    """At most so many of its lines and where each begins, the last one first."""
    data = _content(segment)
    end = len(data)
    while count > 0 and end > 0:
        start = data.rfind(b"\n", 0, end - 1) + 1
        stored = _parse(data[start:end].decode("utf-8", "replace").rstrip("\n"))
        end = start
        if stored is not None:
            count -= 1
            yield start, stored


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
        self._changed = asyncio.Event()
        self.closed = False
        with suppress(OSError):  # it is made with the first line that the disk takes
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._restore()

    def _restore(self) -> None:
        """Find where each stream of this run was stored up to. What the guest may send again is younger than the segments
        looked at."""
        missing = dict(self._streams)
        for segment in reversed(self._segments()[-_RESTORED_SEGMENTS:]):
            content = _content(segment)
            data = content[_start_of_run(content) :]
            for part in (data[-_NEAR_END:], data):
                for stream in list(missing):
                    if ends := _ENDS[stream].findall(part):
                        missing.pop(stream).stored = int(ends[-1])
            if len(data) < len(content):
                break
        self._expected = max(stream.stored for stream in self._streams.values())

    def write(self, stream: LogStream, offset: int, data: bytes) -> None:
        """Take output whose first byte has this number; what is known already is dropped."""
        state = self._streams[stream]
        end = offset + len(data)
        known = max(state.stored, state.end)
        if end <= known:
            return
        lines: list[_Line] = []
        if offset > self._expected:
            dropped = f"{offset - self._expected} bytes of output were dropped by the guest"
            lines.append((LogStream.SYSTEM, offset, dropped))
        self._expected = max(self._expected, end)
        fresh = data[max(0, known - offset) :]
        state.partial += fresh
        state.end = end
        lines += self._cut_lines(stream, state)
        self._append(lines)

    def _cut_lines(self, stream: LogStream, state: _Stream) -> Iterator[_Line]:
        *whole, rest = bytes(state.partial).split(b"\n")
        position = state.end - len(state.partial)
        for line in whole:
            position += len(line) + 1
            yield from _pieces(stream, position, line)
        while len(rest) >= MAX_LINE:
            position += MAX_LINE
            yield from _pieces(stream, position, rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        state.partial = bytearray(rest)

    def begin_anew(self) -> None:
        """Another run of the same VM: what comes is numbered from 0 again, and the log is open."""
        self.flush()
        self._streams = {each: _Stream() for each in self._streams}
        self._expected = 0
        self._append([(LogStream.SYSTEM, _NEW_RUN, _NEW_RUN_TEXT)])
        self.closed = False

    def begin_at(self, offset: int) -> None:
        """What the guest wrote before this number belongs to another's log; only where this one holds nothing yet."""
        if self._expected == 0:
            self._expected = offset

    def note(self, text: str) -> None:
        """A line of the platform itself."""
        self._append([(LogStream.SYSTEM, 0, text)])

    def flush(self) -> None:
        """Store unfinished lines (a prompt, the last words before an end)."""
        for stream, state in self._streams.items():
            if state.partial:
                self._append(_pieces(stream, state.end, bytes(state.partial)))
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

    def _append(self, lines: Iterable[_Line]) -> None:
        """Store lines; what the disk does not take is counted, and told once it takes something again."""
        now = f"{self._clock():.3f}"
        raws = []
        for stream, offset, text in lines:
            raws.append(f"{now} {_LETTERS[stream]} {offset} {text.replace(chr(10), ' ')}\n".encode())
            if stream in self._streams:
                self._streams[stream].stored = max(self._streams[stream].stored, offset)
        lost_before = self._lost_bytes
        self._write(raws)
        if self._lost_bytes and self._lost_bytes == lost_before and raws:
            self._lost_bytes = 0
            self._append([(LogStream.SYSTEM, 0, f"{lost_before} bytes of log were lost: the node's disk was full")])

    def _write(self, raws: list[bytes]) -> None:
        """Fill segments one after the other."""
        start = 0
        while start < len(raws):
            end = start + 1
            try:
                segment, size = self._writable(len(raws[start]))
                total = size + len(raws[start])
                while end < len(raws) and total + len(raws[end]) <= self._segment_bytes:
                    total += len(raws[end])
                    end += 1
                batch = b"".join(raws[start:end])
                with segment.open("ab", buffering=0) as file:
                    if file.write(batch) != len(batch):
                        file.truncate(size)
                        raise OSError(errno.ENOSPC, "a short write")
            except OSError:
                self._lost_bytes += sum(map(len, raws[start:end]))
            else:
                self._tell_followers()
            start = end

    def _tell_followers(self) -> None:
        """Wake them by an event that none can clear before another has seen it: one of them may be slow."""
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def directory(self) -> Path:
        """Where its segments lie."""
        return self._directory

    def go_aside(self, directory: Path) -> None:
        """It was moved there, and is read there to its end; no more will be written."""
        self._directory = directory
        self.close()

    def _segments(self) -> list[Path]:
        return sorted(self._directory.glob("*.log"))

    def _writable(self, room: int) -> tuple[Path, int]:
        """The segment to append to, and its size; begins a new one and drops the oldest where the budget asks for it."""
        segments = self._segments()
        if not segments:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        size = segments[-1].stat().st_size if segments else 0
        if segments and size + room <= self._segment_bytes:
            return segments[-1], size
        number = int(segments[-1].stem) + 1 if segments else 1
        keep = max(self._budget // self._segment_bytes - 1, 1)
        for oldest in segments[:-keep]:
            oldest.unlink(missing_ok=True)
        return self._directory / f"{number:08d}.log", 0

    def tail(self, count: int, since: float = 0.0) -> list[LogLine]:
        """The last lines, oldest first, not older than `since`; for a few."""
        return list(islice(self._cursor(count, since).fresh(), count))

    def _cursor(self, count: int, since: float) -> _Cursor:
        """Where the last so many lines begin."""
        segments = self._segments()
        begin = _Cursor(self, segments)
        for segment in reversed(segments):
            if count <= 0:
                break
            for start, stored in _from_end(segment, count):
                if stored.line.time < since:
                    return begin
                count -= 1
                begin.go_to(segment, start)
        return begin

    def close(self) -> None:
        """No more will be written; followers end. From now on its time counts, also where nothing was written for long."""
        if not self.closed:
            self.flush()
            now = self._clock()
            with suppress(OSError):
                os.utime(self._directory, (now, now))
        self.closed = True
        self._tell_followers()

    async def read(self, count: int, since: float = 0.0) -> AsyncGenerator[LogLine]:
        """As `tail`, for any number: each line is read when it is asked for, and others get their turn between."""
        lines = islice(self._cursor(count, since).fresh(), count)
        while some := list(islice(lines, _AT_ONCE)):
            for line in some:
                yield line
            await asyncio.sleep(0)

    async def follow(self, tail: int, since: float = 0.0) -> AsyncGenerator[LogLine]:
        """The last lines, then new ones until the log is closed and read; each is read when it is asked for."""
        cursor = self._cursor(tail, since)
        while True:
            changed, closed = self._changed, self.closed
            for line in cursor.fresh():
                yield line
            if closed:
                return
            await changed.wait()


class _Cursor:
    """Where a follower is: segment and byte position, at first the end. A segment dropped meanwhile is passed over."""

    def __init__(self, log: VmLog, segments: list[Path]) -> None:
        self._log = log
        self._segment = segments[-1].name if segments else ""
        self._position = segments[-1].stat().st_size if segments else 0

    def go_to(self, segment: Path, position: int) -> None:
        """Stand before a line of that segment."""
        self._segment, self._position = segment.name, position

    def fresh(self) -> Iterator[LogLine]:
        """Whole lines that came since the last call."""
        for name in sorted(segment.name for segment in self._log.directory.glob("*.log")):
            if name < self._segment:
                continue
            if name != self._segment:
                self._segment, self._position = name, 0
            yield from self._read(name)

    def _read(self, name: str) -> Iterator[LogLine]:
        try:
            with (self._log.directory / name).open("rb") as stream:
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

    def begin(self, key: str, owner: Scope) -> None:
        """A VM is made: where one of this key and owner has written before, a new run begins; else a log of its own does.

        Raises:
            HostError: `log-error`, another's log cannot be taken out of the way.
        """
        words = msgspec.json.encode((owner.org, owner.project))
        if _owner_of(self._root / key) == words:
            self.open(key).begin_anew()
            return
        try:
            self._set_aside(key)
        except OSError as error:
            raise HostError(
                "log-error",
                f"the log of an earlier VM of this id is in the way of a new one's: {error.strerror or error}",
                resolution="See to the data directory's disk.",
            ) from error
        with suppress(OSError):  # a log without the note ends with its VM
            (self._root / key).mkdir(mode=0o700)
            (self._root / key / _OWNER).write_bytes(words)

    def find(self, key: str) -> VmLog | None:
        """The log of a VM, if one exists; that of an ended VM is closed already."""
        if key not in self._logs and (self._root / key).is_dir():
            self.open(key).closed = True
        return self._logs.get(key)

    async def sweep(self, kept: Callable[[], frozenset[str]]) -> int:
        """Remove the logs of VMs that ended long ago, and forget those that are over; returns how many were removed. `kept`
        gives the keys of the VMs that there are.

        Raises:
            OSError: the disk cannot be read.
        """
        due = await asyncio.to_thread(self._due, kept())
        known = kept()
        aside = [key for key in due - known if self._try_aside(key)]
        for key in [key for key, each in self._logs.items() if key not in known and each.closed]:
            del self._logs[key]
        await asyncio.to_thread(self._remove_aside)
        return len(aside)

    def _due(self, kept: frozenset[str]) -> set[str]:
        """Keys of the logs whose time is over."""
        now = self._clock()
        names = {directory.name for directory in self._root.iterdir() if not directory.name.startswith(_ASIDE)}
        return {name for name in names - kept if now - _last_change(self._root / name) >= KEPT_S}

    def _try_aside(self, key: str) -> bool:
        try:
            self._set_aside(key)
        except OSError:
            return False  # it is tried again by the next sweep
        return True

    def _set_aside(self, key: str) -> None:
        """Take a log out of the way in one step, so that a VM of its key that begins meanwhile gets one of its own; the next
        sweep removes it. Raises `OSError`: it is there as it was."""
        aside = self._root / f"{_ASIDE}{key}-{secrets.token_hex(8)}"  # what a sweep could not remove is not in the way
        with suppress(FileNotFoundError):  # the disk may have taken nothing of it
            (self._root / key).rename(aside)
        if (log := self._logs.pop(key, None)) is not None:
            log.go_aside(aside)

    def _remove_aside(self) -> None:
        for directory in self._root.iterdir():
            if directory.name.startswith(_ASIDE):
                shutil.rmtree(directory, ignore_errors=True)


def _owner_of(directory: Path) -> bytes:
    """Whose log lies there, as it was noted; empty where nobody knows."""
    try:
        return (directory / _OWNER).read_bytes()
    except OSError:
        return b""


def _last_change(directory: Path) -> float:
    """When it was written to or closed; where it cannot be looked at, just now."""
    try:
        return max(path.stat().st_mtime for path in (directory, *directory.iterdir()))
    except OSError:
        return math.inf
