"""Volumes in themselves: states that follow, declared moves, mounts that make sense, and where data keeps an app."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.apps import AppConfig, Mount, Process, wanted_counts
from shellwego.core.assignments import VolumeOrder
from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.core.fleet import Fleet
from shellwego.core.nodes import Backend, Node, NodeHealth
from shellwego.core.placement import NOTHING, Home, NodeUsage, Placement, PlacementRequest, Refusal
from shellwego.core.preemption import reserved, shortlist
from shellwego.core.volume_convergence import (
    CreateVolume,
    DeleteSnapshot,
    DeleteVolume,
    ResizeVolume,
    RestoreVolume,
    UnlockVolume,
    VolumeMemory,
    converge_volumes,
    done,
    failed,
)
from shellwego.core.volumes import (
    LOST,
    VOLUME_MOVES,
    ObservedSnapshot,
    ObservedVolume,
    Presence,
    Promotion,
    SnapshotView,
    Volume,
    VolumeState,
    VolumeView,
    mount_faults,
    restated,
    seen,
    state_of,
)
from tests.contract.store_samples import FACTS
from tests.core.app_builder import app

GIB = 1 << 30
VOLUME = Volume(id="vol_1", project_id="prj_1", name="data", size_bytes=GIB, created_at=1.0, created_by="me")
THERE = ObservedVolume(presence=Presence.PRESENT, size_bytes=GIB)
HOME = replace(VOLUME, node_id="node_1")
MADE = restated(replace(HOME, made=True, observed=THERE))


@pytest.mark.parametrize(
    ("volume", "state"),
    [
        (VOLUME, VolumeState.AVAILABLE),
        (HOME, VolumeState.CREATING),
        (replace(HOME, instance_id="ins_1"), VolumeState.CREATING),
        (MADE, VolumeState.AVAILABLE),
        (replace(MADE, instance_id="ins_1"), VolumeState.ATTACHED),
        (replace(MADE, instance_id="ins_1", snapshot_id="snap_1"), VolumeState.SNAPSHOTTING),
        (replace(MADE, restore_snapshot_id="snap_1"), VolumeState.RESTORING),
        (replace(HOME, observed=ObservedVolume(reason="no room")), VolumeState.ERROR),
        (replace(MADE, observed=ObservedVolume()), VolumeState.ERROR),
        (replace(MADE, observed=replace(THERE, reason="could not grow")), VolumeState.AVAILABLE),
        (replace(MADE, observed=ObservedVolume(reason="gone", reason_code=LOST)), VolumeState.ERROR),
        (replace(MADE, deleting=True), VolumeState.DELETING),
    ],
)
def test_the_state_follows_from_the_rest(volume: Volume, state: VolumeState) -> None:
    assert state_of(volume) is state


OBSERVED = st.builds(
    ObservedVolume,
    presence=st.sampled_from([Presence.ABSENT, Presence.PRESENT]),
    restored=st.integers(0, 1),
    reason=st.sampled_from(["", "no room"]),
    snapshots=st.dictionaries(
        st.just("snap_1"), st.builds(ObservedSnapshot, presence=st.sampled_from(Presence)), max_size=1
    ),
)
PROMOTION = Promotion(from_node_id="node_0", to_node_id="node_1", at=0.0, lost_s=5.0, by="system")
STARTS = [
    restated(volume)
    for volume in (
        HOME,
        replace(HOME, instance_id="ins_1"),
        MADE,
        replace(MADE, instance_id="ins_1"),
        replace(MADE, snapshot_id="snap_1"),
        replace(MADE, restore_snapshot_id="snap_1", restores=1),
        replace(MADE, observed=ObservedVolume(), promotion=PROMOTION, restore_snapshot_id="snap_1", restores=1),
    )
]


@given(st.sampled_from(STARTS), st.lists(OBSERVED, max_size=5))
def test_whatever_a_node_says_only_declared_moves_are_made(volume: Volume, said: list[ObservedVolume]) -> None:
    for observed in said:
        after = seen(volume, observed)
        assert after.state is volume.state or after.state in VOLUME_MOVES[volume.state]
        assert after.made or not volume.made
        volume = after


@pytest.mark.parametrize("volume", [volume for volume in STARTS if volume.made])
def test_whatever_is_done_to_a_volume_its_standby_copy_may_become_it(volume: Volume) -> None:
    promoted = replace(volume, promotion=PROMOTION, observed=ObservedVolume(), snapshot_id="", instance_id="")
    assert state_of(promoted) is VolumeState.MOVING
    assert volume.state is VolumeState.MOVING or VolumeState.MOVING in VOLUME_MOVES[volume.state]


COPY, OTHER = "rep_" + 26 * "a", "rep_" + 26 * "b"


class TestAnAgent:
    ORDER = VolumeOrder(volume_id="vol_1", size_bytes=GIB)
    VIEW = VolumeView(volume_id="vol_1", size_bytes=GIB)

    def test_one_order_a_volume_and_none_beside_one_that_is_under_way(self) -> None:
        grown = replace(self.ORDER, size_bytes=2 * GIB, made=True, restore_snapshot_id="snap_1", restore=1)
        step = converge_volumes([grown], [self.VIEW], {}, set(), 0.0)
        assert step.actions == (RestoreVolume(volume_id="vol_1", snapshot_id="snap_1", number=1),)
        assert not converge_volumes([grown], [self.VIEW], {}, {"vol_1"}, 0.0).actions
        memory = done(VolumeMemory(), step.actions[0])
        step = converge_volumes([grown], [self.VIEW], {"vol_1": memory}, set(), 0.0)
        assert step.actions == (ResizeVolume(volume_id="vol_1", size_bytes=2 * GIB),)
        assert step.observed["vol_1"].restored == 1

    def test_what_fails_is_tried_again_ever_more_slowly(self) -> None:
        action, memory, now = CreateVolume(volume_id="vol_1", size_bytes=GIB), VolumeMemory(), 0.0
        pauses = []
        for _ in range(7):
            memory = failed(memory, action, UnavailableError("no-room", "full"), now)
            step = converge_volumes([self.ORDER], [], {"vol_1": memory}, set(), now)
            assert not step.actions
            assert step.wake_at is not None
            pauses.append(step.wake_at - now)
            now = step.wake_at
            assert converge_volumes([self.ORDER], [], {"vol_1": memory}, set(), now).actions == (action,)
        assert pauses == [1, 2, 5, 10, 20, 20, 20]

    def test_what_is_wanted_instead_of_what_failed_does_not_wait_for_it(self) -> None:
        grow, memory = ResizeVolume(volume_id="vol_1", size_bytes=2 * GIB), VolumeMemory()
        for _ in range(7):
            memory = failed(memory, grow, UnavailableError("no-room", "full"), 10.0)
        grown, gone = replace(self.ORDER, size_bytes=2 * GIB, made=True), replace(self.ORDER, present=False)
        assert not converge_volumes([grown], [self.VIEW], {"vol_1": memory}, set(), 10.0).actions
        step = converge_volumes([gone], [self.VIEW], {"vol_1": memory}, set(), 10.0)
        assert step.actions == (DeleteVolume(volume_id="vol_1"),)
        busy = failed(memory, step.actions[0], UnavailableError("busy", "it is in use"), 10.0)
        step = converge_volumes([gone], [self.VIEW], {"vol_1": busy}, set(), 10.0)
        assert (step.actions, step.wake_at) == ((), 11.0)

    def test_what_no_key_opens_any_more_can_still_be_restored(self) -> None:
        order = VolumeOrder(
            volume_id="vol_1", size_bytes=GIB, made=True, encrypted=True, restore_snapshot_id="snap_1", restore=1
        )
        view = VolumeView(volume_id="vol_1", size_bytes=GIB, used_bytes=0, vm_id="", encrypted=True, locked=True)
        (action,) = converge_volumes([order], [view], {}, (), 0.0).actions
        assert action == RestoreVolume(volume_id="vol_1", snapshot_id="snap_1", number=1)
        memories = {"vol_1": done(VolumeMemory(), action)}
        (action,) = converge_volumes([order], [view], memories, (), 0.0).actions
        assert action == UnlockVolume(volume_id="vol_1")

    @pytest.mark.parametrize(
        ("there", "restored"),
        [
            ((f"{COPY}_3",), f"{COPY}_3"),
            ((f"{COPY}_3", f"{COPY}_4"), f"{COPY}_3"),
            ((f"{COPY}_4", "snap_1", f"{COPY}_5"), f"{COPY}_5"),
            ((f"{COPY}_2", f"{OTHER}_9"), f"{COPY}_3"),
            ((), f"{COPY}_3"),
        ],
    )
    def test_a_copy_becomes_the_volume_with_the_round_that_was_told_or_the_youngest_after_it(
        self, there: tuple[str, ...], restored: str
    ) -> None:
        order = replace(self.ORDER, made=True, restore_snapshot_id=f"{COPY}_3", restore=1)
        view = replace(self.VIEW, snapshots=tuple(SnapshotView(snapshot_id=each) for each in there))
        step = converge_volumes([order], [view], {}, set(), 0.0)
        assert step.actions == (RestoreVolume(volume_id="vol_1", snapshot_id=restored, number=1),)

    def test_what_became_the_volume_and_has_no_whole_round_is_nobodys(self) -> None:
        order = replace(self.ORDER, made=True, restore_snapshot_id=f"{COPY}_3", restore=1)
        action = RestoreVolume(volume_id="vol_1", snapshot_id=f"{COPY}_3", number=1)
        memory = failed(VolumeMemory(), action, InvalidError("no-snapshot", "there is none"), 0.0)
        step = converge_volumes([order], [self.VIEW], {"vol_1": memory}, set(), 1.0)
        assert step.actions == (action,)
        assert (step.observed["vol_1"].restored, step.observed["vol_1"].reason) == (0, "there is none")

    def test_rounds_of_what_became_the_volume_are_kept_until_that_was_told(self) -> None:
        order = replace(self.ORDER, made=True, restore_snapshot_id=f"{COPY}_3", restore=1, replicas={COPY: 4})
        view = replace(self.VIEW, snapshots=(SnapshotView(snapshot_id=f"{COPY}_3"),))
        memories = {"vol_1": VolumeMemory(restored=1)}
        assert not converge_volumes([order], [view], memories, set(), 0.0).actions
        (action,) = converge_volumes([replace(order, restore_snapshot_id="")], [view], memories, set(), 0.0).actions
        assert action == DeleteSnapshot(volume_id="vol_1", snapshot_id=f"{COPY}_3")

    def test_a_restore_that_can_never_be_is_given_up(self) -> None:
        action = RestoreVolume(volume_id="vol_1", snapshot_id="snap_1", number=3)
        memory = failed(VolumeMemory(), action, InvalidError("no-snapshot", "there is none"), 0.0)
        order = replace(self.ORDER, made=True, restore_snapshot_id="snap_1", restore=3)
        step = converge_volumes([order], [self.VIEW], {"vol_1": memory}, set(), 0.0)
        assert not step.actions
        assert (step.observed["vol_1"].restored, step.observed["vol_1"].restore_reason) == (3, "there is none")

    def test_what_is_to_go_goes_with_the_markers_of_its_copies(self) -> None:
        going = replace(self.ORDER, present=False)
        marked = replace(self.VIEW, snapshots=(SnapshotView(snapshot_id="rep_1_4"),))
        first = converge_volumes([going], [marked], {}, set(), 0.0).actions
        assert first == (DeleteSnapshot(volume_id="vol_1", snapshot_id="rep_1_4"),)
        assert converge_volumes([going], [self.VIEW], {}, set(), 0.0).actions == (DeleteVolume(volume_id="vol_1"),)
        held = replace(marked, vm_id="vm_1")
        assert converge_volumes([going], [held], {}, set(), 0.0).actions == ()

    def test_gone_is_told_only_of_what_is_to_go_and_has_nothing_under_way(self) -> None:
        going = replace(self.ORDER, present=False)
        assert converge_volumes([going], [], {}, set(), 0.0).observed["vol_1"].presence is Presence.GONE
        assert converge_volumes([going], [], {}, {"vol_1"}, 0.0).observed["vol_1"].presence is Presence.ABSENT
        assert converge_volumes([self.ORDER], [], {}, set(), 0.0).observed["vol_1"].presence is Presence.ABSENT


class TestPlacement:
    NODES = tuple(Node(id=f"node_{n}", name=f"n{n}", facts=FACTS, last_heard_at=0, created_at=0) for n in range(3))
    REQUEST = PlacementRequest(cpu_milli=100, memory_bytes=1, disk_bytes=1, home=Home("node_1", "data"))

    def test_what_mounts_an_encrypted_volume_goes_where_one_can_be(self) -> None:
        backend = Backend(name="kvm", status="ready", volumes=True)
        one, two, _ = self.NODES
        able = replace(two, facts=replace(FACTS, backends=(replace(backend, encryption=True),)))
        plain = replace(one, facts=replace(FACTS, backends=(backend,)))
        request = replace(self.REQUEST, home=None, volumes=True, encryption=True)
        assert Fleet((plain, able)).place(request) == Placement(able.id)
        refused = Fleet((plain,)).place(request)
        assert refused == Refusal("no node fits: 1 encrypts no volumes")
        assert Fleet((plain,)).place(replace(request, encryption=False)) == Placement(plain.id)

    def test_data_keeps_an_instance_where_it_is(self) -> None:
        assert Fleet(self.NODES).place(self.REQUEST) == Placement("node_1")

    def test_also_where_that_node_goes_down_again_and_again(self) -> None:
        flapping = [replace(n, flapping_since=1.0) if n.id == "node_1" else n for n in self.NODES]
        fleet = Fleet(flapping)
        assert fleet.place(self.REQUEST) == Placement("node_1")
        assert fleet.fits("node_1", self.REQUEST)

    def test_where_it_cannot_be_the_filters_say_why(self) -> None:
        down = [replace(n, health=NodeHealth.DOWN) if n.id == "node_1" else n for n in self.NODES]
        told = "no node fits: 2 do not hold the volume data, 1 holds the volume data and is down"
        assert Fleet(down).place(self.REQUEST) == Refusal(told)
        others = [node for node in self.NODES if node.id != "node_1"]
        assert Fleet(others).place(self.REQUEST) == Refusal("no node fits: 2 do not hold the volume data")
        assert Fleet().place(self.REQUEST) == Refusal("no node fits: no node has joined yet")

    def test_no_eviction_makes_room_for_it_elsewhere(self) -> None:
        may_go = {node.id: NodeUsage(memory_bytes=1 << 30) for node in self.NODES}
        assert [n.id for n in shortlist(self.REQUEST, self.NODES, {}, may_go)] == ["node_1"]
        assert reserved(self.REQUEST, self.NODES[2], NOTHING, NOTHING) is None
        assert reserved(self.REQUEST, self.NODES[1], NOTHING, 0) == Placement("node_1")

    def test_a_volume_that_lives_nowhere_needs_a_node_that_keeps_volumes(self) -> None:
        wish = replace(self.REQUEST, home=None, volumes=True)
        assert Fleet(self.NODES).place(wish) == Refusal("no node fits: 3 keep no volumes")
        backends = tuple(replace(each, volumes=True) for each in FACTS.backends)
        able = replace(self.NODES[2], facts=replace(FACTS, backends=backends))
        assert Fleet([*self.NODES[:2], able]).place(wish) == Placement("node_2")


@pytest.mark.parametrize(
    ("mounts", "faults"),
    [
        ([("data", "/data", "web")], []),
        ([("data", "/data", "web"), ("more", "/data", "worker")], []),
        ([("Data", "/data", "web")], ["mounts[0].source"]),
        ([("data", "data", "web")], ["mounts[0].destination"]),
        ([("data", "/", "web")], ["mounts[0].destination"]),
        ([("data", "/data/", "web")], ["mounts[0].destination"]),
        ([("data", "/a/../b", "web")], ["mounts[0].destination"]),
        ([("data", "/a\n", "web")], ["mounts[0].destination"]),
        ([("data", "/dev", "web")], ["mounts[0].destination"]),
        ([("data", "/data", "no")], ["mounts[0].process"]),
        ([("data", "/a", "web"), ("data", "/b", "worker")], ["mounts[1].source"]),
        ([("data", "/a/b", "web"), ("more", "/a", "web")], ["mounts[1].destination"]),
        ([("data", "/ab", "web"), ("more", "/a", "web")], []),
    ],
)
def test_what_is_wrong_with_mounts_is_named(mounts: list[tuple[str, str, str]], faults: list[str]) -> None:
    config = AppConfig(
        processes=(Process(), Process(name="worker")),
        mounts=tuple(Mount(source=source, destination=path, process=process) for source, path, process in mounts),
    )
    assert [fault.field for fault in mount_faults(config)] == faults


def test_a_process_with_a_volume_has_one_instance_whatever_its_count_became_without() -> None:
    """A release that failed did without the volume, was scaled, and the one before comes back."""
    processes = (Process(name="web"), Process(name="worker"))
    mounted = AppConfig(processes=processes, mounts=(Mount(source="data", destination="/data"),))
    scaled = app(counts={"web": 3, "worker": 2})
    assert wanted_counts(scaled, mounted) == {"web": 1, "worker": 2}
    assert wanted_counts(scaled, AppConfig(processes=processes)) == {"web": 3, "worker": 2}
    assert wanted_counts(app(counts={"web": 0}), mounted) == {"web": 0, "worker": 1}
