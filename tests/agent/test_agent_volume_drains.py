"""A node that is emptied with its volumes: each goes by a move, or stays with its app, and the reason is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shellwego.core.moves import IN_VAIN, MOST_STOPS, PAUSE_S, MoveStage
from shellwego.core.volumes import VolumeState
from tests.agent.volume_move_world import GIB, TEXT, VolumeHosts


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[VolumeHosts]:
    made = VolumeHosts(tmp_path)
    await made.open("new")
    yield made
    await made.close()


async def test_with_its_volumes_a_node_that_is_emptied_is_empty_and_the_app_serves_elsewhere(
    hosts: VolumeHosts,
) -> None:
    await hosts.drain(volumes=True)
    await hosts.clock.until(hosts.drained, 300)
    await hosts.moved()
    assert (hosts.holds(hosts.new), hosts.old.views) == (TEXT, [])


async def test_without_them_it_says_what_stays_as_ever(hosts: VolumeHosts) -> None:
    await hosts.drain()
    await hosts.clock.advance(10)
    assert (hosts.drained(), hosts.volume.move) == (False, None)
    [waiting] = hosts.plan().waiting
    assert "hold the volume data" in waiting.reason


async def test_a_volume_that_no_other_node_can_have_is_told_with_the_reason_and_goes_once_one_can(
    hosts: VolumeHosts,
) -> None:
    await hosts.cordon(hosts.new)
    await hosts.drain(volumes=True)
    await hosts.clock.advance(10)
    [left] = hosts.plan().volumes
    assert left.reason == "stays: no other node can have it: new is cordoned"
    assert [each.reason for each in hosts.plan().waiting] == [f"its volume data {left.reason}"]
    await hosts.uncordon(hosts.new)
    await hosts.clock.until(hosts.drained, 300)
    assert hosts.holds(hosts.new) == TEXT


async def test_a_volume_whose_new_node_fell_silent_holds_up_no_other(hosts: VolumeHosts) -> None:
    await hosts.new.kill()
    await hosts.drain(volumes=True)
    await hosts.clock.until(lambda: hosts.volume.state is VolumeState.MOVING, 10)
    assert [each.moving for each in hosts.plan().volumes] == [True]
    await hosts.clock.until(lambda: hosts.move.reason != "", 120)
    [left] = hosts.plan().volumes
    assert (left.reason, left.moving) == ("moves: the node it goes to does not answer", False)


async def test_a_node_that_has_something_else_under_its_id_is_not_tried_again(hosts: VolumeHosts) -> None:
    await hosts.new.engine.create_volume(hosts.volume_id, GIB)
    await hosts.drain(volumes=True)
    await hosts.clock.until(lambda: hosts.told("volume.move.failed"), 60)
    await hosts.clock.advance(20)
    assert len(hosts.told("volume.move.failed")) == 1
    [left] = hosts.plan().volumes
    assert left.reason == "stays: no other node can have it: new has something else under the volume's id"
    assert len(hosts.edge.endpoints()) == 1


async def test_a_node_for_which_the_app_was_stopped_in_vain_is_left_in_peace_by_the_drain(hosts: VolumeHosts) -> None:
    await hosts.fail_slowly()
    await hosts.clock.advance(600)
    assert len(hosts.told("volume.move.failed")) == 1
    assert len(hosts.told("volume.move.stopping")) == MOST_STOPS
    [left] = hosts.plan().volumes
    assert (left.reason, left.moving) == (f"stays: no other node can have it: new was tried: {IN_VAIN}", False)
    assert [each.reason for each in hosts.plan().waiting] == [f"its volume data {left.reason}"]
    assert len(hosts.edge.endpoints()) == 1


async def test_an_app_that_was_stopped_in_vain_goes_on_though_its_node_is_being_emptied(hosts: VolumeHosts) -> None:
    hosts.road.stalls = lambda: hosts.move.stage is MoveStage.LAST
    await hosts.drain(volumes=True)
    await hosts.clock.until(lambda: bool(hosts.told("volume.move.delayed")), 300)
    await hosts.clock.until(lambda: len(hosts.edge.endpoints()) == 1, PAUSE_S / 2)
    assert [each.node_id for each in hosts.world.live()] == [hosts.old.id]
    hosts.road.stalls = lambda: False
    await hosts.clock.until(hosts.drained, 300)
    await hosts.moved()


async def test_what_is_left_at_the_deadline_is_stopped_and_comes_not_back(hosts: VolumeHosts) -> None:
    await hosts.fail_slowly()
    await hosts.clock.until(lambda: len(hosts.edge.endpoints()) == 1, 60)
    await hosts.drain(force=True, deadline_s=1.0)
    await hosts.clock.until(lambda: not hosts.edge.endpoints(), 60)
    await hosts.clock.advance(60)
    assert [each.node_id for each in hosts.world.live()] == [""]
    await hosts.uncordon(hosts.old)
    await hosts.clock.until(lambda: len(hosts.edge.endpoints()) == 1, 60)


async def test_the_next_node_is_tried_after_one_for_which_the_app_was_stopped_in_vain(hosts: VolumeHosts) -> None:
    await hosts.fail_slowly()
    third = await hosts.join("third")
    hosts.road.stalls = lambda: False
    await hosts.moved(third)
    assert hosts.move.in_vain == (hosts.new.id,)


async def test_by_hand_a_volume_goes_also_where_the_app_was_stopped_for_it_in_vain(hosts: VolumeHosts) -> None:
    await hosts.fail_slowly()
    await hosts.clock.until(lambda: not hosts.kept, 60)
    hosts.road.stalls = lambda: False
    await hosts.start_move()
    assert hosts.move.in_vain == ()
    await hosts.moved()


async def test_an_order_to_drain_that_is_given_anew_tries_again_where_the_app_was_stopped_in_vain(
    hosts: VolumeHosts,
) -> None:
    await hosts.fail_slowly()
    await hosts.clock.until(lambda: not hosts.kept, 60)
    hosts.road.stalls = lambda: False
    await hosts.drain(parallel=3)
    await hosts.clock.advance(10)
    assert not hosts.move.active, "volumes stay with that order, so it says nothing of them"
    await hosts.drain(volumes=True)
    await hosts.clock.until(hosts.drained, 300)
    await hosts.moved()


async def test_what_one_volume_takes_of_a_disk_is_not_promised_to_the_next(hosts: VolumeHosts) -> None:
    await hosts.add_volume("more", 4 * GIB)
    await hosts.offer(hosts.new, disk_bytes=4 * GIB + (512 << 20), disk_overcommit=1.0)
    await hosts.drain(volumes=True)
    await hosts.clock.advance(2)
    assert [each.volume_id for each in hosts.kept] == [hosts.volume_id]
    assert [each.reason for each in hosts.plan().volumes] == [
        "moves: copying",
        "stays: no other node can have it: new has room for 3584 MiB, and the volume has 4096",
    ]
