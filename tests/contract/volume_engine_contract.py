"""What every engine that keeps volumes must do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shellwego.core.assignments import WorkloadMount
from shellwego.core.errors import ConflictError, NotFoundError, ShellWeGoError
from shellwego.core.sensitive import Sensitive
from shellwego.ports.engine import FencingEngine, SnapshotSource, VmOrder, VolumeEngine, VolumeView
from tests.contract.engine_contract import EngineUnderTest, MakeEngine, ended, order, running, see

MIB = 1 << 20
SIZE = 64 * MIB


def volumes_of(under_test: EngineUnderTest) -> VolumeEngine:
    assert isinstance(under_test.engine, VolumeEngine)
    return under_test.engine


def mounting(under_test: EngineUnderTest, name: str, volume_id: str = "vol_1") -> VmOrder:
    mount = WorkloadMount(volume_id=volume_id, name="data", destination="/data")
    plain = order(under_test, name, "serve")
    return replace(plain, workload=replace(plain.workload, mounts=(mount,)))


async def content(source: SnapshotSource) -> AsyncIterator[tuple[int, bytes]]:
    end = 0
    while (found := await source.next_data(end)) is not None:
        start, end = found
        yield start, await source.read(start, end - start)


async def only(engine: VolumeEngine) -> VolumeView:
    (view,) = await engine.volumes()
    return view


class VolumeEngineContract:
    """Subclass it with a fixture `make`."""

    @pytest.fixture
    def make(self) -> MakeEngine:
        raise AssertionError("a subclass provides `make`")

    async def test_a_volume_is_made_once_and_only_grows(self, make: MakeEngine) -> None:
        engine = volumes_of(await make())
        for _ in range(2):
            await engine.create_volume("vol_1", SIZE)
        with pytest.raises(ConflictError) as caught:
            await engine.create_volume("vol_1", 2 * SIZE)
        assert caught.value.code == "volume-exists"
        await engine.resize_volume("vol_1", 2 * SIZE)
        assert ((await only(engine)).size_bytes, (await only(engine)).vm_id) == (2 * SIZE, "")

    async def test_snapshots_copies_and_their_end(self, make: MakeEngine) -> None:
        engine = volumes_of(await make())
        await engine.create_volume("vol_1", SIZE)
        for _ in range(2):
            await engine.snapshot_volume("vol_1", "snap_1", freeze=False)
        assert [each.snapshot_id for each in (await only(engine)).snapshots] == ["snap_1"]
        for _ in range(2):
            await engine.clone_volume("snap_1", "vol_2", 2 * SIZE)
        sizes = {view.volume_id: view.size_bytes for view in await engine.volumes()}
        assert sizes == {"vol_1": SIZE, "vol_2": 2 * SIZE}
        await engine.restore_volume("vol_1", "snap_1")
        with pytest.raises(ConflictError) as caught:
            await engine.delete_volume("vol_1")
        assert caught.value.code == "volume-has-snapshots"
        for _ in range(2):
            await engine.delete_volume("vol_2")
            await engine.delete_snapshot("snap_1")
            await engine.delete_volume("vol_1")
        assert await engine.volumes() == ()

    async def test_a_volume_goes_with_its_snapshots_where_that_is_asked_for(self, make: MakeEngine) -> None:
        engine = volumes_of(await make())
        await engine.create_volume("vol_1", SIZE)
        for name in ("snap_1", "snap_2"):
            await engine.snapshot_volume("vol_1", name, freeze=False)
        for _ in range(2):
            await engine.delete_volume("vol_1", with_snapshots=True)
        assert await engine.volumes() == ()

    async def test_what_a_snapshot_holds_is_made_into_another_volume(self, make: MakeEngine) -> None:
        engine = volumes_of(await make())
        await engine.create_volume("vol_1", SIZE)
        await engine.snapshot_volume("vol_1", "snap_1", freeze=False)
        async with engine.read_snapshot("snap_1") as source:
            assert (source.size_bytes, source.sealed) == (SIZE, False)
            for _ in range(2):
                await engine.fill_volume("vol_2", source.size_bytes, content(source))
            before = [extent async for extent in content(source)]
        assert {view.volume_id: view.size_bytes for view in await engine.volumes()} == {"vol_1": SIZE, "vol_2": SIZE}
        await engine.snapshot_volume("vol_2", "snap_2", freeze=False)
        async with engine.read_snapshot("snap_2") as source:
            assert [extent async for extent in content(source)] == before
            assert await source.read(SIZE - 4096, 8192) == bytes(4096)

    async def test_what_a_snapshot_of_an_encrypted_one_holds_takes_its_key(self, make: MakeEngine) -> None:
        engine = volumes_of(await make())
        key, other = Sensitive(b"k" * 32), Sensitive(b"o" * 32)
        await engine.create_volume("vol_1", SIZE, key)
        await engine.snapshot_volume("vol_1", "snap_1", freeze=False)
        async with engine.read_snapshot("snap_1") as source:
            assert (source.volume_bytes, source.sealed) == (SIZE, True)
            with pytest.raises(ConflictError) as caught:
                await engine.fill_volume("vol_2", source.size_bytes, content(source), other)
            assert caught.value.code == "wrong-key"
            await engine.fill_volume("vol_2", source.size_bytes, content(source), key)
        made = {view.volume_id: view for view in await engine.volumes()}["vol_2"]
        assert (made.size_bytes, made.encrypted, made.locked) == (SIZE, True, False)

    async def test_nothing_begins_with_a_volume_whose_time_is_over_until_another_is_said(
        self, make: MakeEngine
    ) -> None:
        tested = await make()
        engine = volumes_of(tested)
        assert isinstance(engine, FencingEngine)
        await engine.create_volume("vol_1", SIZE)
        await engine.fence_volumes({"vol_1": time.monotonic(), "vol_2": time.monotonic()})
        with contextlib.suppress(ConflictError):  # or it is told by how the VM ends
            await tested.engine.run(mounting(tested, "a"))
            assert (await see(tested.engine, "vm_a_1", ended)).reason_code == "volume-fenced"
        await engine.fence_volumes({"vol_1": time.monotonic() + 3600})
        await tested.engine.run(mounting(tested, "b"))
        await see(tested.engine, "vm_b_1", running)

    async def test_content_that_breaks_off_leaves_no_volume(self, make: MakeEngine) -> None:
        async def breaking() -> AsyncIterator[tuple[int, bytes]]:
            yield 0, b"half"
            raise ConflictError("backup-damaged", "the rest is missing")

        engine = volumes_of(await make())
        with pytest.raises(ConflictError, match="the rest is missing"):
            await engine.fill_volume("vol_1", SIZE, breaking())
        assert await engine.volumes() == ()

    async def test_a_volume_with_a_key_is_opened_by_that_alone(self, make: MakeEngine) -> None:
        engine = volumes_of(await make())
        key, other = Sensitive(b"k" * 32), Sensitive(b"o" * 32)
        for _ in range(2):
            await engine.create_volume("vol_1", SIZE, key)
        assert ((await only(engine)).encrypted, (await only(engine)).locked) == (True, False)
        for wrong, code in ((other, "wrong-key"), (None, "volume-exists")):
            with pytest.raises(ConflictError) as caught:
                await engine.create_volume("vol_1", SIZE, wrong)
            assert caught.value.code == code
        await engine.snapshot_volume("vol_1", "snap_1", freeze=False)
        await engine.clone_volume("snap_1", "vol_2", SIZE)
        await engine.create_volume("vol_3", SIZE)
        kinds = {view.volume_id: view.encrypted for view in await engine.volumes()}
        assert kinds == {"vol_1": True, "vol_2": True, "vol_3": False}
        await engine.unlock_volume("vol_2", key)
        for volume_id, wrong, code in (("vol_2", other, "wrong-key"), ("vol_3", key, "not-encrypted")):
            with pytest.raises(ConflictError) as caught:
                await engine.unlock_volume(volume_id, wrong)
            assert caught.value.code == code

    async def test_an_engine_that_starts_has_no_key_and_gives_nobody_the_volume(self, make: MakeEngine) -> None:
        first, key = await make(), Sensitive(b"k" * 32)
        await volumes_of(first).create_volume("vol_1", SIZE, key)
        assert first.again is not None
        under_test = await first.again()
        again = volumes_of(under_test)
        assert (await only(again)).locked
        with contextlib.suppress(ShellWeGoError):  # at once, or as its end
            await under_test.engine.run(mounting(under_test, "a"))
            assert (await see(under_test.engine, "vm_a_1", ended)).reason_code == "volume-locked"
        await again.unlock_volume("vol_1", key)
        assert not (await only(again)).locked
        await under_test.engine.run(mounting(under_test, "b"))
        await see(under_test.engine, "vm_b_1", running)

    async def test_what_is_not_there_is_told(self, make: MakeEngine) -> None:
        engine = volumes_of(await make())
        await engine.create_volume("vol_1", SIZE)
        for attempt in (
            engine.resize_volume("vol_x", SIZE),
            engine.snapshot_volume("vol_x", "snap_1", freeze=False),
            engine.restore_volume("vol_1", "snap_x"),
            engine.clone_volume("snap_x", "vol_2", SIZE),
        ):
            with pytest.raises(NotFoundError):
                await attempt
        with pytest.raises(NotFoundError):
            async with engine.read_snapshot("snap_x"):
                pass

    async def test_a_vm_has_its_volume_until_it_has_ended_and_nobody_else_has(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = volumes_of(under_test)
        await engine.create_volume("vol_1", SIZE)
        await engine.snapshot_volume("vol_1", "snap_1", freeze=False)
        await under_test.engine.run(mounting(under_test, "a"))
        await see(under_test.engine, "vm_a_1", running)
        assert (await only(engine)).vm_id == "vm_a_1"
        with contextlib.suppress(ShellWeGoError):  # at once, or as its end
            await under_test.engine.run(mounting(under_test, "b"))
            assert (await see(under_test.engine, "vm_b_1", ended)).reason_code == "volume-held"
        for refused in (engine.delete_volume("vol_1"), engine.restore_volume("vol_1", "snap_1")):
            with pytest.raises(ConflictError) as caught:
                await refused
            assert caught.value.code == "volume-held"
        await under_test.engine.stop("vm_a_1", 5)
        await see(under_test.engine, "vm_a_1", ended)
        assert (await only(engine)).vm_id == ""
        await under_test.engine.run(mounting(under_test, "c"))
        await see(under_test.engine, "vm_c_1", running)
        assert (await only(engine)).vm_id == "vm_c_1"
