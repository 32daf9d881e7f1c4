"""Standby copies of a volume on real agents: how old they are, and that at no moment two VMs have the volume, whatever dies,
is cut off or comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shellwego.control import nodeadmin, standbys, volumes
from shellwego.control.loops import nodes as nodes_loop
from shellwego.control.mounts import users
from shellwego.core.errors import ConflictError, InvalidError, NotFoundError, ShellWeGoError
from shellwego.core.moves import MoveStage
from shellwego.core.nodes import NodeHealth
from shellwego.core.replicas import Replica, ReplicaPurpose, ReplicaState, marker
from shellwego.core.volumeleases import OVER_S, STOP_SHARE, TERM_S
from shellwego.drivers.uplink.memory import LinkState
from tests.agent.move_world import Host
from tests.agent.standby_world import AFTER_S, EVERY_S, LATER, StandbyHosts
from tests.agent.volume_move_world import TEXT


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[StandbyHosts]:
    made = StandbyHosts(tmp_path)
    await made.open("new")
    yield made
    await made.close()


class TestRounds:
    async def test_a_copy_is_made_and_brought_up_again_and_again(self, hosts: StandbyHosts) -> None:
        await hosts.protected()
        assert hosts.holds(hosts.new) == TEXT
        hosts.write(hosts.old, LATER)
        await hosts.clock.advance(EVERY_S + 5)
        assert hosts.holds(hosts.new) == LATER
        await hosts.clock.advance(10 * EVERY_S)
        assert hosts.standby.state is ReplicaState.FOLLOWING
        assert 10 <= hosts.standby.observed.round <= 13
        assert len(hosts.old.engine.disks.kept[hosts.volume_id].snapshots) == 1, "earlier markers are gone"
        assert hosts.told("volume.standby.behind") == []

    async def test_one_that_gets_old_is_told_as_behind_and_as_following_when_it_caught_up(
        self, hosts: StandbyHosts
    ) -> None:
        await hosts.protected()
        hosts.road.stalls = lambda: True
        await hosts.clock.until(lambda: hosts.standby.state is ReplicaState.BEHIND, 3 * EVERY_S)
        (told,) = hosts.told("volume.standby.behind")
        assert (told["node"], told["every_s"]) == (hosts.new.id, str(EVERY_S))
        assert 2 * EVERY_S <= int(told["age_s"]) <= 2 * EVERY_S + 3
        hosts.road.stalls = lambda: False
        await hosts.clock.until(lambda: hosts.standby.state is ReplicaState.FOLLOWING, 60)
        assert len(hosts.told("volume.standby.following")) == 2

    async def test_without_a_node_that_is_named_it_goes_to_another_zone(self, hosts: StandbyHosts) -> None:
        far = await hosts.join("far")
        wish = nodeadmin.NodeWish(zone="elsewhere")
        await hosts.world.control.commit(lambda unit: nodeadmin.update_node(unit, hosts.row(far), wish))
        await hosts.replicate("")
        assert hosts.standby.node_id == far.id

    async def test_it_may_be_kept_elsewhere_from_now_on(self, hosts: StandbyHosts) -> None:
        third = await hosts.join("third")
        await hosts.protected()
        await hosts.replicate("third")
        await hosts.clock.until(lambda: len(hosts.kept) == 1 and hosts.standby.taken_at is not None, 60)
        assert (hosts.holds(third), hosts.holds(hosts.new)) == (TEXT, None)

    async def test_given_up_nothing_is_left_of_it_and_no_lease(self, hosts: StandbyHosts) -> None:
        await hosts.protected()
        await hosts.world.control.commit(lambda unit: standbys.stop_replicating(unit, hosts.volume))
        await hosts.clock.until(lambda: not hosts.kept and not hosts.volume.observed.leased, 60)
        assert hosts.holds(hosts.new) is None
        hosts.old.link.state = LinkState.CUT
        await hosts.clock.advance(3 * TERM_S)
        assert len(hosts.owners()) == 1, "it bears any outage"

    async def test_one_whose_node_is_removed_is_made_on_another(self, hosts: StandbyHosts) -> None:
        await hosts.protected()
        third = await hosts.join("third")
        await hosts.die(hosts.new)
        await hosts.clock.until(lambda: hosts.row(hosts.new).health is NodeHealth.DOWN, 60)
        await hosts.world.control.commit(lambda unit: nodeadmin.remove_node(unit, hosts.row(hosts.new), force=True))
        await hosts.clock.until(lambda: hosts.standby.node_id == third.id and hosts.standby.taken_at is not None, 60)
        assert hosts.holds(third) == TEXT


class TestPromotion:
    async def test_the_standby_becomes_the_volume_and_its_app_comes_there(self, hosts: StandbyHosts) -> None:
        await hosts.protected()
        hosts.write(hosts.old, LATER)
        await hosts.die(hosts.old)
        began = hosts.clock.monotonic()
        await hosts.serves_from(hosts.new)
        assert hosts.clock.monotonic() - began >= OVER_S - 2
        assert hosts.holds(hosts.new) == TEXT, "the round that it held"
        assert (hosts.volume.node_id, hosts.volume.epoch) == (hosts.new.id, 2)
        (told,) = hosts.told("volume.promoted")
        assert (told["from"], told["to"]) == (hosts.old.id, hosts.new.id)
        assert 0 <= float(told["lost_s"]) <= EVERY_S
        assert not hosts.told("volume.restored"), "that is no restore of a user's"

    @pytest.mark.parametrize("how", ["cut off", "answers lost", "agent killed", "power"])
    async def test_at_no_moment_two_have_it(self, hosts: StandbyHosts, how: str) -> None:
        await hosts.protected()
        match how:
            case "cut off":
                hosts.old.link.state = LinkState.CUT
            case "answers lost":
                hosts.old.link.state = LinkState.ANSWERS_LOST
            case "agent killed":
                await hosts.old.kill()
            case _:
                await hosts.die(hosts.old)
        await hosts.clock.advance(TERM_S * STOP_SHARE - 4)
        assert len(hosts.owners()) == (0 if how == "power" else 1)
        if how == "answers lost":
            await hosts.clock.advance(2 * TERM_S)
            assert hosts.owners() == [], "it does not know that it is heard, so it stopped; nobody else began"
            assert hosts.volume.node_id == hosts.old.id
            return
        await hosts.serves_from(hosts.new)

    async def test_without_the_lease_two_would(self, hosts: StandbyHosts, monkeypatch: pytest.MonkeyPatch) -> None:
        """So that what is shown above is shown by the lease."""
        monkeypatch.setattr(nodes_loop, "over", lambda _: True)
        await hosts.protected()
        hosts.old.link.state = LinkState.CUT
        await hosts.clock.advance(30)
        assert hosts.most_owners == 2

    async def test_back_before_the_lease_is_over_it_keeps_the_volume(self, hosts: StandbyHosts) -> None:
        await hosts.protected()
        hosts.old.link.state = LinkState.CUT
        await hosts.clock.until(lambda: hosts.row(hosts.old).health is NodeHealth.DOWN, 30)
        await hosts.clock.advance(30)
        hosts.old.link.state = LinkState.UP
        await hosts.clock.advance(AFTER_S)
        await hosts.serves_from(hosts.old)
        assert (hosts.volume.epoch, hosts.left, hosts.told("volume.promoted")) == (1, [], [])

    async def test_back_afterwards_what_it_has_is_left_as_it_is_until_somebody_drops_it(
        self, hosts: StandbyHosts
    ) -> None:
        await hosts.protected()
        hosts.write(hosts.old, LATER)
        hosts.old.link.state = LinkState.CUT
        await hosts.serves_from(hosts.new)
        hosts.old.link.state = LinkState.UP
        await hosts.clock.advance(120)
        assert (hosts.holds(hosts.old), hosts.holds(hosts.new), hosts.most_owners) == (LATER, TEXT, 1)
        (left,) = hosts.left
        assert (left.node_id, left.state) == (hosts.old.id, ReplicaState.LEFT)
        assert hosts.standby.node_id == "", "there is no other node that could keep one"
        await hosts.world.control.commit(lambda unit: standbys.drop_left(unit, hosts.volume, left.id))
        await hosts.clock.until(lambda: not hosts.left, 60)
        await hosts.clock.until(lambda: hosts.standby.taken_at is not None, 120)
        assert (hosts.standby.node_id, hosts.holds(hosts.old)) == (hosts.old.id, TEXT), "and it follows again"

    async def test_what_was_left_outlives_the_volume_until_somebody_drops_it(self, hosts: StandbyHosts) -> None:
        left = await self.lost_with_a_copy_left(hosts)
        await hosts.world.control.commit(lambda unit: standbys.drop_left(unit, hosts.volume, left.id))
        await hosts.clock.until(lambda: not hosts.kept, 60)
        assert hosts.holds(hosts.old) is None

    async def test_or_deletes_the_lost_volume(self, hosts: StandbyHosts) -> None:
        await self.lost_with_a_copy_left(hosts)
        await hosts.world.deploy("hello:v1", mounts=())
        await hosts.clock.until(lambda: not hosts.world.peek(lambda tx: users(tx, hosts.volume)), 120)
        await hosts.world.control.commit(lambda unit: volumes.delete_volume(unit, hosts.volume))
        await hosts.clock.until(lambda: not hosts.kept, 60)
        assert hosts.holds(hosts.old) is None

    @staticmethod
    async def lost_with_a_copy_left(hosts: StandbyHosts) -> Replica:
        """The standby's node is removed in its turn, and the node that the volume had first is back."""
        taken = await hosts.snapshot(TEXT)
        await hosts.protected()
        hosts.write(hosts.old, LATER)
        hosts.old.link.state = LinkState.CUT
        await hosts.serves_from(hosts.new)
        hosts.old.link.state = LinkState.UP
        await hosts.die(hosts.new)
        await hosts.clock.until(lambda: hosts.row(hosts.new).health is NodeHealth.DOWN, 60)
        await hosts.remove(hosts.new)
        assert hosts.volume.lost
        assert [told["copies_left"] for told in hosts.told("volume.lost")] == ["1"]
        await hosts.clock.advance(120)
        kept = hosts.old.engine.disks.kept[hosts.volume_id]
        assert (kept.holds, kept.snapshots[taken]) == (LATER, TEXT)
        (left,) = hosts.kept
        assert (left.purpose, left.state) == (ReplicaPurpose.LEFT, ReplicaState.LEFT)
        return left

    async def test_a_third_node_keeps_the_next_standby(self, hosts: StandbyHosts) -> None:
        third = await hosts.join("third")
        await hosts.protected()
        await hosts.die(hosts.old)
        await hosts.serves_from(hosts.new)
        await hosts.clock.until(lambda: hosts.standby.node_id == third.id and hosts.standby.taken_at is not None, 60)
        await hosts.clock.until(lambda: hosts.volume.observed.leased, 60)
        await hosts.die(hosts.new)
        await hosts.serves_from(third)
        assert (hosts.holds(third), hosts.volume.epoch) == (TEXT, 3)

    async def test_a_round_that_breaks_off_with_its_node_leaves_the_one_before(self, hosts: StandbyHosts) -> None:
        await hosts.protected()
        hosts.write(hosts.old, LATER)
        hosts.road.stalls = lambda: True
        await hosts.clock.advance(EVERY_S + 2)
        await hosts.die(hosts.old)
        await hosts.serves_from(hosts.new)
        assert hosts.holds(hosts.new) == TEXT

    async def test_by_hand_where_that_is_wished(self, hosts: StandbyHosts) -> None:
        await hosts.replicate(automatic=False)
        await hosts.clock.until(lambda: hosts.standby.taken_at is not None and hosts.volume.observed.leased, 60)
        assert (await self.refusal(hosts)).code == "home-lives"
        await hosts.die(hosts.old)
        await hosts.clock.until(lambda: hosts.row(hosts.old).health is NodeHealth.DOWN, 30)
        assert (await self.refusal(hosts)).code == "lease-runs"
        await hosts.clock.advance(AFTER_S)
        assert hosts.volume.node_id == hosts.old.id
        await hosts.world.control.commit(lambda unit: standbys.promote_volume(unit, hosts.volume))
        await hosts.serves_from(hosts.new)

    async def test_a_round_that_had_come_and_was_not_told_yet_is_what_it_becomes(self, hosts: StandbyHosts) -> None:
        await hosts.replicate(automatic=False)
        await hosts.clock.until(lambda: hosts.standby.taken_at is not None and hosts.volume.observed.leased, 60)
        await hosts.die(hosts.old)
        await hosts.clock.advance(AFTER_S)
        hosts.new.link.state = LinkState.CUT
        kept, held = hosts.new.engine.disks.kept[hosts.volume_id], hosts.standby.observed.round
        kept.snapshots = {marker(hosts.standby.id, held + 1): LATER}
        kept.holds = "half of a round after it"
        await hosts.world.control.commit(lambda unit: standbys.promote_volume(unit, hosts.volume))
        hosts.new.link.state = LinkState.UP
        await hosts.serves_from(hosts.new)
        assert hosts.holds(hosts.new) == LATER

    async def test_a_volume_whose_node_never_said_that_it_fences_is_not_promoted(self, hosts: StandbyHosts) -> None:
        hosts.old.engine.fence_volumes = None  # type: ignore[assignment, method-assign]
        await hosts.replicate()
        await hosts.clock.until(lambda: hosts.standby.taken_at is not None, 60)
        await hosts.clock.advance(10)
        await hosts.die(hosts.old)
        await hosts.clock.advance(AFTER_S)
        assert (hosts.volume.node_id, (await self.refusal(hosts)).code) == (hosts.old.id, "never-fenced")

    async def test_without_a_standby_it_waits_for_its_node_as_ever(self, hosts: StandbyHosts) -> None:
        await hosts.die(hosts.old)
        await hosts.clock.advance(AFTER_S)
        assert hosts.volume.node_id == hosts.old.id
        assert (await self.refusal(hosts)).code == "no-standby"

    async def test_what_its_node_had_begun_comes_to_nothing(self, hosts: StandbyHosts) -> None:
        await hosts.join("third")
        await hosts.protected()
        hosts.road.stalls = lambda: True
        await hosts.world.control.commit(lambda unit: hosts.ask_move(unit, hosts.all[2]))
        await hosts.die(hosts.old)
        await hosts.serves_from(hosts.new)
        assert (hosts.move.stage.value, "was lost" in hosts.move.reason) == ("failed", True)

    @staticmethod
    async def refusal(hosts: StandbyHosts) -> ConflictError:
        error = await hosts.refused(lambda unit: standbys.promote_volume(unit, hosts.volume))
        assert isinstance(error, ConflictError)
        return error


class TestRefusals:
    @pytest.mark.parametrize("every_s", [0, 4, 8 * 86_400])
    async def test_an_age_that_makes_no_sense(self, hosts: StandbyHosts, every_s: int) -> None:
        error = await hosts.refused(lambda unit: standbys.replicate(unit, hosts.volume, every_s))
        assert isinstance(error, InvalidError)
        assert [fault.field for fault in error.errors] == ["every_s"]

    async def test_a_node_that_cannot_keep_it(self, hosts: StandbyHosts) -> None:
        async def refused(host: Host | None) -> ShellWeGoError:
            node = hosts.row(host) if host else None
            return await hosts.refused(lambda unit: standbys.replicate(unit, hosts.volume, EVERY_S, node))

        await hosts.cordon(hosts.new)
        error = await refused(hosts.new)
        assert [(fault.field, fault.code) for fault in error.errors] == [("node", "does-not-fit")]
        assert (await refused(hosts.old)).code == "already-there"
        nowhere = await refused(None)
        assert (nowhere.code, "1 is cordoned" in nowhere.message) == ("no-node-fits", True)
        assert hosts.kept == []

    async def test_a_copy_that_is_needed_or_is_none(self, hosts: StandbyHosts) -> None:
        await hosts.protected()
        kept = hosts.standby.id
        assert (await hosts.refused(lambda unit: standbys.drop_left(unit, hosts.volume, kept))).code == "copy-in-use"
        error = await hosts.refused(lambda unit: standbys.drop_left(unit, hosts.volume, "rep_none"))
        assert isinstance(error, NotFoundError)

    async def test_a_node_whose_volumes_have_copies_elsewhere_is_not_removed(self, hosts: StandbyHosts) -> None:
        await hosts.replicate(automatic=False)
        await hosts.clock.until(lambda: hosts.standby.taken_at is not None, 60)
        await hosts.die(hosts.old)
        await hosts.clock.until(lambda: hosts.row(hosts.old).health is NodeHealth.DOWN, 30)
        error = await hosts.refused(lambda unit: nodeadmin.remove_node(unit, hosts.row(hosts.old), force=True))
        assert error.code == "node-has-standbys-elsewhere"

    async def test_one_to_which_a_volume_was_moved_is_once_no_lease_is_in_force_there_and_the_copy_follows(
        self, hosts: StandbyHosts
    ) -> None:
        third = await hosts.join("third")
        await hosts.replicate("third")
        await hosts.clock.until(lambda: hosts.standby.taken_at is not None, 60)
        await hosts.start_move()
        await hosts.clock.until(lambda: hosts.move.stage is MoveStage.ARRIVING, 60)
        await hosts.new.kill()
        await hosts.clock.until(lambda: hosts.row(hosts.new).health is NodeHealth.DOWN, 60)
        error = await hosts.refused(lambda unit: nodeadmin.remove_node(unit, hosts.row(hosts.new), force=True))
        assert error.code == "node-takes-volumes-over"
        await hosts.clock.until(lambda: hosts.row(hosts.new).leases_over, AFTER_S)
        await hosts.remove(hosts.new)
        await hosts.serves_from(hosts.old)
        hosts.write(hosts.old, LATER)
        await hosts.clock.until(lambda: hosts.holds(third) == LATER, 4 * EVERY_S)
        assert hosts.volume.observed.leased

    async def test_a_volume_that_is_deleted_takes_its_copies_along(self, hosts: StandbyHosts) -> None:
        wish = volumes.VolumeWish(name="other", size_bytes=1 << 30)
        project = hosts.world.peek(lambda tx: tx.projects.select()[0])
        other = await hosts.world.control.commit(lambda unit: volumes.create_volume(unit, project, wish))
        error = await hosts.refused(lambda unit: standbys.replicate(unit, other, EVERY_S))
        assert error.code == "volume-not-made"
