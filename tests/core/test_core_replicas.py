"""Copies of volumes on other nodes: when the next round is due, and what the node that keeps one does next."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.errors import InvalidError, NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.replica_convergence import (
    NO_BASE,
    Discard,
    Load,
    Receive,
    ReplicaAction,
    ReplicaMemory,
    converge_replicas,
    done,
    failed,
    load_of,
)
from shellwego.core.replicas import (
    REPLICA_MOVES,
    ObservedReplica,
    Replica,
    ReplicaOrder,
    ReplicaPurpose,
    ReplicaState,
    accompanied,
    asked,
    following,
    marked,
    marker,
    next_at,
    placed,
    restated,
    seen,
)
from shellwego.core.volume_convergence import DeleteSnapshot
from shellwego.core.volumes import Presence, SnapshotView, VolumeView

ID = "rep_" + "0" * 26
OTHER = "rep_" + "1" * 26
REPLICA = Replica(
    id=ID,
    volume_id="vol_1",
    project_id="prj_1",
    node_id="node_2",
    purpose=ReplicaPurpose.STANDBY,
    every_s=60,
    size_bytes=1 << 30,
    asked_at=100.0,
    created_at=100.0,
    created_by="me",
)
ORDER = ReplicaOrder(replica_id=ID, volume_id="vol_1", size_bytes=1 << 30, round=1)


def holding(round_: int) -> ObservedReplica:
    return ObservedReplica(presence=Presence.PRESENT, round=round_, snapshot_id=marker(ID, round_))


def test_a_marker_names_its_replica_and_round_and_nothing_else_is_one() -> None:
    assert marked(marker(ID, 12)) == (ID, 12)
    for text in (ID, f"{ID}_0", f"{ID}_01", "snap_x", f"bak_{'0' * 26}_1", f"{ID}_1\n"):
        assert marked(text) is None


def test_its_age_counts_from_when_its_round_was_asked_for() -> None:
    held = seen(REPLICA, holding(1), 130.0)
    assert (held.state, held.taken_at, next_at(held)) == (ReplicaState.FOLLOWING, 100.0, 160.0)
    again = asked(held, 160.0)
    assert (again.round, again.taken_at, next_at(again)) == (2, 100.0, None)
    assert restated(again, 221.0).state is ReplicaState.BEHIND
    assert seen(again, holding(2), 222.0).taken_at == 160.0


def test_one_that_lost_what_it_held_is_seeded_anew_and_has_no_age() -> None:
    lost = seen(seen(REPLICA, holding(1), 130.0), ObservedReplica(), 140.0)
    assert (lost.state, lost.taken_at) == (ReplicaState.SEEDING, None)


def test_a_reason_makes_it_an_error_until_the_round_is_held() -> None:
    held = asked(seen(REPLICA, holding(1), 130.0), 160.0)
    assert seen(held, replace(holding(1), reason="the link is cut"), 170.0).state is ReplicaState.ERROR
    assert seen(held, replace(holding(2), reason="the link was cut"), 170.0).state is ReplicaState.FOLLOWING


observations = st.builds(
    ObservedReplica, round=st.integers(0, 3), reason=st.sampled_from(["", "cut"]), presence=st.sampled_from(Presence)
)


@given(st.lists(st.tuples(observations, st.floats(0, 400), st.booleans()), max_size=8))
def test_every_change_of_state_is_one_of_the_table(steps: list[tuple[ObservedReplica, float, bool]]) -> None:
    replica, now = restated(REPLICA, 100.0), 100.0
    for observed, pause, ask in steps:
        now += pause
        after = seen(replica, replace(observed, round=min(observed.round, replica.round)), now)
        after = asked(after, now) if ask and after.up else after
        assert after.state is replica.state or after.state in REPLICA_MOVES[replica.state]
        replica = after


# The node that keeps it


def view(*snapshots: str, vm_id: str = "") -> VolumeView:
    kept = tuple(SnapshotView(snapshot_id=each) for each in snapshots)
    return VolumeView(volume_id="vol_1", size_bytes=1 << 30, vm_id=vm_id, snapshots=kept)


NOTHING = ReplicaMemory()


def look(
    order: ReplicaOrder, found: VolumeView | None, memory: ReplicaMemory = NOTHING
) -> tuple[ReplicaAction | None, ObservedReplica | None]:
    step = converge_replicas([order], [found] if found else [], {ID: memory}, [], 10.0)
    (action,) = [action for _, action in step.actions] or [None]
    return action, step.observed.get(ID)


def receive(snapshot_id: str, since: str = "", *, round_: int = 1, held: int = 0) -> Receive:
    """`held` need not be said where it follows from what it is to differ from."""
    of = marked(since)
    return Receive(
        replica_id=ID,
        volume_id="vol_1",
        round=round_,
        snapshot_id=snapshot_id,
        since=since,
        held=of[1] if of else held,
    )


def test_all_that_the_first_round_brings_is_a_copy_and_what_comes_later_a_difference() -> None:
    order, held = replace(ORDER, chain=("snap_1",)), marker(ID, 1)
    for found in (None, view("snap_1")):
        action = look(order, found)[0]
        assert action is not None
        assert load_of(action) is Load.COPY
    later, memory = replace(order, round=2, chain=("snap_1", "snap_2"), coming=("snap_2",)), ReplicaMemory(sure=1)
    for found in (view("snap_1", held), view("snap_1", held, "snap_2"), view("snap_1", held, marker(ID, 2))):
        action = look(later, found, memory)[0]
        assert action is not None
        assert load_of(action) is Load.DIFFERENCE
    assert load_of(Discard(volume_id="vol_1")) is Load.REMOVAL
    assert load_of(DeleteSnapshot(volume_id="vol_1", snapshot_id=held)) is Load.REMOVAL


def test_the_volumes_snapshots_come_first_the_oldest_first_and_then_the_marker() -> None:
    order = replace(ORDER, chain=("snap_1", "snap_2"))
    assert look(order, None)[0] == receive("snap_1")
    assert look(order, view("snap_1"))[0] == receive("snap_2", "snap_1")
    assert look(order, view("snap_1", "snap_2"))[0] == receive(marker(ID, 1), "snap_2")


# The volume's snapshots that come along with a standby


KEEPING = replace(ORDER, round=4, chain=("snap_1", "snap_2", "snap_3"), coming=("snap_2", "snap_3"))


def test_snapshots_that_were_taken_since_come_on_top_of_the_marker_that_is_there() -> None:
    held, memory = marker(ID, 2), ReplicaMemory(sure=2)
    action, told = look(KEEPING, view(held, "snap_1"), memory)
    assert action == receive("snap_2", held, round_=4)
    assert told is not None
    assert (told.round, told.snapshots) == (2, ("snap_1",))
    action, told = look(KEEPING, view(held, "snap_1", "snap_2"), memory)
    assert action == receive("snap_3", "snap_2", round_=4, held=2)
    assert told is not None
    assert told.snapshots == ("snap_1", "snap_2"), "what is there is told before its round is held"
    assert look(KEEPING, view(held, "snap_1", "snap_2", "snap_3"), memory)[0] == receive(
        marker(ID, 4), "snap_3", round_=4, held=2
    )


def test_one_made_anew_gets_all_of_them_in_the_order_in_which_they_were_taken() -> None:
    memory = ReplicaMemory(anew=True)
    assert isinstance(look(KEEPING, view(marker(ID, 2), "snap_1"), memory)[0], Discard)
    assert look(KEEPING, None, memory)[0] == receive("snap_1", round_=4)
    assert look(KEEPING, view("snap_1"))[0] == receive("snap_2", "snap_1", round_=4)


def test_what_its_node_kept_before_it_was_removed_is_not_built_upon() -> None:
    """The snapshots there are older than that marker, or came on top of it: nobody knows."""
    again = accompanied(placed(replace(REPLICA, observed=holding(2)), "node_2", 160.0), ["snap_1", "snap_2", "snap_3"])
    assert again.along is not None
    assert again.along.anew
    order, found = replace(KEEPING, coming=KEEPING.chain, anew=True), view(marker(ID, 2), "snap_1")
    action, told = look(order, found)
    assert action == Discard(volume_id="vol_1")
    assert told is not None
    assert told.round == 0
    assert look(order, None)[0] == receive("snap_1", round_=4)
    assert look(order, view("snap_1"))[0] == receive("snap_2", "snap_1", round_=4)
    up = look(order, view(marker(ID, 4), "snap_1", "snap_2", "snap_3"), ReplicaMemory(sure=4))
    assert up[0] is None


def test_what_the_volume_has_no_more_goes_before_anything_comes_on_top_of_it() -> None:
    order = replace(KEEPING, chain=("snap_1", "snap_3"), coming=("snap_3",), gone=("snap_2",))
    found = view(marker(ID, 2), "snap_1", "snap_2")
    assert look(order, found)[0] == DeleteSnapshot(volume_id="vol_1", snapshot_id="snap_2")
    assert look(order, view(marker(ID, 2), "snap_1"))[0] == receive("snap_3", marker(ID, 2), round_=4)
    up = look(order, view(marker(ID, 4), "snap_2", "snap_x"), ReplicaMemory(sure=4))[0]
    assert up == DeleteSnapshot(volume_id="vol_1", snapshot_id="snap_2"), "and what nobody names stays"


def test_a_copy_that_holds_only_what_was_deleted_is_known_and_made_anew() -> None:
    order = replace(ORDER, gone=("snap_1",))
    action, told = look(order, view("snap_1"))
    assert action == Discard(volume_id="vol_1")
    assert told is not None
    assert told.reason_code == ""


def test_a_snapshot_that_was_deleted_on_its_way_is_no_reason_to_begin_anew() -> None:
    gone = NotFoundError(NO_BASE, "there is no snapshot snap_2 any more")
    assert not failed(NOTHING, receive("snap_3", "snap_2", round_=4), gone, 0.0).anew


SNAPSHOTS = st.lists(st.sampled_from([f"snap_{number}" for number in range(1, 7)]), unique=True).map(sorted)


@given(SNAPSHOTS, SNAPSHOTS, SNAPSHOTS, st.booleans())
def test_in_the_end_a_copy_has_the_snapshots_that_the_volume_has_and_each_came_on_the_youngest(
    before: list[str], asked_with: list[str], deleted: list[str], forgetful: bool
) -> None:
    """A copy that holds a round with some snapshots, a round with others, of which some are deleted meanwhile."""
    held = replace(REPLICA, observed=replace(holding(1), snapshots=tuple(before)))
    now_there = [each for each in asked_with if each not in deleted]
    replica = accompanied(asked(held, 160.0), asked_with)
    there, memory = [*before, marker(ID, 1)], ReplicaMemory(sure=0 if forgetful else 1)
    for _ in range(40):
        own = tuple(each for each in there if marked(each) is None)
        seen_now = replace(replica, observed=replace(replica.observed, snapshots=own))
        chain, coming, gone = following(seen_now, now_there)
        order = replace(ORDER, round=2, chain=chain, coming=coming, gone=gone)
        action = look(order, view(*sorted(there)), memory)[0]
        if action is None:
            break
        if isinstance(action, Receive) and action.snapshot_id not in there:
            assert action.since == there[-1], "what is on top, in the order in which they came"
            there.append(action.snapshot_id)
        elif isinstance(action, DeleteSnapshot):
            there.remove(action.snapshot_id)
        assert not isinstance(action, Discard)
        memory = done(memory, order, action)
    assert set(there) == {*now_there, marker(ID, 2)}


def test_a_round_that_an_older_server_asked_for_brings_no_snapshot() -> None:
    replica = accompanied(asked(REPLICA, 160.0), ["snap_1"])
    assert following(replica, ["snap_1"]) == (("snap_1",), ("snap_1",), ())
    later = asked(replica, 220.0)
    assert following(later, ["snap_1", "snap_2"]) == (("snap_1",), (), ())
    assert following(later, ["snap_2"]) == ((), (), ("snap_1",))
    assert following(REPLICA, ["snap_1"]) == ((), (), ())


def test_a_round_differs_from_the_last_marker_that_goes_once_the_next_is_there() -> None:
    order, memory = replace(ORDER, round=4), ReplicaMemory(sure=2)
    action, told = look(order, view(marker(ID, 2)), memory)
    assert action == receive(marker(ID, 4), marker(ID, 2), round_=4)
    assert told is not None
    assert told.round == 2
    assert isinstance(action, Receive)
    memory = done(memory, order, action, "ab" * 32)
    action, told = look(order, view(marker(ID, 2), marker(ID, 4)), memory)
    assert action == DeleteSnapshot(volume_id="vol_1", snapshot_id=marker(ID, 2))
    assert told == ObservedReplica(presence=Presence.PRESENT, round=4, snapshot_id=marker(ID, 4), digest="ab" * 32)
    assert look(order, view(marker(ID, 4)), memory)[0] is None


def test_what_another_agent_received_counts_once_the_copy_was_made_that_again() -> None:
    action, told = look(ORDER, view(marker(ID, 1)))
    assert (action, told) == (receive(marker(ID, 1), held=1), None)
    assert isinstance(action, Receive)
    told = look(ORDER, view(marker(ID, 1)), done(ReplicaMemory(), ORDER, action))[1]
    assert told is not None
    assert told.round == 1


@pytest.mark.parametrize("error", [NotFoundError(NO_BASE, "gone"), InvalidError("invalid-stream", "not what was sent")])
def test_where_the_base_is_the_reason_it_goes_and_begins_from_nothing(error: ShellWeGoError) -> None:
    order, memory = replace(ORDER, round=2), ReplicaMemory(sure=1)
    memory = failed(memory, receive(marker(ID, 2), marker(ID, 1), round_=2), error, 0.0)
    action, told = look(order, view(marker(ID, 1)), memory)
    assert action == Discard(volume_id="vol_1")
    assert told is not None
    assert (told.round, told.reason) == (0, error.message)
    assert isinstance(action, Discard)
    assert failed(NOTHING, action, UnavailableError("storage-error", "EIO"), 0.0).anew, "half of it may be gone"
    assert look(order, None, done(memory, order, action))[0] == receive(marker(ID, 2), round_=2)


def test_however_often_the_control_plane_did_not_answer_it_begins_anew_as_soon_as_the_base_is_known_to_be_gone() -> (
    None
):
    memory, action = ReplicaMemory(sure=1), receive(marker(ID, 2), marker(ID, 1), round_=2)
    first = failed(memory, action, NotFoundError(NO_BASE, "gone"), 100.0)
    for _ in range(9):
        memory = failed(memory, action, UnavailableError("uplink-unavailable", "no answer"), 0.0)
    assert failed(memory, action, NotFoundError(NO_BASE, "gone"), 100.0) == first
    assert first.next_try > 100.0, "not at once: it may be so each time"


def test_other_failures_are_tried_again_ever_more_slowly_on_the_same_base() -> None:
    memory, order = ReplicaMemory(sure=1), replace(ORDER, round=2)
    action = receive(marker(ID, 2), marker(ID, 1), round_=2)
    error = UnavailableError("stream-cut", "the snapshot ended on its way")
    first = failed(memory, action, error, 10.0)
    second = failed(first, action, error, 10.0)
    assert 10.0 < first.next_try < second.next_try
    found, told = look(order, view(marker(ID, 1)), first)
    assert (found, told is not None and told.round) == (None, 1)
    assert look(order, view(marker(ID, 1)), replace(first, next_try=10.0))[0] == action


@pytest.mark.parametrize(
    ("error", "longest"),
    [
        (UnavailableError("uplink-unavailable", "nobody answers"), 10.0),
        (NotFoundError("replica", "none is here"), 20.0),
    ],
)
def test_after_an_outage_of_any_length_a_copy_is_soon_tried_again(error: ShellWeGoError, longest: float) -> None:
    memory = ReplicaMemory(sure=1)
    for _ in range(20):
        memory = failed(memory, receive(marker(ID, 2), marker(ID, 1), round_=2), error, 100.0)
    assert memory.next_try == 100.0 + longest


def test_what_is_wanted_instead_of_what_failed_does_not_wait_for_it() -> None:
    """As where the snapshot that was to come along was deleted while the copy's node was away."""
    order, memory = replace(KEEPING, chain=("snap_1",), coming=("snap_1",)), NOTHING
    found = view(marker(ID, 2))
    refused = look(order, found)[0]
    assert refused is not None
    for _ in range(9):
        memory = failed(memory, refused, NotFoundError("snapshot-not-found", "there is none"), 10.0)
    assert look(order, found, memory)[0] is None
    changed = replace(KEEPING, chain=(), coming=(), gone=("snap_1",))
    wanted = receive(marker(ID, 4), marker(ID, 2), round_=4)
    assert look(changed, found, memory)[0] == wanted
    busy = failed(memory, wanted, UnavailableError("replica-busy", "it is being sent"), 10.0)
    assert busy.next_try == 11.0, "it failed for the first time"
    assert look(changed, found, busy)[0] is None


def test_one_that_is_to_go_does_not_wait_for_the_next_try_of_what_failed_before() -> None:
    order, found = replace(ORDER, round=2, present=False), view(marker(ID, 1))
    error = UnavailableError("stream-cut", "the snapshot ended on its way")
    memory = failed(ReplicaMemory(sure=1), receive(marker(ID, 2), marker(ID, 1), round_=2), error, 10.0)
    assert look(order, found, memory)[0] == Discard(volume_id="vol_1")
    assert look(order, found, failed(memory, Discard(volume_id="vol_1"), error, 10.0))[0] is None


def test_a_volume_of_its_id_that_is_no_copy_is_left_alone_and_told() -> None:
    order = replace(ORDER, chain=("snap_1", "snap_2"), coming=("snap_1", "snap_2"), anew=True)
    for found in (view(), view("snap_x"), view(marker(OTHER, 1)), view("snap_1", marker(OTHER, 1))):
        action, told = look(order, found)
        assert action is None
        assert told is not None
        assert told.reason_code == "foreign-copy"


def test_one_that_is_to_go_goes_with_its_snapshots_but_never_from_a_vm() -> None:
    order = replace(ORDER, present=False)
    assert look(order, view("snap_1", vm_id="vm_1"))[0] is None
    assert look(order, view("snap_1"))[0] == Discard(volume_id="vol_1")
    assert look(order, view())[0] == Discard(volume_id="vol_1")
    told = look(order, None)[1]
    assert told is not None
    assert told.presence is Presence.GONE
