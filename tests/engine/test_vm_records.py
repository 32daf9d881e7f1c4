"""A disk that takes no record: VMs go on, end and are deleted all the same, and what they became is written later."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import NoReturn

import pytest

from plasmavmc.errors import CapacityError, HostError
from plasmavmc.guest.memory import MemoryGuestChannel
from plasmavmc.policy import Opening
from plasmavmc.records import Records, VmRecord
from plasmavmc.snapshots.files import Draft, SnapshotStore
from plasmavmc.snapshots.manifest import Manifest
from plasmavmc.states import VmState
from plasmavmc.types import ForkIdentity, VmStatus
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, guest, reaches, running, started
from tests.engine.syncs import Syncs


class Full:
    """The disk of the records takes nothing, while it is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patches = monkeypatch
        self.asked = 0

    def on(self) -> None:
        def refuse(_self: Records, _fresh: Path, _record: object, *, sync: bool) -> NoReturn:
            self.asked += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self._patches.setattr(Records, "_lay", refuse)

    def off(self) -> None:
        self._patches.undo()


class Slow:
    """For the block the disk takes its time for a file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch, self._sync = monkeypatch, os.fsync

    def __enter__(self) -> None:
        def slowly(descriptor: int) -> None:
            time.sleep(0.05)
            self._sync(descriptor)

        self._monkeypatch.setattr(os, "fsync", slowly)

    def __exit__(self, *_: object) -> None:
        self._monkeypatch.setattr(os, "fsync", self._sync)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    return Full(monkeypatch)


def stored(rig: EngineRig, vm_id: str = "vm_one") -> VmState:
    (record,) = [each for each in Records(rig.directory / "vms").load() if each.spec.id == vm_id]
    return record.status.state


async def test_a_vm_whose_record_cannot_be_written_is_stopped_and_deleted(rig: EngineRig, full: Full) -> None:
    manager = await running(rig)
    full.on()
    async with asyncio.timeout(5.0):
        vm = await manager.stop("vm_one")
        assert (vm.status.state, vm.status.reason_code) == (S.STOPPED, "stopped")
        await manager.delete("vm_one")
    assert not rig.vmms.known()
    assert manager.list_vms() == ()
    full.off()
    rig.parts.records.catch_up()
    assert rig.parts.records.load() == [], "what is owed to nobody is not written"


async def test_a_vm_whose_record_cannot_be_written_runs_and_its_end_is_seen(rig: EngineRig, full: Full) -> None:
    manager = rig.manager()
    manager.create(rig.spec("one", "serve"))
    full.on()
    manager.start("vm_one")
    await reaches(manager, "vm_one", S.RUNNING)
    rig.vmms.kill("vm_one")
    await reaches(manager, "vm_one", S.FAILED)
    assert manager.get("vm_one").status.reason_code == "vmm-died"


async def test_what_could_not_be_written_is_told_once_and_written_later(
    rig: EngineRig, full: Full, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = await running(rig)
    monkeypatch.setattr("plasmavmc.records.RETRY_S", 0.001)
    with monkeypatch.context() as patches:
        full = Full(patches)
        full.on()
        await manager.stop("vm_one")
        async with asyncio.timeout(5.0):
            while full.asked < 10:  # noqa: ASYNC110 - a timer asks
                await asyncio.sleep(0.001)
    assert capsys.readouterr().out.count("record.not_written") == 1
    async with asyncio.timeout(5.0):
        while stored(rig) is not S.STOPPED:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_an_engine_that_ends_writes_what_it_owes(rig: EngineRig, full: Full) -> None:
    manager = await running(rig)
    full.on()
    await manager.stop("vm_one")
    full.off()
    assert stored(rig) is S.RUNNING
    await manager.close(keep_vms=True)
    assert stored(rig) is S.STOPPED


async def test_a_vm_that_cannot_be_written_down_is_not_made(rig: EngineRig, full: Full) -> None:
    manager = rig.manager()
    full.on()
    with pytest.raises(CapacityError, match="no space") as raised:
        manager.create(rig.spec("one", "serve"))
    assert raised.value.code == "disk-full"
    assert manager.list_vms() == ()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
async def test_a_disk_without_room_is_told_as_such_whatever_the_kernel_calls_it(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    manager = rig.manager()
    monkeypatch.setattr(Records, "_lay", refuse)
    with pytest.raises(CapacityError) as raised:
        manager.create(rig.spec("one", "serve"))
    assert raised.value.code == "disk-full"


async def test_of_copies_that_cannot_all_be_written_down_there_is_none(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig, safe=True)
    lay = Records._lay

    def first_only(self: Records, fresh: Path, record: VmRecord, *, sync: bool) -> None:
        if record.spec.id == "vm_three":
            raise OSError(errno.EIO, "Input/output error")
        lay(self, fresh, record, sync=sync)

    monkeypatch.setattr(Records, "_lay", first_only)
    with pytest.raises(HostError, match="vm_three"):
        await manager.fork("vm_one", [ForkIdentity("vm_two", "two"), ForkIdentity("vm_three", "three")])
    assert [vm.spec.id for vm in manager.list_vms()] == ["vm_one"]
    assert [record.spec.id for record in rig.parts.records.load()] == ["vm_one"]


async def test_what_a_vm_may_is_seen_as_it_was_where_the_new_cannot_be_written_down(rig: EngineRig, full: Full) -> None:
    manager = await running(rig)
    full.on()
    with pytest.raises(CapacityError):
        await manager.restrict("vm_one", ())
    with pytest.raises(CapacityError):
        await manager.screen("vm_one", "db", ())
    assert manager.get("vm_one").spec.networks[0].egress is None
    assert rig.network.rules is not None
    (member,) = rig.network.rules.members
    assert (member.egress, member.identity, member.ingress) == (None, "", None), "and is so in force"
    full.off()
    await manager.screen("vm_one", "db", (Opening("web"),))
    assert manager.get("vm_one").spec.networks[0].identity == "db"


# What a restart makes of an older record


async def test_a_vm_that_slept_unwritten_sleeps_after_a_restart(rig: EngineRig, full: Full) -> None:
    manager = await running(rig)
    full.on()
    await manager.suspend("vm_one")
    full.off()
    assert stored(rig) is S.RUNNING
    again = rig.manager()
    await again.recover()
    assert again.get("vm_one").status.state is S.SUSPENDED
    assert stored(rig) is S.SUSPENDED
    assert (await again.resume("vm_one")).status.state is S.RUNNING
    assert guest(rig).config is not None


async def test_a_vm_that_woke_unwritten_has_failed_after_a_restart_and_its_process_is_not_kept(
    rig: EngineRig, full: Full
) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    full.on()
    await manager.resume("vm_one")
    full.off()
    await manager._machines.get("vm_one").cleared()
    again = rig.manager()
    await again.recover()
    assert again.get("vm_one").status.state is S.FAILED
    assert again._machines.living() == {}


async def test_a_vm_that_ended_unwritten_has_ended_after_a_restart(rig: EngineRig, full: Full) -> None:
    manager = await running(rig)
    await started(manager, rig.spec("two", "serve"))
    full.on()
    await manager.stop("vm_one")
    full.off()
    again = rig.manager()
    await again.recover()
    assert again.get("vm_one").status.state is S.FAILED
    assert again.get("vm_two").status.state is S.RUNNING
    await again.delete("vm_one")


# The file


@pytest.mark.parametrize("state", [S.SUSPENDING, S.SUSPENDED, S.RESUMING])
async def test_the_record_of_a_vm_that_outlives_its_host_is_on_the_disk_before_it_has_its_name(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch, state: VmState
) -> None:
    manager = await running(rig)
    (record,) = rig.parts.records.load()
    syncs = Syncs(monkeypatch)
    await rig.parts.records.store(replace(record, status=replace(record.status, state=S.STARTING)))
    assert syncs.names == []
    await rig.parts.records.store(replace(record, status=replace(record.status, state=state)))
    assert syncs.names[0].endswith(".new")
    assert syncs.names[1:] == ["vms"]
    await manager.close(keep_vms=True)


async def test_a_vm_falls_asleep_and_wakes_without_the_event_loop_s_waiting_for_the_disk(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    syncs = Syncs(monkeypatch)
    await manager.suspend("vm_one")
    await manager.restrict("vm_one", ())
    await manager.resume("vm_one")
    assert syncs.in_event_loop == []
    assert len([name for name in syncs.names if name.endswith(".new")]) >= 3
    await manager.close(keep_vms=True)


async def test_a_snapshot_comes_to_count_when_its_vm_is_on_the_disk_and_counts_until_that_is_known_to_wake(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    seen: list[VmState] = []
    commit, use = SnapshotStore.commit, SnapshotStore.use

    async def committed(self: SnapshotStore, draft: Draft, manifest: Manifest) -> None:
        seen.append(stored(rig))
        await commit(self, draft, manifest)

    async def used(self: SnapshotStore, key: str) -> None:
        seen.append(stored(rig))
        await use(self, key)

    monkeypatch.setattr(SnapshotStore, "commit", committed)
    monkeypatch.setattr(SnapshotStore, "use", used)
    with Slow(monkeypatch):
        await manager.suspend("vm_one")
        assert stored(rig) is S.SUSPENDED
        await manager.resume("vm_one")
    assert seen == [S.SUSPENDING, S.RESUMING]
    assert stored(rig) is S.RUNNING


async def test_a_guest_is_held_when_an_engine_that_is_started_then_would_let_it_go_on(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    seen: list[VmState] = []
    freeze = MemoryGuestChannel.freeze

    async def held(self: MemoryGuestChannel) -> None:
        seen.append(stored(rig))
        await freeze(self)

    monkeypatch.setattr(MemoryGuestChannel, "freeze", held)
    with Slow(monkeypatch):
        await manager.suspend("vm_one")
    assert seen == [S.SUSPENDING]
    await manager.close(keep_vms=True)


async def test_a_record_that_a_thread_still_writes_is_not_put_over_a_newer_one(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    (record,) = rig.parts.records.load()
    records = rig.parts.records
    asleep, ended = (replace(record, status=replace(record.status, state=each)) for each in (S.SUSPENDED, S.STOPPED))
    with Slow(monkeypatch):
        records.keep(asleep)
        records.save(ended)
        await records.settled("vm_one")
        assert stored(rig) is S.STOPPED
        records.keep(replace(asleep, generation=1))
        records.keep(replace(asleep, generation=2))
        await records.settled("vm_one")
        assert [each.generation for each in records.load()] == [2]
        records.keep(asleep)
        records.delete("vm_one")
        await records.settled("vm_one")
    assert list((rig.directory / "vms").iterdir()) == []
    await manager.close(keep_vms=True)


@pytest.mark.parametrize("given_up", [False, True], ids=["waited for", "given up"])
async def test_a_record_that_is_stored_over_one_that_was_kept_is_waited_for_as_that_is(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch, given_up: bool
) -> None:
    manager = await running(rig)
    (record,) = rig.parts.records.load()
    records = rig.parts.records
    asleep = replace(record, status=replace(record.status, state=S.SUSPENDED))
    lay, disk = Records._lay, threading.Event()

    def stored_slowly(self: Records, fresh: Path, record: VmRecord, *, sync: bool) -> None:
        if record.generation == 2:
            assert disk.wait(5), "nobody lets it go on"
        lay(self, fresh, record, sync=sync)

    monkeypatch.setattr(Records, "_lay", stored_slowly)
    records.keep(replace(asleep, generation=1))
    storing = asyncio.create_task(records.store(replace(asleep, generation=2)))
    await asyncio.sleep(0)
    if given_up:
        storing.cancel()
    settling = asyncio.create_task(records.settled("vm_one"))
    done, _ = await asyncio.wait({settling}, timeout=0.1)
    assert not done, "the disk has not taken it yet"
    disk.set()
    await settling
    assert [each.generation for each in records.load()] == [2]
    await asyncio.wait({storing})
    assert storing.cancelled() is given_up
    await manager.close(keep_vms=True)


async def test_what_a_killed_engine_was_writing_is_gone_with_the_next(rig: EngineRig) -> None:
    await running(rig)
    (rig.directory / "vms" / "aaaaaaaaaaaa.7.new").write_bytes(b"{")
    Records(rig.directory / "vms")
    assert [path.suffixes for path in (rig.directory / "vms").iterdir()] == [[".json"]]


async def test_a_copy_of_a_vm_does_not_wait_for_the_disk(rig: EngineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = await running(rig, safe=True)
    syncs = Syncs(monkeypatch)
    await manager.fork("vm_one", [ForkIdentity("vm_copy", "copy")])
    await reaches(manager, "vm_copy", S.RUNNING)
    assert not [name for name in syncs.names if name.endswith(".new")]
    await manager.close(keep_vms=False)


async def test_a_write_that_fails_leaves_the_record_before_and_nothing_beside(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    (record,) = rig.parts.records.load()

    def fails(_self: Path, _target: Path) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patches:
        patches.setattr(Path, "replace", fails)
        with pytest.raises(HostError) as raised:
            rig.parts.records.save(replace(record, asked=True))
    assert raised.value.code == "record-error"
    assert rig.parts.records.load() == [record]
    assert [path.suffix for path in (rig.directory / "vms").iterdir()] == [".json"]
    await manager.close(keep_vms=True)


async def test_a_record_for_which_no_thread_can_be_had_is_owed_and_written_later(
    rig: EngineRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(tmp_path / "records")
    record = VmRecord(rig.spec("one", "serve"), VmStatus(S.SUSPENDED, 1.0))
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # one that has no thread yet

    def refuse(_self: Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as crowded:
        crowded.setattr(Thread, "start", refuse)
        with pytest.raises(HostError, match=r"vm_one .* cannot be written down: can't start new thread"):
            await records.store(record)
        records.keep(record)
        await records.settled("vm_one")
    assert records.load() == []
    await records.aclose()
    assert [each.status.state for each in records.load()] == [S.SUSPENDED]
