"""The storage contract on the drivers with a disk: `file` anywhere, `reflink` on an xfs made for the test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmavmc.storage.backend import StorageBackend
from plasmavmc.storage.choose import choose_storage
from plasmavmc.storage.file import FileStorage
from plasmavmc.storage.reflink import ReflinkStorage, can_reflink
from plasmavmc.types import GIB, MIB
from tests.contract.storage_contract import FullDiskContract, StorageContract, make_big_template, make_template


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return make_template(tmp_path)


def mounted(image: Path, size: int, mount_point: Path, *mkfs: str) -> Iterator[Path]:
    """A file system in a file, mounted while the test runs."""
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*mkfs, str(image)], check=True, capture_output=True)
    mount_point.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(mount_point)], check=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


class TestFileStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> StorageBackend:
        return FileStorage(tmp_path / "disks")

    async def test_a_clone_that_was_cut_off_is_swept_at_start(self, tmp_path: Path, template: Path) -> None:
        await FileStorage(tmp_path / "disks").clone(template, "vm1")
        (tmp_path / "disks" / "vm2.part").write_bytes(b"half")
        storage = FileStorage(tmp_path / "disks")
        assert [disk.key for disk in await storage.disks()] == ["vm1"]
        assert [path.name for path in (tmp_path / "disks").iterdir()] == ["vm1.disk"]

    async def test_disks_are_for_our_user_only(self, storage: StorageBackend, tmp_path: Path, template: Path) -> None:
        await storage.clone(template, "vm1")
        assert (tmp_path / "disks" / "vm1.disk").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "disks").stat().st_mode & 0o777 == 0o700

    async def test_a_whole_template_without_holes_is_copied_whole(
        self, storage: StorageBackend, tmp_path: Path
    ) -> None:
        template = make_big_template(tmp_path, 20 * MIB)
        await storage.clone(template, "vm1")
        descriptor = await storage.open("vm1")
        try:
            assert os.pread(descriptor, 20 * MIB, 0) == template.read_bytes()
        finally:
            os.close(descriptor)


@pytest.mark.real
class TestFileStorageOnASmallDisk(FullDiskContract):
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        yield from mounted(tmp_path / "ext4", 16 * MIB, tmp_path / "mnt", "mkfs.ext4", "-q")

    @pytest.fixture
    def small(self, disk: Path) -> StorageBackend:
        return FileStorage(disk / "disks")

    @pytest.fixture
    def big_template(self, tmp_path: Path) -> Path:
        return make_big_template(tmp_path, 32 * MIB)

    def test_ext4_has_no_reflinks_so_the_file_driver_is_chosen(self, disk: Path) -> None:
        assert choose_storage(disk / "disks").name == "file"


@pytest.mark.real
class TestReflinkStorage(StorageContract, FullDiskContract):
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        yield from mounted(tmp_path / "xfs", GIB // 2, tmp_path / "mnt", "mkfs.xfs", "-q", "-m", "reflink=1")

    @pytest.fixture
    def storage(self, disk: Path) -> StorageBackend:
        assert can_reflink(disk)
        return ReflinkStorage(disk / "disks")

    @pytest.fixture
    def small(self, storage: StorageBackend) -> StorageBackend:
        return storage

    @pytest.fixture
    def big_template(self, tmp_path: Path) -> Path:
        return make_big_template(tmp_path, 600 * MIB)

    def test_the_reflink_driver_is_chosen(self, disk: Path) -> None:
        assert choose_storage(disk / "disks").name == "reflink"
        assert list((disk / "disks").iterdir()) == []

    async def test_clones_share_the_blocks_of_their_template(self, storage: StorageBackend, tmp_path: Path) -> None:
        template = make_big_template(tmp_path, 64 * MIB)
        await storage.clone(template, "vm0")
        before = await storage.free_bytes()
        for number in range(1, 20):
            await storage.clone(template, f"vm{number}")
        assert before - await storage.free_bytes() < 16 * MIB

    async def test_a_template_made_anew_is_copied_anew(self, storage: StorageBackend, tmp_path: Path) -> None:
        template = tmp_path / "t"
        for number, data in enumerate((b"old!", b"new!")):
            template.unlink(missing_ok=True)
            template.write_bytes(data * 1024)
            await storage.clone(template, f"vm{number}")
            descriptor = await storage.open(f"vm{number}")
            try:
                assert os.pread(descriptor, 4, 0) == data
            finally:
                os.close(descriptor)
