"""What a node puts right of its network by itself, and what it says where it cannot."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network

import pytest
from structlog.testing import capture_logs

from plasmavmc.errors import HostError
from plasmavmc.host.names import HostNames
from plasmavmc.network.memory import MemoryNetwork
from plasmavmc.server import assembly


async def test_rules_and_tunnels_are_each_told_by_their_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "HEAL_EVERY_S", 0.0)
    network = MemoryNetwork(HostNames.of("ins_a"), IPv4Network("10.64.16.0/20"), lambda: 0.0)
    network.wiped = "the table"
    network.tunnels_fail_with = HostError("no-tunnel", "the device is gone")
    with capture_logs() as said:
        keeping = asyncio.create_task(assembly.keep_whole(network))
        async with asyncio.timeout(10):
            while len(said) < 2:  # noqa: ASYNC110 - a log line wakes nobody
                await asyncio.sleep(0)
        keeping.cancel()
    assert [(line["event"], line["reason"]) for line in said[:2]] == [
        ("network.rules_put_back", "the table"),
        ("network.tunnels_missing", "the device is gone"),
    ]
