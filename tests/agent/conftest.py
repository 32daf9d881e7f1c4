"""A platform on which backups are taken, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.agent.backup_world import Platform


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time sees nothing that a thread brings."""

    async def at_once(work: Callable[..., object], *args: Any) -> object:
        return work(*args)

    monkeypatch.setattr(asyncio, "to_thread", at_once)


@pytest.fixture
async def platform(tmp_path: Path, no_threads: None) -> AsyncIterator[Platform]:
    platform = Platform(tmp_path)
    await platform.open()
    yield platform
    await platform.close()
