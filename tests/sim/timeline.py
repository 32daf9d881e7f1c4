"""An event loop and a clock without a world outside: nothing is waited for but virtual time, and the order is the seed's.

The loop never asks the kernel, so a turn costs no system call; where all wait, it lets time pass itself. Before a callback
may run there is nothing to shuffle: what varies the order of tasks is `Dice.turns`, by which each way to the store, the bus
and the wire gives way so many times.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from types import coroutine
from typing import Any, TypeVar

from shellwego.drivers.clock.ids import IdSource
from shellwego.drivers.clock.virtual import StuckError, VirtualClock

T = TypeVar("T")


_TURNS = (0, 0, 0, 0, 0, 0, 1, 3)
_AHEAD = 256
_MOST_TURNS = 100_000
"""At one hour."""


class _Handle(list[Any]):
    """What is to be called soon: its context's `run`, the callback, and what it is called with. As `asyncio.Handle`, without
    what only debugging needs; a list, since none is made sooner."""

    def cancel(self) -> None:
        self[0] = _called_off


def _called_off(*_: object) -> None:
    pass


class _Loop(asyncio.SelectorEventLoop):
    """A loop that looks at nothing but what is ready: no timers, no files."""

    def __init__(self) -> None:
        super().__init__()
        self.passing: Callable[[], None] | None = None
        """Lets time pass, whenever all wait."""
        self._turns = 0

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        handle = _Handle(((copy_context() if context is None else context).run, callback, args))
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        """Never: there are no threads. It is asked for where an async generator was left in the middle, to end it, as those
        are that hear hints for somebody who was killed."""
        return _Handle((_called_off, callback, args))

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        self._turns += 1
        if not ready:
            if self.passing is None:
                raise AssertionError("the simulation waits for something outside of virtual time")
            self._turns = 0
            self.passing()
        elif self._turns > _MOST_TURNS:
            raise StuckError("a task spins without ever waiting")
        for _ in range(len(ready)):
            run, callback, args = ready.popleft()
            run(callback, *args)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on a loop of its own."""
    loop = _Loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@coroutine
def give_way(turns: int) -> Generator[None]:
    """As so many `asyncio.sleep(0)`."""
    for _ in range(turns):
        yield


class Time(VirtualClock):
    """Virtual time that the loop lets pass from one sleeper's hour to the next: who waits for the last of them is woken for
    that alone."""

    async def advance(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _Loop)
        reached: asyncio.Future[None] = loop.create_future()
        end = self._elapsed + seconds
        loop.passing = lambda: self._pass(end, reached)
        try:
            await reached
        finally:
            loop.passing = None

    def _pass(self, end: float, reached: asyncio.Future[None]) -> None:
        hour = self._next_hour()
        self._elapsed = max(self._elapsed, min(hour, end))
        if hour > end:
            reached.set_result(None)
        while self._next_hour() <= self._elapsed:
            heapq.heappop(self._sleepers)[2].set_result(None)


class Dice(random.Random):
    """The chance of one part of the simulation, by name: what another part draws does not change it."""

    def __init__(self, way: str, name: str) -> None:
        super().__init__()
        self._name = name
        self.take(way)

    def take(self, way: str) -> None:
        """From here on it falls as it does on this way of a story, whatever it did before."""
        self.seed(f"{self._name}/{way}")
        self._ahead: list[int] = []

    def hits(self, probability: float) -> bool:
        return self.random() < probability

    def turns(self) -> int:
        """How often to give way to whoever can run."""
        if not self._ahead:
            self._ahead = self.choices(_TURNS, k=_AHEAD)
        return self._ahead.pop()


class Gate:
    """Through which every act of a process goes, so that it can be made to stand still (as by SIGSTOP)."""

    def __init__(self) -> None:
        self._opened: asyncio.Event | None = None

    @property
    def closed(self) -> bool:
        return self._opened is not None

    def close(self) -> None:
        self._opened = self._opened or asyncio.Event()

    def open(self) -> None:
        if self._opened is not None:
            self._opened.set()
            self._opened = None

    async def passed(self) -> None:
        """Wait until it is open."""
        while self._opened is not None:
            await self._opened.wait()


class HostClock:
    """The clock of one process: its own wall time and ids, the same monotonic time for all."""

    def __init__(self, virtual: VirtualClock, gate: Gate, dice: Dice) -> None:
        self._virtual = virtual
        self._gate = gate
        self._ids = IdSource(dice.randbytes)
        self.skew_s = 0.0

    def now(self) -> float:
        return self._virtual.now() + self.skew_s

    def monotonic(self) -> float:
        return self._virtual.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._virtual.sleep(seconds)
        if self._gate.closed:
            await self._gate.passed()

    def new_id(self, prefix: str) -> str:
        return self._ids.new(prefix, int(self.now() * 1000))
