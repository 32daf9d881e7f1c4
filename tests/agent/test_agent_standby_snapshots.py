"""The volume's snapshots on its standby copy, with real agents: they come and go with the volume's own, and are there where
the copy becomes the volume.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shellwego.control import volumes
from shellwego.core.replicas import marked
from shellwego.core.volumes import SnapshotState, VolumeState
from tests.agent.move_world import Host
from tests.agent.standby_world import AFTER_S, EVERY_S, LATER, StandbyHosts
from tests.agent.volume_move_world import TEXT

FIRST, SECOND = "as it was at first", "as it was then"


class SnapshotHosts(StandbyHosts):
    def kept_on(self, host: Host) -> dict[str, str]:
        """What the volume's own snapshots hold on a host."""
        found = self.holdings(host)
        return {id_: text for id_, text in found.items() if marked(id_) is None}

    def holdings(self, host: Host) -> dict[str, str]:
        kept = host.engine.disks.kept.get(self.volume_id)
        return dict(kept.snapshots) if kept else {}

    def state(self, snapshot_id: str) -> SnapshotState | None:
        row = self.world.peek(lambda tx: tx.snapshots.get(snapshot_id))
        return row.state if row else None

    def reason(self, snapshot_id: str) -> str:
        row = self.world.peek(lambda tx: tx.snapshots.get(snapshot_id))
        return row.reason if row else ""

    async def delete(self, snapshot_id: str) -> None:
        row = self.world.peek(lambda tx: tx.snapshots.get(snapshot_id))
        assert row is not None
        await self.world.control.commit(lambda unit: volumes.delete_snapshot(unit, self.volume, row))

    async def rounds(self, count: int = 2) -> None:
        await self.clock.advance(count * EVERY_S + 5)


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[SnapshotHosts]:
    made = SnapshotHosts(tmp_path)
    await made.open("new")
    yield made
    await made.close()


async def test_those_there_were_and_those_that_are_taken_later_come_along(hosts: SnapshotHosts) -> None:
    first = await hosts.snapshot(FIRST)
    await hosts.protected()
    assert hosts.kept_on(hosts.new) == {first: FIRST}
    second = await hosts.snapshot(SECOND)
    hosts.write(hosts.old, LATER)
    await hosts.rounds()
    assert hosts.kept_on(hosts.new) == {first: FIRST, second: SECOND}
    assert hosts.holds(hosts.new) == LATER
    whole = [asked for asked, since in hosts.road.asked if not since]
    assert whole == [first], "one came whole, and what differs of each one after it"


async def test_what_is_deleted_goes_from_the_copy_too_and_nothing_is_made_anew(hosts: SnapshotHosts) -> None:
    taken = [await hosts.snapshot(text) for text in (FIRST, SECOND, LATER)]
    await hosts.protected()
    await hosts.delete(taken[1])
    await hosts.rounds()
    assert hosts.kept_on(hosts.new) == {taken[0]: FIRST, taken[2]: LATER}
    assert hosts.state(taken[1]) is None
    await hosts.delete(taken[2])
    await hosts.delete(taken[0])
    await hosts.rounds()
    assert (hosts.kept_on(hosts.new), len(hosts.holdings(hosts.new))) == ({}, 1)
    assert sum(not since for _, since in hosts.road.asked) == 1


async def test_one_that_is_deleted_on_its_way_is_passed_over(hosts: SnapshotHosts) -> None:
    await hosts.protected()
    doomed = await hosts.snapshot(FIRST)
    kept = await hosts.snapshot(SECOND)
    hosts.road.stalls = lambda: bool(hosts.kept_on(hosts.new))  # the first is there, and the second under way
    await hosts.clock.until(lambda: doomed in hosts.kept_on(hosts.new), 2 * EVERY_S)
    await hosts.delete(doomed)
    await hosts.clock.until(lambda: hosts.state(doomed) is None, 60)
    hosts.road.stalls = lambda: False
    await hosts.rounds()
    assert hosts.kept_on(hosts.new) == {kept: SECOND}
    assert sum(not since for _, since in hosts.road.asked) == 1


async def test_where_the_copy_was_just_begun_and_all_that_it_has_is_deleted_it_begins_anew(
    hosts: SnapshotHosts,
) -> None:
    doomed = await hosts.snapshot(FIRST)
    hosts.road.stalls = lambda: bool(hosts.kept_on(hosts.new))
    await hosts.replicate()
    await hosts.clock.until(lambda: doomed in hosts.kept_on(hosts.new), 60)
    await hosts.delete(doomed)
    await hosts.clock.until(lambda: hosts.state(doomed) is None, 60)
    hosts.road.stalls = lambda: False
    await hosts.clock.until(lambda: hosts.standby.taken_at is not None, 120)
    assert (hosts.kept_on(hosts.new), hosts.holds(hosts.new)) == ({}, FIRST)


async def test_an_agent_that_is_killed_in_between_goes_on_with_what_is_there(hosts: SnapshotHosts) -> None:
    await hosts.protected()
    first, second = await hosts.snapshot(FIRST), await hosts.snapshot(SECOND)
    hosts.road.stalls = lambda: bool(hosts.kept_on(hosts.new))
    await hosts.clock.until(lambda: first in hosts.kept_on(hosts.new), 2 * EVERY_S)
    await hosts.new.kill()
    hosts.road.stalls = lambda: False
    hosts.new.start()
    await hosts.rounds()
    assert hosts.kept_on(hosts.new) == {first: FIRST, second: SECOND}
    assert sum(not since for _, since in hosts.road.asked) == 1


async def test_where_the_copy_becomes_the_volume_they_are_there(hosts: SnapshotHosts) -> None:
    first = await hosts.snapshot(FIRST)
    hosts.write(hosts.old, TEXT)
    await hosts.protected()
    await hosts.die(hosts.old)
    await hosts.serves_from(hosts.new)
    await hosts.clock.advance(30)
    assert (hosts.state(first), hosts.kept_on(hosts.new)) == (SnapshotState.AVAILABLE, {first: FIRST})
    row = hosts.world.peek(lambda tx: tx.snapshots.get(first))
    project = hosts.world.peek(lambda tx: tx.projects.select()[0])
    assert row is not None
    wish = volumes.VolumeWish(name="copy", snapshot_id=first)
    made = await hosts.world.control.commit(lambda unit: volumes.create_volume(unit, project, wish))

    def copied() -> bool:
        found = hosts.world.peek(lambda tx: tx.volumes.get(made.id))
        return found is not None and found.state is VolumeState.AVAILABLE

    await hosts.clock.until(copied, 60)
    assert hosts.new.engine.disks.kept[made.id].holds == FIRST


async def test_one_that_the_copy_had_not_got_is_told_as_left_behind(hosts: SnapshotHosts) -> None:
    first = await hosts.snapshot(FIRST)
    await hosts.protected()
    hosts.road.stalls = lambda: True
    second = await hosts.snapshot(SECOND)
    await hosts.die(hosts.old)
    await hosts.serves_from(hosts.new)
    await hosts.clock.advance(30)
    assert (hosts.state(first), hosts.state(second)) == (SnapshotState.AVAILABLE, SnapshotState.ERROR)
    assert "is on old alone" in hosts.reason(second)
    (told,) = hosts.told("volume.promoted")
    assert told["snapshots_missing"] == "1"


async def test_the_next_standby_gets_them_from_the_new_volume(hosts: SnapshotHosts) -> None:
    third = await hosts.join("third")
    first = await hosts.snapshot(FIRST)
    await hosts.protected()
    await hosts.die(hosts.old)
    await hosts.serves_from(hosts.new)
    await hosts.clock.until(lambda: hosts.standby.node_id == third.id and hosts.standby.taken_at is not None, AFTER_S)
    assert hosts.kept_on(third) == {first: FIRST}
