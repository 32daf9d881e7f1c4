"""The agent as a whole, on memory drivers and virtual time."""

from __future__ import annotations

from pathlib import Path

from tests.agent.agent_world import world, workload


async def test_an_assigned_instance_is_started_checked_and_reported_healthy(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"), timeout=0.5)
        assert await one.vms() == {"ins_1": (1, "running")}
        assert one.control.observed["ins_1"].address.startswith("10.64.")
