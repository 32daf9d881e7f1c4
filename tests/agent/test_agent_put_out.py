"""A node that an operator put out ends what it runs; one that hears nothing, or of nobody who knows it, goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shellwego.core.convergence import UNASSIGNED_GRACE_S
from shellwego.core.errors import ForbiddenError, InvalidError, ShellWeGoError, UnavailableError
from shellwego.core.nodecallers import SHUT_OUT
from shellwego.drivers.uplink.memory import LinkState
from tests.agent.agent_world import World, workload, world

PUT_OUT = ForbiddenError(SHUT_OUT, "the key is retired")
TOLD_S = 3.0
"""A beat, and a second to register."""


async def serving(one: World) -> None:
    await one.control.assign("ins_1", workload())
    await one.control.assign("ins_2", workload())
    await one.clock.until(lambda: {one.control.phase(f"ins_{n}") for n in (1, 2)} == {"healthy"})


async def test_who_is_put_out_stops_its_vms_within_the_time_that_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await serving(one)
        one.control.turned_away = PUT_OUT
        await one.clock.advance(TOLD_S + UNASSIGNED_GRACE_S)
        assert await one.vms() == {}
        await one.clock.advance(60)
        assert await one.vms() == {}, "and starts none again"


async def test_who_was_put_out_while_its_agent_was_away_stops_its_vms_at_its_next_start(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await serving(one)
        await one.kill()
        one.control.turned_away = PUT_OUT
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
        one.control.turned_away = PUT_OUT
        with capture_logs() as lines:
            await one.clock.advance(10)
        assert "end_all" in {line.get("step") for line in lines}
        one.engine.observe = observe  # type: ignore[method-assign]
        await one.clock.advance(TOLD_S + UNASSIGNED_GRACE_S)
        assert await one.vms() == {}


@pytest.mark.parametrize("state", [LinkState.CUT, LinkState.ANSWERS_LOST])
async def test_who_hears_nothing_goes_on_also_when_it_was_put_out_meanwhile(tmp_path: Path, state: LinkState) -> None:
    async with world(tmp_path) as one:
        await serving(one)
        one.link.state = state
        one.control.turned_away = PUT_OUT
        await one.clock.advance(600)
        assert {phase for _, phase in (await one.vms()).values()} == {"running"}
        one.link.state = LinkState.UP
        await one.clock.advance(60 + UNASSIGNED_GRACE_S)
        assert await one.vms() == {}


@pytest.mark.parametrize(
    "refusal",
    [
        ForbiddenError("node-key-refused", "nobody knows the key"),
        ForbiddenError("node-certificate-expired", "it has expired"),
        InvalidError("uplink-too-old", "the agent is too old"),
        UnavailableError("uplink-unavailable", "the control plane failed at this call"),
    ],
    ids=lambda refusal: refusal.code,
)
async def test_any_other_refusal_ends_nothing(tmp_path: Path, refusal: ShellWeGoError) -> None:
    async with world(tmp_path) as one:
        await serving(one)
        one.control.turned_away = refusal
        await one.clock.advance(300)
        assert {phase for _, phase in (await one.vms()).values()} == {"running"}
        one.control.turned_away = None
        await one.clock.until(lambda: len(one.control.registrations) > 0, 10)
        assert {phase for _, phase in (await one.vms()).values()} == {"running"}


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
