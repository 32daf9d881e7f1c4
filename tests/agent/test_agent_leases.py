"""Volumes that could live twice, on a node that does not hear the control plane, or stands still itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.agent.leases import Leases
from shellwego.core.assignments import Assignment, VolumeOrder, WorkloadMount
from shellwego.core.volumeleases import END_SHARE, STOP_SHARE, TERM_S
from shellwego.core.volumes import Presence
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.drivers.uplink.memory import LinkState
from tests.agent.agent_world import World, workload, world

GIB = 1 << 30
VOLUME = VolumeOrder(volume_id="vol_1", size_bytes=GIB, lease_s=TERM_S)
PLAIN = replace(VOLUME, volume_id="vol_2", lease_s=0.0)
MOUNT = WorkloadMount(volume_id="vol_1", name="data", destination="/data")
WORK = workload("serve", mounts=(MOUNT,))
OTHER = workload("serve", mounts=(replace(MOUNT, volume_id="vol_2", name="other"),))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


async def running(node: World) -> None:
    """One instance with a volume under a lease, and one with a volume without."""
    for number, (order, work) in enumerate(((VOLUME, WORK), (PLAIN, OTHER)), 1):
        await node.control.order(order)
        await node.clock.until(lambda id_=order.volume_id: id_ in node.control.seen)  # type: ignore[misc]
        await node.control.order(replace(order, made=True))
        await node.control.assign(f"ins_{number}", work)
        await node.clock.until(node.control.is_("healthy", f"ins_{number}"))
    await node.clock.until(lambda: node.control.seen["vol_1"].leased)


async def phases(node: World) -> tuple[str, str]:
    vms = await node.vms()
    return vms["ins_1"][1], vms["ins_2"][1]


async def test_a_volume_is_told_as_leased_once_the_engine_enforces_that(node: World) -> None:
    await running(node)
    assert (node.control.seen["vol_1"].presence, node.control.seen["vol_1"].leased) == (Presence.PRESENT, True)
    assert not node.control.seen["vol_2"].leased


async def test_while_it_is_heard_nothing_ends(node: World) -> None:
    await running(node)
    await node.clock.advance(10 * TERM_S)
    assert await phases(node) == ("running", "running")
    assert await node.vms() == {"ins_1": (1, "running"), "ins_2": (1, "running")}


async def test_cut_off_it_stops_what_has_the_volume_at_two_thirds_of_the_term_and_nothing_else(node: World) -> None:
    await running(node)
    node.link.state = LinkState.CUT
    await node.clock.advance(TERM_S * STOP_SHARE - 3)
    assert await phases(node) == ("running", "running")
    await node.clock.advance(3 + 3)
    assert await phases(node) == ("ended", "running")
    await node.clock.advance(TERM_S)
    assert await phases(node) == ("ended", "running")


async def test_heard_again_it_goes_on_and_that_was_no_failure(node: World) -> None:
    await running(node)
    node.link.state = LinkState.CUT
    await node.clock.advance(TERM_S)
    node.link.state = LinkState.UP
    await node.clock.until(lambda: node.control.observed["ins_1"].attempt == 2)
    await node.clock.until(node.control.is_("healthy"))
    assert node.control.observed["ins_1"].ends == 0
    assert (await node.vms())["ins_2"] == (1, "running")


async def test_an_outage_of_less_than_two_thirds_is_borne(node: World) -> None:
    await running(node)
    node.link.state = LinkState.CUT
    await node.clock.advance(TERM_S * STOP_SHARE - 4)
    node.link.state = LinkState.UP
    await node.clock.advance(TERM_S)
    assert await node.vms() == {"ins_1": (1, "running"), "ins_2": (1, "running")}


async def test_killed_without_a_word_its_host_ends_what_has_the_volume_before_the_term_does(node: World) -> None:
    await running(node)
    await node.kill()
    await node.clock.advance(TERM_S * END_SHARE - 3)
    assert await phases(node) == ("running", "running")
    await node.clock.advance(3)
    assert await phases(node) == ("ended", "running")
    node.start()
    await node.clock.until(lambda: node.control.observed["ins_1"].attempt == 2)
    await node.clock.until(node.control.is_("healthy"))
    assert node.control.observed["ins_1"].ends == 0, "the app did nothing wrong"


async def test_started_again_in_time_it_adopts_what_runs(node: World) -> None:
    await running(node)
    await node.kill()
    await node.clock.advance(TERM_S * STOP_SHARE)
    node.start()
    await node.clock.advance(TERM_S)
    assert await node.vms() == {"ins_1": (1, "running"), "ins_2": (1, "running")}


async def test_a_report_that_was_answered_for_an_older_epoch_renews_nothing(node: World) -> None:
    await running(node)
    node.control.epoch = 2
    node.control.items.clear()  # its instances were judged lost
    await node.clock.until(lambda: node.control.reports[-1].epoch == 2)
    await node.clock.advance(15)
    assert "ins_1" not in await node.vms()


async def test_no_vm_begins_with_a_volume_before_its_lease_is_in_force(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = asyncio.Event()
    enforce = node.engine.fence_volumes

    async def slowly(until: dict[str, float]) -> None:
        await held.wait()
        await enforce(until)

    monkeypatch.setattr(node.engine, "fence_volumes", slowly)
    await node.control.order(VOLUME)
    await node.clock.until(lambda: node.control.seen.get("vol_1") is not None)
    await node.control.assign("ins_1", WORK)
    await node.clock.advance(30)
    assert await node.vms() == {}
    assert not node.control.seen["vol_1"].leased
    held.set()
    await node.clock.until(node.control.is_("healthy"))


async def test_a_policy_that_ended_takes_the_lease_away(node: World) -> None:
    await running(node)
    await node.control.order(replace(VOLUME, made=True, lease_s=0.0))
    await node.clock.until(lambda: not node.control.seen["vol_1"].leased)
    await node.kill()
    await node.clock.advance(3 * TERM_S)
    assert await phases(node) == ("running", "running")


async def test_a_lease_that_is_new_after_a_silence_begins_with_the_next_report_and_stops_nothing() -> None:
    clock = VirtualClock()
    leases, assigned = (
        Leases(MemoryEngine(clock, name="one"), clock),
        Assignment(instance_id="ins_1", workload=WORK, present=True),
    )
    leases.renewed(clock.monotonic())
    await clock.advance(TERM_S * STOP_SHARE + 1)
    leases.assign((VOLUME,))
    await leases.enforce()
    (told,) = leases.lapses((assigned,)).values()
    assert (told.reason, told.left_s) == ("the volume data is not leased to this node yet", None)
    assert leases.renewed(clock.monotonic())
    await leases.enforce()
    assert leases.lapses((assigned,)) == {}
