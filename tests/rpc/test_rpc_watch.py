"""Watching VMs: a snapshot, then changes; resumed without a loss; bounded whoever stalls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.errors import InvalidSpecError
from plasmavmc.rpc.api import Position, SnapshotBegun, SnapshotDone, SnapshotVm, VmChange, VmEvent, VmFilter
from plasmavmc.rpc.clients.vms import WatchEvent
from plasmavmc.rpc.v1 import vm_pb2
from plasmavmc.rpc.v1.vm_pb2_grpc import VmServiceStub
from plasmavmc.rpc.watch import History, position_of, token_of
from plasmavmc.states import VmState
from plasmavmc.types import Vm, VmSpec, VmStatus
from tests.rpc.rpc_rig import ACME, OTHER, TOKENS, RpcRig, running


def vm(vm_id: str, state: VmState = VmState.RUNNING, since: float = 0.0) -> Vm:
    return Vm(VmSpec(vm_id, ACME, "name", "sha256:" + "0" * 64), VmStatus(state, since))


async def take(events: AsyncIterator[VmEvent], count: int) -> list[VmEvent]:
    async with asyncio.timeout(5):
        return [await anext(events) for _ in range(count)]


def seen(events: list[VmEvent]) -> dict[str, Vm]:
    """What a reader knows after these events."""
    known: dict[str, Vm] = {}
    for event in events:
        match event:
            case SnapshotBegun():
                known = {}
            case SnapshotVm(found):
                known[found.spec.id] = found
            case VmChange(before, after, _):
                if after is None:
                    assert before is not None
                    del known[before.spec.id]
                else:
                    known[after.spec.id] = after
            case SnapshotDone():
                pass
    return known


async def drain(history: History, after: Position | None) -> tuple[list[VmEvent], Position]:
    """All that there is to read now."""
    events: list[VmEvent] = []
    reader = history.read(after)
    position = after
    while True:
        task = asyncio.ensure_future(anext(reader))
        done, _ = await asyncio.wait({task}, timeout=0.001)
        if not done:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert position is not None
            return events, position
        events.append(task.result())
        if isinstance(events[-1], (SnapshotDone, VmChange)):
            position = events[-1].position


async def test_a_new_reader_gets_a_snapshot_and_then_each_change() -> None:
    history = History()
    history.note([vm("vm_a"), vm("vm_b")])
    events = history.read(None)
    begun, first, second, done = await take(events, 4)
    assert (begun, first, second) == (SnapshotBegun(), SnapshotVm(vm("vm_a")), SnapshotVm(vm("vm_b")))
    assert isinstance(done, SnapshotDone)
    history.note([vm("vm_b", VmState.STOPPED)])
    gone, changed = await take(events, 2)
    assert isinstance(gone, VmChange)
    assert isinstance(changed, VmChange)
    assert (gone.before, gone.after) == (vm("vm_a"), None)
    assert (changed.before, changed.after) == (vm("vm_b"), vm("vm_b", VmState.STOPPED))


async def test_a_reader_goes_on_where_it_was() -> None:
    history = History()
    history.note([vm("vm_a")])
    _, position = await drain(history, None)
    history.note([vm("vm_a"), vm("vm_b")])
    history.note([vm("vm_b")])
    (added, removed), _ = await drain(history, position)
    assert isinstance(added, VmChange)
    assert isinstance(removed, VmChange)
    assert added.after == vm("vm_b")
    assert removed.after is None


@pytest.mark.parametrize("revision", [0, 1, 99], ids=["too old", "old", "of the future"])
async def test_what_is_not_known_any_more_begins_anew(revision: int) -> None:
    history = History(kept=3)
    for step in range(10):
        history.note([vm("vm_a", since=step)])
    _, now = await drain(history, None)
    events, _ = await drain(history, replace(now, revision=revision))
    assert [type(event) for event in events] == [SnapshotBegun, SnapshotVm, SnapshotDone]
    assert await take(history.read(replace(now, revision=now.revision - 3)), 3)


async def test_a_position_of_another_server_begins_anew() -> None:
    history = History()
    history.note([vm("vm_a")])
    _, position = await drain(History(), None)
    events, _ = await drain(history, position)
    assert isinstance(events[0], SnapshotBegun)


async def test_a_reader_that_stalls_gets_a_snapshot_again() -> None:
    history = History(kept=4)
    history.note([vm("vm_a")])
    events = history.read(None)
    await take(events, 3)
    for step in range(100):
        history.note([vm("vm_a", since=step), vm("vm_b", since=step)])
    told = await take(events, 4)
    assert [type(event) for event in told] == [SnapshotBegun, SnapshotVm, SnapshotVm, SnapshotDone]
    assert seen(told)["vm_b"] == vm("vm_b", since=99)


VMS = st.dictionaries(
    st.sampled_from(["vm_a", "vm_b", "vm_c"]), st.sampled_from([VmState.PENDING, VmState.RUNNING, VmState.STOPPED])
)


@given(st.lists(st.tuples(VMS, st.booleans()), max_size=12), st.integers(1, 6))
def test_who_reads_now_and_then_knows_what_there_is(steps: list[tuple[dict[str, VmState], bool]], kept: int) -> None:
    async def walk() -> None:
        history, events, position = History(kept=kept), [], None
        for states, reads in [*steps, ({"vm_a": VmState.RUNNING}, True)]:
            present = [vm(vm_id, state) for vm_id, state in sorted(states.items())]
            history.note(present)
            if reads:
                told, position = await drain(history, position)
                events += told
                assert seen(events) == {each.spec.id: each for each in present}

    asyncio.run(walk())


@given(st.from_regex(r"[0-9a-f]{16}", fullmatch=True), st.integers(0, 10**17))
def test_a_token_is_a_position(epoch: str, revision: int) -> None:
    position = Position(epoch, revision)
    assert position_of(token_of(position)) == position


@pytest.mark.parametrize("token", ["x", "0123456789abcdef", "0123456789abcdef.-1", "0123456789ABCDEF.1", "." * 5000])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidSpecError) as refused:
        position_of(token)
    assert refused.value.field == "resume_token"


# Over the wire


async def events_until(rig: RpcRig, who: str, chosen: VmFilter, token: str, ends: str) -> list[WatchEvent]:
    """Watch until an event of a kind."""
    told: list[WatchEvent] = []
    async with rig.client(who) as client, asyncio.timeout(5):
        async for event in client.vms.watch(chosen, resume_token=token):
            told.append(event)
            if getattr(event, ends):
                return told
    return told


async def test_a_client_comes_back_without_a_loss(rig: RpcRig) -> None:
    async with rig.client() as root:
        await root.vms.create(rig.spec("one"))
        first = await events_until(rig, "operator", VmFilter(), "", "snapshot_complete")
        assert first[0].snapshot_begin
        assert [event.vm.spec.id for event in first if event.vm] == ["vm_one"]
        assert [event.resume_token for event in first[:-1]] == ["", ""]
        await root.vms.create(rig.spec("two"))
        await root.vms.delete("vm_one")
        again = await events_until(rig, "operator", VmFilter(), first[-1].resume_token, "deleted_vm_id")
        assert next(event.vm.spec.id for event in again if event.vm) == "vm_two"
        assert [event.deleted_vm_id for event in again if not event.vm] == ["vm_one"]


async def test_what_no_longer_matches_is_told_as_gone(rig: RpcRig) -> None:
    async with rig.client() as root:
        await root.vms.create(rig.spec("one"))
        pending = VmFilter(states=frozenset({VmState.PENDING}))
        async with rig.client("operator") as client, asyncio.timeout(5):
            async for event in client.vms.watch(pending, resume_token=""):
                if event.snapshot_complete:
                    await root.vms.start("vm_one")
                if event.deleted_vm_id:
                    break
        assert event.deleted_vm_id == "vm_one"


async def test_a_watcher_hears_of_its_own_projects_only(rig: RpcRig) -> None:
    async with rig.client() as root:
        await root.vms.create(rig.spec("theirs", OTHER))
        await root.vms.create(rig.spec("ours", ACME))
        told = await events_until(rig, "stranger", VmFilter(), "", "snapshot_complete")
        assert [event.vm.spec.id for event in told if event.vm] == ["vm_theirs"]
        await root.vms.delete("vm_ours")
        await root.vms.delete("vm_theirs")
        rest = await events_until(rig, "stranger", VmFilter(), told[-1].resume_token, "deleted_vm_id")
        assert {event.vm.spec.id for event in rest if event.vm} <= {"vm_theirs"}
        assert [event.deleted_vm_id for event in rest if not event.vm] == ["vm_theirs"]


async def test_a_client_that_stalls_gets_a_snapshot_again_and_misses_nothing() -> None:
    metadata = (("authorization", f"Bearer {TOKENS['operator']}"),)
    long = tuple("x" * 100_000 for _ in range(5))
    async with running(kept_changes=4) as rig, rig.client() as root, grpc.aio.insecure_channel(rig.address) as channel:
        call = VmServiceStub(channel).WatchVms(vm_pb2.WatchVmsRequest(), metadata=metadata)
        assert (await call.read()).WhichOneof("event") == "snapshot_begin"
        for number in range(40):
            await root.vms.create(replace(rig.spec(f"n{number:02}"), command=long))
        known: set[str] = set()
        heard: list[str | None] = []
        async with asyncio.timeout(20):
            while len(known) < 40:
                event = await call.read()
                heard.append(event.WhichOneof("event"))
                if heard[-1] == "snapshot_begin":
                    known = set()
                elif heard[-1] == "vm":
                    known.add(event.vm.spec.id)
        call.cancel()
        assert "snapshot_begin" in heard, "the server did not keep 20 MB for a client that does not read"


async def test_a_grant_that_is_taken_away_ends_what_a_watcher_hears(rig: RpcRig) -> None:
    async with rig.client() as root, rig.client("operator") as client:
        events = client.vms.watch()
        assert (await anext(events)).snapshot_begin
        assert (await anext(events)).snapshot_complete
        await root.vms.create(rig.spec("one"))
        assert (await anext(events)).vm is not None
        rig.policy_path.write_text('[[principals]]\nname = "root"\nunix_uid = 0\ngrants = [{ role = "admin" }]\n')
        rig.policy.reload()
        await root.vms.create(rig.spec("two"))
        waiting = asyncio.ensure_future(anext(events))
        done, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert not done
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
