"""A suspended VM from one engine to another, on memory parts: it goes on there as somebody new, or nothing is there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import CapacityError, ConflictError, HostError, InvalidSpecError, NotFoundError, PlasmaError
from plasmavmc.guest.memory import MemoryGuest
from plasmavmc.manager import VmManager
from plasmavmc.snapshots.room import RESERVE_BYTES
from plasmavmc.states import VmState
from plasmavmc.types import GIB, MIB, DiskSource, DiskSpec, Scope, VmSpec, mac_of, vm_key
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, flip, guest, leftovers, only_snapshots, running, started
from tests.engine.syncs import Syncs

TARGET = "vm_two"


class Hosts:
    """A host with a suspended VM, and another like it."""

    def __init__(self, directory: Path) -> None:
        self.here = EngineRig(directory / "here")
        self.there = EngineRig(directory / "there")
        self.there.vmms.states = self.here.vmms.states  # what a state holds goes with it

    async def begin(self) -> None:
        self.source = await running(self.here)
        guest(self.here).write(b"before\n")
        descriptor = await self.here.storage.open(vm_key("vm_one"))
        os.ftruncate(descriptor, GIB)
        os.pwrite(descriptor, b"written" * 1000, 3 * MIB)
        os.close(descriptor)
        await self.source.suspend("vm_one")
        self.target = self.there.manager()

    def stream(self) -> AsyncIterator[bytes]:
        return self.source.export_snapshot("vm_one")

    async def exported(self) -> bytes:
        return b"".join([chunk async for chunk in self.stream()])

    def spec(self, **changes: object) -> VmSpec:
        made = self.there.spec("two", "serve")
        return replace(made, **changes)  # type: ignore[arg-type]

    async def nothing_there(self) -> None:
        """Neither now nor after the engine has started again is there anything of it."""
        for manager in (self.target, self.there.manager()):
            await manager.recover()
            assert manager.list_vms() == ()
            assert await self.there.storage.disks() == ()
            assert leftovers(self.there) == set()
            assert not list((self.there.directory / "vms").iterdir())
            assert not self.there.vmms.known()

    async def can_still_be_moved(self) -> None:
        assert self.source.get("vm_one").status.state is S.SUSPENDED
        await self.target.import_snapshot(self.spec(), self.stream())
        await self.target.resume(TARGET)


@pytest.fixture
async def hosts(tmp_path: Path) -> Hosts:
    made = Hosts(tmp_path)
    await made.begin()
    return made


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


# It goes on there


async def test_an_imported_vm_sleeps_until_it_is_resumed_and_then_goes_on_as_somebody_new(hosts: Hosts) -> None:
    [saved] = hosts.here.vmms.states.values()
    assert isinstance(saved, MemoryGuest)
    vm = await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
    assert (vm.status.state, vm.handle, vm.status.endpoints, vm.status.backend) == (S.SUSPENDED, None, (), "memory")
    assert not hosts.there.vmms.known()
    vm = await hosts.target.resume(TARGET)
    assert vm.status.state is S.RUNNING
    assert guest(hosts.there, TARGET).config == saved.config
    card = guest(hosts.there, TARGET).cards[-1]
    assert card.generation == 1
    assert len(card.entropy) == 64
    assert card.unix_time_ns > 0
    assert card.hostname == "two"
    assert len(card.machine_id) == 16
    assert card.network is not None
    assert vm.status.endpoints == (f"tcp:{card.network.ipv4}",)
    assert card.network.mac == mac_of("nic_two")
    await only_snapshots(hosts.there)


async def test_its_disk_comes_along_and_holes_stay_holes(hosts: Hosts) -> None:
    await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
    [disk] = await hosts.there.storage.disks()
    assert (disk.key, disk.size_bytes) == (vm_key(TARGET), GIB)
    assert disk.used_bytes < MIB
    descriptor = await hosts.there.storage.open(disk.key)
    assert os.pread(descriptor, 7007, 3 * MIB) == b"written" * 1000 + bytes(7)
    os.close(descriptor)


async def test_it_has_nothing_of_the_log_of_another_project_s_vm_of_its_id(hosts: Hosts) -> None:
    await started(hosts.target, hosts.spec(scope=Scope("org_1", "prj_2")))
    await hosts.target.delete(TARGET)
    await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
    assert [line async for line in hosts.target.logs(TARGET, follow=False, tail=100)] == []


async def test_exporting_changes_nothing_where_it_was(hosts: Hosts) -> None:
    assert await hosts.exported() == await hosts.exported()
    await hosts.source.resume("vm_one")
    assert hosts.source.get("vm_one").status.state is S.RUNNING


async def test_what_it_writes_there_is_in_its_log_there(hosts: Hosts) -> None:
    await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
    await hosts.target.resume(TARGET)
    guest(hosts.there, TARGET).write(b"after\n")
    await hosts.target.stop(TARGET)
    lines = [line.text async for line in hosts.target.logs(TARGET, follow=False, tail=100)]
    assert lines[-1] == "after"
    assert not [line for line in lines if "lost" in line or "dropped" in line]


async def test_a_second_sleep_there_is_like_any_other(hosts: Hosts) -> None:
    await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
    await hosts.target.resume(TARGET)
    before = hosts.target.get(TARGET).status.endpoints
    await hosts.target.suspend(TARGET)
    vm = await hosts.target.resume(TARGET)
    card = guest(hosts.there, TARGET).cards[-1]
    assert (card.generation, card.hostname, card.machine_id) == (2, "", b"")
    assert vm.status.endpoints == before


async def test_it_sleeps_on_there_through_a_restart_of_the_engine_and_then_wakes_as_somebody_new(hosts: Hosts) -> None:
    await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
    again = hosts.there.manager()
    await again.recover()
    assert again.get(TARGET).status.state is S.SUSPENDED
    await again.resume(TARGET)
    assert guest(hosts.there, TARGET).cards[-1].hostname == "two"
    assert len(guest(hosts.there, TARGET).cards[-1].machine_id) == 16


async def test_it_can_be_moved_on_before_it_ever_ran(hosts: Hosts) -> None:
    await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
    stream = hosts.target.export_snapshot(TARGET)
    back = hosts.here.spec("three", "serve")
    await hosts.source.import_snapshot(back, stream)
    await hosts.source.resume("vm_three")
    assert guest(hosts.here, "vm_three").cards[-1].hostname == "three"


async def test_hosts_tell_by_the_same_words_whether_they_are_alike(hosts: Hosts) -> None:
    assert await hosts.source.snapshot_hosts() == await hosts.target.snapshot_hosts()
    hosts.there.vmms.faults.traits = {"program": "newer"}
    [here], [there] = await hosts.source.snapshot_hosts(), await hosts.target.snapshot_hosts()
    assert {name for name in here.traits if here.traits[name] != there.traits[name]} == {"program"}


# What is not taken in leaves nothing


async def refused(hosts: Hosts, stream: AsyncIterator[bytes], spec: VmSpec | None = None) -> PlasmaError:
    error = await refused_now(hosts, stream, spec)
    await hosts.nothing_there()
    return error


async def refused_now(hosts: Hosts, stream: AsyncIterator[bytes], spec: VmSpec | None = None) -> PlasmaError:
    with pytest.raises(PlasmaError) as error:
        await hosts.target.import_snapshot(spec or hosts.spec(), stream)
    return error.value


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.9999])
async def test_a_stream_that_breaks_off_leaves_nothing(hosts: Hosts, part: float) -> None:
    sent = await hosts.exported()
    error = await refused(hosts, chunks(sent[: int(len(sent) * part)]))
    assert error.code == "snapshot-damaged"
    await hosts.can_still_be_moved()


async def test_no_byte_of_a_stream_can_change_unnoticed(hosts: Hosts) -> None:
    sent = await hosts.exported()
    for at in range(0, len(sent), max(1, len(sent) // 40)):
        changed = bytearray(sent)
        changed[at] ^= 1
        assert (await refused(hosts, chunks(bytes(changed)))).code == "snapshot-damaged"


async def test_more_than_was_announced_leaves_nothing(hosts: Hosts) -> None:
    assert (await refused(hosts, chunks(await hosts.exported() + b"x"))).code == "snapshot-damaged"


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"scope": Scope("org_2", "prj_1")}, "owner"),
        ({"scope": Scope("org_1", "prj_2")}, "owner"),
        ({"image": "sha256:" + "1" * 64}, "image"),
    ],
)
async def test_a_vm_of_another_owner_or_image_is_not_taken_in(
    hosts: Hosts, changes: dict[str, object], differs: str
) -> None:
    error = await refused(hosts, hosts.stream(), hosts.spec(**changes))
    assert error.code == "snapshot-foreign"
    assert differs in str(error)


async def test_a_vm_of_another_size_is_not_taken_in(hosts: Hosts) -> None:
    spec = hosts.spec()
    more = replace(spec, resources=replace(spec.resources, memory_bytes=256 * MIB))
    assert (await refused(hosts, hosts.stream(), more)).code == "snapshot-foreign"
    less = replace(spec, resources=replace(spec.resources, disk_bytes=512 * MIB))
    assert (await refused(hosts, hosts.stream(), less)).code == "snapshot-foreign"


async def test_a_host_that_differs_takes_nothing_in_and_names_what_differs(hosts: Hosts) -> None:
    hosts.there.vmms.faults.traits = {"processor": "another"}
    error = await refused(hosts, hosts.stream())
    assert error.code == "snapshot-foreign"
    assert "processor" in str(error)


async def test_an_image_that_was_built_differently_here_is_none_to_go_on_with(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest remembers where in it things are."""
    stream = hosts.stream()
    header = await anext(stream)
    monkeypatch.setattr("plasmavmc.images.store.ImageStore.content_digest", lambda *_: "0" * 64)

    async def sent() -> AsyncIterator[bytes]:
        yield header
        async for chunk in stream:
            yield chunk

    error = await refused(hosts, sent())
    assert error.code == "snapshot-foreign"
    assert "image" in str(error)


async def test_a_full_disk_is_told_before_anything_comes(hosts: Hosts) -> None:
    hosts.there.storage._capacity = 1
    error = await refused(hosts, hosts.stream())
    assert (type(error), error.code) == (CapacityError, "disk-full")


async def test_a_vm_that_comes_counts_beside_what_goes_to_sleep(hosts: Hosts) -> None:
    there = hosts.there
    free = await there.storage.free_bytes()
    with there.parts.room.claim(free - RESERVE_BYTES, free):
        error = await refused_now(hosts, hosts.stream())
    assert error.code == "disk-full"
    await hosts.can_still_be_moved()


async def test_a_vm_that_cannot_be_written_down_for_good_has_no_record(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patches:
        Syncs(patches).refused.add("vms")
        error = await refused_now(hosts, hosts.stream())
    assert error.code == "record-error"
    await hosts.nothing_there()
    await hosts.can_still_be_moved()


async def test_a_disk_that_fills_up_meanwhile_leaves_nothing(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise CapacityError("disk-full", "no space left for a snapshot")

    monkeypatch.setattr("plasmavmc.moving.write_piece", full)
    assert (await refused(hosts, hosts.stream())).code == "disk-full"
    monkeypatch.undo()
    await hosts.can_still_be_moved()


STEPS = (
    "plasmavmc.moving._ensure_image",
    "plasmavmc.snapshots.room.Room.claim",
    "plasmavmc.moving._receive_memory",
    "plasmavmc.moving._receive_disk",
    "plasmavmc.storage.memory.MemoryStorage.make_durable",
    "plasmavmc.snapshots.files.SnapshotStore.commit",
    "plasmavmc.storage.memory.MemoryStorage.create",
    "plasmavmc.records.Records.store",
)


@pytest.mark.parametrize("step", STEPS)
async def test_a_failure_at_any_step_leaves_nothing(hosts: Hosts, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise HostError("broken", "it broke here")

    monkeypatch.setattr(step, fails)
    with pytest.raises(HostError):
        await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
    monkeypatch.undo()
    await hosts.nothing_there()
    await hosts.can_still_be_moved()


class Killed(BaseException):
    """The engine ends here: nothing is undone."""


@pytest.mark.parametrize("step", [*STEPS, "at the end"])
async def test_an_engine_killed_at_any_step_leaves_nothing_that_counts(
    hosts: Hosts, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is undone in an orderly way is not, when the process is gone: here no undoing has any effect."""
    if step != "at the end":

        def dies(*_: object) -> None:
            raise Killed

        monkeypatch.setattr(step, dies)
        monkeypatch.setattr("plasmavmc.snapshots.files.shutil.rmtree", lambda *_, **__: None)
        monkeypatch.setattr("plasmavmc.storage.memory.MemoryStorage.delete", _nothing)
        with pytest.raises(Killed):
            await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
        monkeypatch.undo()
        hosts.target = hosts.there.manager()
        await hosts.target.recover()
        await hosts.nothing_there()
        await hosts.can_still_be_moved()
    else:
        await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
        hosts.target = hosts.there.manager()
        await hosts.target.recover()
        assert hosts.target.get(TARGET).status.state is S.SUSPENDED


async def _nothing(*_: object) -> None:
    return


async def test_who_gives_an_import_up_leaves_nothing(hosts: Hosts) -> None:
    sent, arrived = await hosts.exported(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield sent[: len(sent) // 2]
        arrived.set()
        await asyncio.sleep(3600)

    importing = asyncio.create_task(hosts.target.import_snapshot(hosts.spec(), slow()))
    await arrived.wait()
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    await hosts.nothing_there()
    await hosts.can_still_be_moved()


# Who may be moved, and to what


async def test_only_a_suspended_vm_can_be_exported(hosts: Hosts) -> None:
    await hosts.source.resume("vm_one")
    with pytest.raises(ConflictError) as error:
        await anext(hosts.stream())
    assert error.value.code == "vm-running"
    with pytest.raises(NotFoundError):
        await anext(hosts.source.export_snapshot("vm_none"))


async def resume_and_suspend(manager: VmManager, vm_id: str) -> None:
    await manager.resume(vm_id)
    await manager.suspend(vm_id)


@pytest.mark.parametrize("meanwhile", [VmManager.resume, resume_and_suspend, VmManager.stop, VmManager.delete])
async def test_one_that_does_not_sleep_any_more_before_the_end_is_not_whole(
    hosts: Hosts, meanwhile: Callable[[VmManager, str], object]
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        first = True
        async for chunk in hosts.stream():
            if first:
                await meanwhile(hosts.source, "vm_one")  # type: ignore[misc]
            first = False
            yield chunk

    assert (await refused(hosts, stream())).code == "vm-woken"


async def test_a_damaged_snapshot_is_not_sent(hosts: Hosts) -> None:
    flip(hosts.here.directory / "snapshots" / vm_key("vm_one") / "memory", 3)
    assert (await refused(hosts, hosts.stream())).code == "snapshot-damaged"


async def test_an_id_is_taken_from_the_beginning_of_an_import_on(hosts: Hosts) -> None:
    sent, arrived, go_on = await hosts.exported(), asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield sent[:100]
        arrived.set()
        await go_on.wait()
        yield sent[100:]

    importing = asyncio.create_task(hosts.target.import_snapshot(hosts.spec(), slow()))
    await arrived.wait()
    with pytest.raises(ConflictError) as error:
        hosts.target.create(hosts.spec())
    assert error.value.code == "vm-exists"
    with pytest.raises(ConflictError):
        await hosts.target.import_snapshot(hosts.spec(), chunks(sent))
    go_on.set()
    assert (await importing).status.state is VmState.SUSPENDED
    with pytest.raises(ConflictError):
        await hosts.target.import_snapshot(hosts.spec(), chunks(sent))


async def test_a_vm_with_volumes_stays_where_they_are(hosts: Hosts) -> None:
    volume = DiskSpec("vol_1", DiskSource.VOLUME, reference="vol_1", destination="/data")
    error = await refused(hosts, hosts.stream(), hosts.spec(volumes=(volume,)))
    assert error.code == "has-volumes"


async def test_a_specification_that_makes_no_sense_is_refused_first(hosts: Hosts) -> None:
    with pytest.raises(InvalidSpecError):
        await hosts.target.import_snapshot(hosts.spec(name="Not A Name"), hosts.stream())
    await hosts.nothing_there()


async def test_one_that_sleeps_elsewhere_can_be_deleted_here_without_a_trace(hosts: Hosts) -> None:
    await hosts.target.import_snapshot(hosts.spec(), hosts.stream())
    await hosts.source.delete("vm_one")
    assert leftovers(hosts.here) == set()
    await started(hosts.source, hosts.here.spec("other", "serve"))
    await hosts.target.delete(TARGET)
    await hosts.nothing_there()
