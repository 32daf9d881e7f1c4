"""A node that an operator put out ends what it runs; one that hears nothing, or of nobody who knows it, goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from shellwego.core.convergence import UNASSIGNED_GRACE_S
from shellwego.drivers.uplink.memory import LinkState
from tests.agent.agent_world import World, workload, world

TOLD_S = 3.0
"""A beat, and a second to register."""


async def serving(one: World) -> None:
    await one.control.assign("ins_1", workload())
    await one.control.assign("ins_2", workload())
    await one.clock.until(lambda: {one.control.phase(f"ins_{n}") for n in (1, 2)} == {"healthy"})


async def test_who_is_put_out_stops_its_vms_within_the_time_that_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await serving(one)
        one.control.shut_out = True
        await one.clock.advance(TOLD_S + UNASSIGNED_GRACE_S)
        assert await one.vms() == {}
        await one.clock.advance(60)
        assert await one.vms() == {}, "and starts none again"


async def test_who_was_put_out_while_its_agent_was_away_stops_its_vms_at_its_next_start(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await serving(one)
        await one.kill()
        one.control.shut_out = True
        assert set(await one.vms()) == {"ins_1", "ins_2"}
        one.start()
        await one.clock.advance(TOLD_S + UNASSIGNED_GRACE_S)
        assert await one.vms() == {}


async def test_an_engine_that_fails_at_first_still_ends_them(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await serving(one)
        observe = one.engine.observe

        async def fail() -> tuple[object, ...]:
            raise LookupError("a defect")

        one.engine.observe = fail  # type: ignore[method-assign,assignment]
        one.control.shut_out = True
        await one.clock.advance(10)
        one.engine.observe = observe  # type: ignore[method-assign]
        await one.clock.advance(TOLD_S + UNASSIGNED_GRACE_S)
        assert await one.vms() == {}


@pytest.mark.parametrize("state", [LinkState.CUT, LinkState.ANSWERS_LOST])
async def test_who_hears_nothing_goes_on_also_when_it_was_put_out_meanwhile(tmp_path: Path, state: LinkState) -> None:
    async with world(tmp_path) as one:
        await serving(one)
        one.link.state = state
        one.control.shut_out = True
        await one.clock.advance(600)
        assert {phase for _, phase in (await one.vms()).values()} == {"running"}
        one.link.state = LinkState.UP
        await one.clock.advance(60 + UNASSIGNED_GRACE_S)
        assert await one.vms() == {}


async def test_a_partitioned_node_goes_on_until_it_hears_that_its_epoch_is_over(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await serving(one)
        one.link.state = LinkState.CUT
        one.control.epoch, one.control.items = 2, {}
        await one.clock.advance(600)
        assert {phase for _, phase in (await one.vms()).values()} == {"running"}
        one.link.state = LinkState.UP
        await one.clock.advance(60 + UNASSIGNED_GRACE_S)
        assert await one.vms() == {}
