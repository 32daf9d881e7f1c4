"""The uplink's contract on the memory driver, and a wrong driver that it rejects."""

from __future__ import annotations

import asyncio

import pytest

from shellwego.core.errors import UnavailableError
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.uplink.memory import LinkState, MemoryEdgeUplink, MemoryLink, MemoryNodeUplink
from tests.contract.uplink_contract import EDGE_REPORT, REPORT, Join, Joined, Recorder, UplinkContract


class MemoryWire:
    def __init__(self, link: MemoryLink) -> None:
        self._link = link

    def cut(self) -> None:
        self._link.state = LinkState.CUT

    def lose_answers(self) -> None:
        self._link.state = LinkState.ANSWERS_LOST

    def heal(self) -> None:
        self._link.state = LinkState.UP


def join_in_memory(control: Recorder) -> Joined:
    link = MemoryLink(VirtualClock())
    return Joined(MemoryNodeUplink(control, link), MemoryEdgeUplink(control, link), MemoryWire(link))


class TestMemoryUplink(UplinkContract):
    @pytest.fixture
    def join(self) -> Join:
        return join_in_memory


async def test_a_slow_wire_takes_its_time_both_ways() -> None:
    clock, control = VirtualClock(), Recorder()
    link = MemoryLink(clock)
    link.delay_s = 3.0
    await clock.run(MemoryNodeUplink(control, link).report(REPORT))
    assert clock.monotonic() == 6.0


async def test_a_wire_that_is_cut_while_a_call_is_under_way_loses_it() -> None:
    clock, control = VirtualClock(), Recorder()
    link = MemoryLink(clock)
    link.delay_s = 3.0

    async def cut_at_4() -> None:
        await clock.sleep(4)
        link.state = LinkState.CUT

    cutting = asyncio.ensure_future(cut_at_4())
    with pytest.raises(UnavailableError):
        await clock.run(MemoryEdgeUplink(control, link).report_edge(EDGE_REPORT))
    assert control.got == [EDGE_REPORT]
    await cutting


def join_directly(control: Recorder) -> Joined:
    """Wrong: hands the objects themselves over, whatever they are."""
    return Joined(control, control, MemoryWire(MemoryLink(VirtualClock())))


class TestTheContractRejectsAWrongUplink:
    async def test_that_shares_its_objects(self) -> None:
        with pytest.raises(AssertionError):
            await UplinkContract().test_neither_side_can_change_what_the_other_holds(join_directly)

    async def test_that_passes_anything(self) -> None:
        with pytest.raises(pytest.fail.Exception):
            await UplinkContract().test_a_message_of_the_wrong_type_does_not_pass(join_directly)

    async def test_that_lets_defects_through(self) -> None:
        with pytest.raises(LookupError):
            await UplinkContract().test_a_defect_of_the_control_plane_looks_like_its_absence(join_directly)
