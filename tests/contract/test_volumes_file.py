"""The contract of volumes on the drivers with a disk: `file` anywhere, `reflink` on xfs and btrfs made for the test."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmavmc.errors import CapacityError, HostError
from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.storage.volumes.choose import choose_volumes, file_volumes, reflink_volumes
from plasmavmc.storage.volumes.directory import VolumeDirectory
from plasmavmc.types import GIB, MIB
from tests.contract.test_storage_file import mounted
from tests.contract.volumes_contract import SIZE, FullVolumesContract, VolumesContract, blank, marked, read, write


def content(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in (directory, *directory.rglob("*"))}


class TestFileVolumes(VolumesContract):
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        return tmp_path / "volumes"

    @pytest.fixture
    def driver(self, directory: Path) -> VolumeDriver:
        return file_volumes(directory)

    async def test_what_a_crash_left_half_done_is_swept_at_the_next_start(
        self, driver: VolumeDriver, directory: Path
    ) -> None:
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        (directory / "vol_2.abcdef.part").mkdir()
        (directory / "vol_2.abcdef.part" / "volume.raw").write_bytes(b"half made")
        (directory / "vol_1" / "volume.raw.part").write_bytes(b"half restored")
        (directory / "vol_1" / "snap_2.snapshot.part").write_bytes(b"half taken")
        assert [volume.volume_id for volume in await driver.volumes()] == ["vol_1"]
        again = file_volumes(directory)
        assert content(directory) == ["vol_1", "vol_1/snap_1.snapshot", "vol_1/volume.raw"]
        assert await read(again, "vol_1", 16, 0) == b"laid by the host"

    async def test_volumes_are_for_our_user_only(self, driver: VolumeDriver, directory: Path) -> None:
        await driver.create("vol_1", SIZE, blank)
        await driver.snapshot("vol_1", "snap_1")
        assert modes(directory) == {"volumes": 0o700, "vol_1": 0o700, "volume.raw": 0o600, "snap_1.snapshot": 0o600}

    @pytest.mark.parametrize(
        ("trouble", "error", "code"),
        [(errno.EIO, HostError, "storage-error"), (errno.ENOSPC, CapacityError, "disk-full")],
    )
    async def test_a_copy_that_breaks_off_leaves_everything_as_it_was(
        self, directory: Path, trouble: int, error: type[Exception], code: str
    ) -> None:
        def breaking(_source: int, target: int) -> None:
            os.pwrite(target, b"half", 0)
            raise OSError(trouble, os.strerror(trouble))

        whole = file_volumes(directory)
        await whole.create("vol_1", SIZE, marked)
        await whole.snapshot("vol_1", "snap_1")
        await write(whole, "vol_1", b"after")
        before = content(directory)
        driver = VolumeDirectory(directory, breaking, name="breaking", at_once=False)
        for attempt in (
            driver.snapshot("vol_1", "snap_2"),
            driver.clone("snap_1", "vol_2", SIZE),
            driver.restore("vol_1", "snap_1"),
        ):
            with pytest.raises(error) as caught:
                await attempt
            assert getattr(caught.value, "code", "") == code
        assert content(directory) == before
        assert await read(whole, "vol_1", 5) == b"after"


@pytest.mark.real
class TestFileVolumesOnASmallDisk(FullVolumesContract):
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        yield from mounted(tmp_path / "ext4", 32 * MIB, tmp_path / "mnt", "mkfs.ext4", "-q")

    @pytest.fixture
    def small(self, disk: Path) -> VolumeDriver:
        driver = choose_volumes(disk / "volumes")
        assert driver.name == "file"
        return driver


@pytest.mark.real
@pytest.mark.parametrize("mkfs", [("mkfs.xfs", "-q", "-m", "reflink=1"), ("mkfs.btrfs", "-q")], ids=["xfs", "btrfs"])
class TestReflinkVolumes:
    """One file system a test: making one takes longer than the whole contract on it."""

    @pytest.fixture
    def disk(self, tmp_path: Path, mkfs: tuple[str, ...]) -> Iterator[Path]:
        yield from mounted(tmp_path / "disk", GIB // 2, tmp_path / "mnt", *mkfs)

    async def test_the_driver_is_chosen_and_keeps_the_contract(self, disk: Path) -> None:
        assert choose_volumes(disk / "chosen").name == "reflink"
        behaviours = [name for name in vars(VolumesContract) if name.startswith("test_") and "allow_list" not in name]
        assert len(behaviours) > 15
        for name in behaviours:
            await getattr(VolumesContract(), name)(reflink_volumes(disk / name))

    async def test_a_snapshot_shares_the_blocks_of_its_volume(self, disk: Path) -> None:
        driver = reflink_volumes(disk / "volumes")
        assert driver.at_once
        await driver.create("vol_1", SIZE, blank)
        await write(driver, "vol_1", os.urandom(32 * MIB))
        before = await driver.free_bytes()
        for number in range(20):
            await driver.snapshot("vol_1", f"snap_{number}")
        assert before - await driver.free_bytes() < 16 * MIB
