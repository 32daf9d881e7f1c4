"""The contract of volumes on ZFS, with a pool made for the test: by root itself, and by a user through the root helper."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from plasmavmc.errors import ConflictError, HostError
from plasmavmc.host.zfs import ZfsDestroy, ZfsDestroySnapshot, ZfsMark, ZfsOrder, ZfsPromote, ZfsRollback
from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.storage.volumes.choose import choose_volumes, open_volumes
from plasmavmc.storage.volumes.zfs.driver import ZfsVolumes, open_zfs_volumes
from plasmavmc.types import GIB, MIB
from tests.contract.host_rig import NOBODY, real_helper
from tests.contract.volumes_contract import SIZE, VolumesContract, blank, marked, read, write
from tests.contract.zfs_pool import RootZfs, command, pool

pytestmark = pytest.mark.real
_numbers = count()


@pytest.fixture(scope="module")
def tank() -> Iterator[str]:
    with pool(GIB) as name:
        yield name


@pytest.fixture
def dataset(tank: str) -> str:
    """A new one below the pool, as an operator makes it."""
    name = f"{tank}/{next(_numbers)}"
    command("zfs", "create", name)
    return name


@pytest.fixture
def host(dataset: str, tmp_path: Path) -> Iterator[RootZfs]:
    with closing(RootZfs(dataset, tmp_path / "mounts")) as host:
        yield host


@pytest.fixture
async def driver(host: RootZfs) -> ZfsVolumes:
    return await open_zfs_volumes(host)


def content(dataset: str) -> set[str]:
    """Last names of all that is below a dataset."""
    names = command("zfs", "list", "-H", "-o", "name", "-r", "-t", "filesystem,snapshot", dataset).split()
    return {name.rpartition("/")[2] for name in names}


@pytest.mark.nightly
class TestZfsVolumes(VolumesContract):
    """All of the contract; a few behaviours of it each time, below. What a full disk does is not among them: on one, and at
    a quota, the daemon of zfs-fuse 0.7 dies."""


class TestZfsVolumesByDay:
    @pytest.mark.parametrize(
        "behaviour",
        [
            VolumesContract.test_a_snapshot_stays_what_its_volume_was,
            VolumesContract.test_a_snapshot_under_a_clone_goes_or_is_refused_and_the_clone_stays_whole,
        ],
        ids=lambda behaviour: behaviour.__name__,
    )
    async def test_the_contract_is_kept(
        self, driver: ZfsVolumes, behaviour: Callable[[VolumesContract, VolumeDriver], Awaitable[None]]
    ) -> None:
        await behaviour(VolumesContract(), driver)


class TestWhatIsOfZfsAlone:
    async def test_what_a_crash_left_half_done_is_swept_at_the_next_start(
        self, driver: ZfsVolumes, host: RootZfs, dataset: str
    ) -> None:
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        base = f"{dataset}/swg-test"
        command("zfs", "create", f"{base}/vol_2")
        command("zfs", "clone", f"{base}/vol_1@snap_1", f"{base}/snap_1.view")
        (driver_file(host, "vol_1").parent / "volume.part").write_bytes(b"half restored")
        again = await open_zfs_volumes(host)
        assert content(base) == {"swg-test", "vol_1", "vol_1@snap_1"}
        assert [path.name for path in driver_file(host, "vol_1").parent.iterdir()] == ["volume"]
        assert await read(again, "vol_1", 16, 0) == b"laid by the host"

    @pytest.mark.nightly
    async def test_volumes_are_mounted_again_after_the_hosts_start(self, driver: ZfsVolumes, host: RootZfs) -> None:
        await driver.create("vol_1", SIZE, marked)
        host.close()
        assert not driver_file(host, "vol_1").exists()
        await open_zfs_volumes(host)
        assert driver_file(host, "vol_1").exists()

    @pytest.mark.nightly
    async def test_a_volume_is_its_owners_alone_and_holds_no_programs(
        self, driver: ZfsVolumes, host: RootZfs, dataset: str
    ) -> None:
        await driver.create("vol_1", SIZE, blank)
        assert driver_file(host, "vol_1").parent.stat().st_mode & 0o777 == 0o700
        told = command("zfs", "get", "-H", "-o", "value", "setuid,devices,exec", f"{dataset}/swg-test/vol_1")
        assert told.split() == ["off", "off", "off"]

    async def test_a_removed_snapshot_lives_on_unseen_until_its_last_clone_goes(
        self, driver: ZfsVolumes, dataset: str
    ) -> None:
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        for volume_id in ("vol_2", "vol_3"):
            await driver.clone("snap_1", volume_id, SIZE)
        await driver.delete_snapshot("snap_1")
        assert [volume.snapshots for volume in await driver.volumes()] == [(), (), ()]
        with pytest.raises(ConflictError):
            await driver.snapshot("vol_2", "snap_1")
        await driver.delete("vol_1")
        for volume_id in ("vol_2", "vol_3"):
            assert await read(driver, volume_id, 16, 0) == b"laid by the host"
            await driver.delete(volume_id)
        assert content(dataset) == {dataset.rpartition("/")[2], "swg-test"}

    @pytest.mark.nightly
    async def test_a_chain_of_clones_survives_those_before_it(self, driver: ZfsVolumes) -> None:
        await driver.create("vol_1", SIZE, marked)
        for number in (1, 2, 3):
            await write(driver, f"vol_{number}", b"%d" % number)
            await driver.snapshot(f"vol_{number}", f"snap_{number}")
            await driver.clone(f"snap_{number}", f"vol_{number + 1}", SIZE)
        for number in (2, 1, 3):
            await driver.delete_snapshot(f"snap_{number}")
            await driver.delete(f"vol_{number}")
        assert await read(driver, "vol_4", 1) == b"3"
        assert await read(driver, "vol_4", 16, 0) == b"laid by the host"
        await driver.delete("vol_4")
        assert await driver.volumes() == ()

    async def test_a_snapshot_that_is_being_read_can_go(self, driver: ZfsVolumes, dataset: str) -> None:
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        file = await driver.open_snapshot("snap_1")
        try:
            await driver.delete_snapshot("snap_1")
            await driver.delete("vol_1")
            assert os.pread(file, 16, 0) == b"laid by the host"
        finally:
            os.close(file)
        assert await driver.volumes() == ()
        assert content(f"{dataset}/swg-test") == {"swg-test"}

    @pytest.mark.nightly
    @pytest.mark.parametrize("trouble", [ZfsPromote, ZfsDestroySnapshot, ZfsDestroy], ids=lambda order: order.__name__)
    async def test_of_a_volume_that_goes_with_its_snapshots_nothing_is_left_whatever_stood_in_the_way(
        self, driver: ZfsVolumes, host: RootZfs, dataset: str, trouble: type[ZfsOrder]
    ) -> None:
        def stuck(order: ZfsOrder) -> None:
            if isinstance(order, trouble):
                raise HostError("zfs-failed", "zfs failed", details="I/O error")
            whole(order)

        whole, host.helper.do = host.helper.do, stuck  # type: ignore[method-assign]
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        await driver.clone("snap_1", "vol_2", SIZE)
        await driver.delete("vol_1", with_snapshots=True)
        assert [each.volume_id for each in await driver.volumes()] == ["vol_2"]
        assert "vol_1" in content(f"{dataset}/swg-test")
        host.helper.do = whole  # type: ignore[method-assign]
        await driver.volumes()
        assert {name.partition("@")[0] for name in content(f"{dataset}/swg-test")} == {"swg-test", "vol_2"}
        await driver.create("vol_1", SIZE, marked)
        await driver.volumes()
        assert await read(driver, "vol_1", 16, 0) == b"laid by the host"

    @pytest.mark.nightly
    async def test_who_removes_a_volume_with_its_snapshots_and_is_cancelled_has_removed_it(
        self, driver: ZfsVolumes, host: RootZfs, dataset: str
    ) -> None:
        def cut(order: ZfsOrder) -> None:
            whole(order)
            if order == ZfsMark("vol_1", "no"):
                loop.call_soon_threadsafe(going.cancel)

        loop = asyncio.get_running_loop()
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        whole, host.helper.do = host.helper.do, cut  # type: ignore[method-assign]
        going = asyncio.create_task(driver.delete("vol_1", with_snapshots=True))
        await asyncio.wait({going})
        assert going.cancelled()
        assert content(f"{dataset}/swg-test") == {"swg-test"}

    @pytest.mark.nightly
    async def test_a_volume_that_is_half_received_is_nobodys_until_it_is_what_its_snapshot_was(
        self, driver: ZfsVolumes, host: RootZfs
    ) -> None:
        def half(file: int) -> None:
            os.pwrite(file, b"half of another!", 0)
            host.helper.do = stuck  # type: ignore[method-assign]
            raise ConnectionError

        def stuck(order: ZfsOrder) -> None:
            if isinstance(order, ZfsRollback):
                raise HostError("zfs-failed", "zfs rollback failed", details="I/O error")
            whole(order)

        whole = host.helper.do
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        with pytest.raises(HostError):
            await driver.receive("vol_1", "snap_2", SIZE, half, sealed=False, since="snap_1")
        for each in (driver, await open_zfs_volumes(host)):
            for order in (each.open("vol_1"), each.snapshot("vol_1", "snap_3")):
                with pytest.raises(HostError) as caught:
                    await order
                assert caught.value.code == "storage-error"
        again = await open_zfs_volumes(host)
        host.helper.do = whole  # type: ignore[method-assign]
        for each in (driver, again):
            assert await read(each, "vol_1", 16, 0) == b"laid by the host"
        assert [one.snapshot_id for one in (await driver.volumes())[0].snapshots] == ["snap_1"]

    @pytest.mark.nightly
    async def test_a_snapshot_shares_the_blocks_of_its_volume(self, driver: ZfsVolumes) -> None:
        await driver.create("vol_1", SIZE, blank)
        await write(driver, "vol_1", os.urandom(16 * MIB))
        await driver.snapshot("vol_1", "snap_0")
        before = await driver.free_bytes()
        for number in range(1, 5):
            await driver.snapshot("vol_1", f"snap_{number}")
            await driver.clone(f"snap_{number}", f"vol_1{number}", SIZE)
        assert before - await driver.free_bytes() < 8 * MIB


def driver_file(host: RootZfs, volume_id: str) -> Path:
    return host.root / volume_id / "volume"


@pytest.mark.nightly
class TestWhichDriver:
    async def test_an_installation_stays_where_its_volumes_are(
        self, host: RootZfs, dataset: str, tmp_path: Path
    ) -> None:
        driver = await open_volumes(tmp_path / "volumes", host, dataset)
        assert driver.name == "zfs"
        for other in ("", f"{dataset}/other"):
            with pytest.raises(HostError, match="has its volumes in") as caught:
                await open_volumes(tmp_path / "volumes", host, other)
            assert caught.value.resolution == f"Give --zfs {dataset}."
        assert (await open_volumes(tmp_path / "volumes", host, dataset)).name == "zfs"

    async def test_volumes_in_the_data_directory_are_not_left_behind(
        self, host: RootZfs, dataset: str, tmp_path: Path
    ) -> None:
        await choose_volumes(tmp_path / "volumes").create("vol_1", SIZE, blank)
        with pytest.raises(HostError) as caught:
            await open_volumes(tmp_path / "volumes", host, dataset)
        assert caught.value.code == "volumes-elsewhere"

    async def test_a_dataset_that_is_not_there_is_told(self, tank: str, tmp_path: Path) -> None:
        with pytest.raises(HostError) as caught:
            await open_zfs_volumes(RootZfs(f"{tank}/never", tmp_path / "mounts"))
        assert caught.value.code == "no-zfs-dataset"
        assert caught.value.resolution.endswith(f"zfs create {tank}/never")


async def test_a_user_has_volumes_through_the_root_helper(dataset: str, tmp_path: Path) -> None:
    async with real_helper(tmp_path, zfs=dataset) as helper:
        driver = await open_zfs_volumes(helper.host)
        root = await helper.host.zfs_open()
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        place = root / "vol_1"
        assert (place.stat().st_uid, place.stat().st_gid) == (NOBODY, NOBODY)
        assert (root.stat().st_uid, root.stat().st_mode & 0o777) == (0, 0o711)
        await driver.restore("vol_1", "snap_1")
        assert await read(driver, "vol_1", 16, 0) == b"laid by the host"
