"""What VMs sent and received, on its way from an agent to the control plane."""

from __future__ import annotations

from pathlib import Path

from shellwego.core.errors import UnavailableError
from shellwego.core.traffic import NodeTraffic, Passed
from shellwego.core.vms import NetworkUsage
from tests.agent.agent_world import World, workload, world


def told(w: World) -> list[NodeTraffic]:
    return [report.traffic for report in w.control.reports if report.traffic is not None]


async def running(w: World) -> str:
    """The id of a VM that serves, whose beginning was counted."""
    await w.control.assign("ins_1", workload())
    await w.clock.until(w.control.is_("healthy"), 10)
    [vm] = await w.engine.observe()
    return vm.vm_id


async def test_it_is_told_now_and_then_and_not_with_each_beat(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        vm_id = await running(w)
        w.engine.passed[vm_id] = NetworkUsage(transmit_bytes=60, dropped={"arp": 1})
        await w.clock.until(lambda: bool(told(w)) and told(w)[-1].dropped == {"arp": 1}, 15)
        assert told(w)[-1].apps == {"app_1": Passed(transmit_bytes=60)}
        before, beats = len(told(w)), len(w.control.reports)
        await w.clock.advance(100)
        assert 9 <= len(told(w)) - before <= 11
        assert len(w.control.reports) - beats > 30


async def test_what_a_lost_report_told_is_told_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        vm_id = await running(w)
        w.control.turned_away = UnavailableError("away", "it is away")
        w.engine.passed[vm_id] = NetworkUsage(transmit_bytes=60)
        await w.clock.advance(11)
        w.control.turned_away, before = None, len(told(w))
        await w.clock.until(lambda: len(told(w)) > before, 3)
        assert told(w)[-1].apps["app_1"].transmit_bytes == 60


async def test_counters_that_cannot_be_read_hold_up_no_report(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.engine.counts_fail_with = UnavailableError("helper-gone", "the helper does not answer")
        await w.clock.advance(11)
        before = len(told(w)), len(w.control.reports)
        await w.clock.advance(20)
        assert len(told(w)) == before[0]
        assert len(w.control.reports) > before[1] + 5
