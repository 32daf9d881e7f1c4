"""What a node puts right of its network by itself, and what it says where it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from structlog.testing import capture_logs

from plasmavmc.errors import HostError
from plasmavmc.host.names import HostNames
from plasmavmc.images.store import ImageStore
from plasmavmc.manager import VmManager
from plasmavmc.network.memory import MemoryNetwork
from plasmavmc.parts import EngineParts
from plasmavmc.server import upkeep


async def test_rules_and_tunnels_are_each_told_by_their_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "HEAL_EVERY_S", 0.0)
    network = MemoryNetwork(HostNames.of("ins_a"), IPv4Network("10.64.16.0/20"), lambda: 0.0)
    network.wiped = "the table"
    network.tunnels_fail_with = HostError("no-tunnel", "the device is gone")
    with capture_logs() as said:
        keeping = asyncio.create_task(upkeep.keep_whole(network))
        async with asyncio.timeout(10):
            while len(said) < 2:  # noqa: ASYNC110 - a log line wakes nobody
                await asyncio.sleep(0)
        keeping.cancel()
    assert [(line["event"], line["reason"]) for line in said[:2]] == [
        ("network.rules_put_back", "the table"),
        ("network.tunnels_missing", "the device is gone"),
    ]


class FailingImages(ImageStore):
    """Cannot be collected at first."""

    def __init__(self, root: Path, error: Exception) -> None:
        super().__init__(root)
        self._errors = [error] * 2
        self.collected = False

    async def collect(self, budget_bytes: int) -> int:
        if self._errors:
            raise self._errors.pop()
        self.collected = True
        return 0


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), HostError("disk-error", "bad"), RuntimeError("a defect")])
async def test_images_that_cannot_be_collected_and_a_resolver_that_cannot_be_kept_leave_the_rules_healed_and_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    monkeypatch.setattr(upkeep, "HEAL_EVERY_S", 0.0)
    monkeypatch.setattr(upkeep, "COLLECT_EVERY_S", 0.0)
    network = MemoryNetwork(HostNames.of("ins_a"), IPv4Network("10.64.16.0/20"), lambda: 0.0)
    images, resolving = FailingImages(tmp_path, error), False

    async def resolver() -> None:
        nonlocal resolving
        if not images.collected:
            raise error
        resolving = True
        await asyncio.Event().wait()

    parts = cast(EngineParts, SimpleNamespace(network=network, images=images))
    keeping = asyncio.create_task(upkeep.keep_up(cast(VmManager, SimpleNamespace()), parts, 1, resolver))
    await until(lambda: images.collected, keeping)
    network.wiped = "the table"
    await until(lambda: not network.wiped, keeping)
    await until(lambda: resolving, keeping)
    keeping.cancel()
    await asyncio.wait({keeping})


async def until(true: Callable[[], bool], keeping: asyncio.Task[None]) -> None:
    async with asyncio.timeout(10):
        while not true():
            assert not keeping.done()
            await asyncio.sleep(0)
