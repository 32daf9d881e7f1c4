"""Durable writes a second through the use-case layer on SQLite: each caller waits for its own fsync, and shares it."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import Result, median
from shellwego.control.unit import Control, Unit
from shellwego.core.tenancy import User
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store.sqlite import open_sqlite

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))
ROUND_S = 1.0
CALLERS = 256
GOAL = 3000


def one_row(unit: Unit) -> None:
    """The least that a use case writes."""
    id_ = unit.new_id("usr")
    unit.tx.users.insert(User(id=id_, email=id_, created_at=unit.now()))


def with_event_and_audit(unit: Unit) -> None:
    """What most of them write."""
    one_row(unit)
    unit.emit("user.created", "usr_x")
    unit.audit("users:write", "usr_x")


async def rate(control: Control, use_case: Callable[[Unit], None]) -> tuple[float, float]:
    """Writes a second, and seconds of CPU that each took."""
    done, began, cpu = 0, time.perf_counter(), time.process_time()

    async def write() -> None:
        nonlocal done
        while time.perf_counter() - began < ROUND_S:
            await control.commit(use_case)
            done += 1

    await asyncio.gather(*(write() for _ in range(CALLERS)))
    return done / (time.perf_counter() - began), (time.process_time() - cpu) / done


async def measure() -> list[tuple[float, float, float, float]]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        clock = SystemClock()
        store = open_sqlite(Path(name) / "state.db", clock)
        control = Control(store, MemoryBus(), clock)
        rounds = [(*await rate(control, one_row), *await rate(control, with_event_and_audit)) for _ in range(ROUNDS)]
        await store.close()
    return rounds


def run() -> list[Result]:
    """Both kinds in turn; the goal is judged by the use case that writes its event and its audit record too."""
    rows = asyncio.run(measure())
    one, whole = median([row[0] for row in rows]), median([row[2] for row in rows])
    cpu_one, cpu_whole = (median([row[index] * 1e6 for row in rows]) for index in (1, 3))
    return [
        Result(
            "store",
            "durable writes a second through the use-case layer, with event and audit record (SQLite, group commit)",
            whole.text("/s", 0),
            f"≥ {GOAL}/s",
            whole.value >= GOAL,
            (
                f"one row alone: {one.text('/s', 0)}",
                f"CPU a write: {cpu_whole.text(' µs', 0)}; one row alone {cpu_one.text(' µs', 0)}",
                f"{CALLERS} callers in one event loop, `synchronous=FULL`; {ROUNDS} rounds of {ROUND_S:g} s",
            ),
        )
    ]
