"""What every engine that keeps volumes must do."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from shellwego.core.assignments import WorkloadMount
from shellwego.core.errors import ConflictError, NotFoundError, ShellWeGoError
from shellwego.ports.engine import VmOrder, VolumeEngine, VolumeView
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
        for _ in range(2):
            await engine.delete_volume("vol_2")
            await engine.delete_snapshot("snap_1")
            await engine.delete_volume("vol_1")
        assert await engine.volumes() == ()

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
