"""Logs of VMs that ended long ago go while the engine runs, not only when it starts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from plasmavmc.guest.logs import KEPT_S
from plasmavmc.server import upkeep
from plasmavmc.types import vm_key
from tests.engine.engine_rig import EngineRig


@asynccontextmanager
async def keeping_up(rig: EngineRig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Task[None]]:
    monkeypatch.setattr(upkeep, "SWEEP_EVERY_S", 0.001)
    manager = rig.manager()
    await manager.recover()
    for name in ("gone", "there"):
        manager.create(rig.spec(name, "exit", "0"))
        manager.start(f"vm_{name}")
        revision = -1
        while not manager.get(f"vm_{name}").status.reason:
            revision = await manager.changed(revision)
    await manager.delete("vm_gone")
    task = asyncio.create_task(upkeep.keep_up(manager, rig.parts, 0, asyncio.Event().wait))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - neither a disk nor a log line wakes anybody
            await asyncio.sleep(0.001)


def grow_old(directory: Path) -> None:
    long_ago = directory.stat().st_mtime - KEPT_S - 60
    for path in (*directory.iterdir(), directory):
        os.utime(path, (long_ago, long_ago))


async def test_the_log_of_a_vm_that_is_gone_is_removed_after_its_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = EngineRig(tmp_path)
    gone, there = (tmp_path / "logs" / vm_key(f"vm_{name}") for name in ("gone", "there"))
    async with keeping_up(rig, monkeypatch):
        grow_old(there)
        grow_old(gone)
        await until(lambda: not gone.exists())
        assert there.exists()


async def test_a_disk_that_cannot_be_read_is_told_once_and_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = EngineRig(tmp_path)
    logs, away = tmp_path / "logs", tmp_path / "away"
    with capture_logs() as said:
        async with keeping_up(rig, monkeypatch) as task:
            logs.rename(away)
            await until(lambda: "logs.not_swept" in {line["event"] for line in said})
            away.rename(logs)
            gone = logs / vm_key("vm_gone")
            grow_old(gone)
            await until(lambda: not gone.exists())
            assert not task.done()
    assert [line["event"] for line in said].count("logs.not_swept") == 1
