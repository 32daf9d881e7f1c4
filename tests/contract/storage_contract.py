"""What every storage backend must do, whatever its disks are made of."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from plasmavmc.errors import CapacityError, ConflictError, HostError, InvalidSpecError, NotFoundError
from plasmavmc.storage.backend import StorageBackend
from plasmavmc.types import GIB, MIB

SIZE = 4 * GIB
MARKS = {0: b"superblock", 1 * MIB: b"inode table", SIZE - MIB: b"backup near the end"}


def make_template(directory: Path) -> Path:
    """A sparse template of 4 GiB with a little data here and there."""
    path = directory / "template.ext4"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, data in MARKS.items():
            file.seek(offset)
            file.write(data)
    return path


class StorageContract:
    """Derive a class, give it fixtures `storage` and `template`."""

    async def test_a_clone_has_size_and_content_of_its_template(self, storage: StorageBackend, template: Path) -> None:
        disk = await storage.clone(template, "vm1")
        assert (disk.key, disk.size_bytes) == ("vm1", SIZE)
        descriptor = await storage.open("vm1")
        try:
            assert os.fstat(descriptor).st_size == SIZE
            assert {at: os.pread(descriptor, len(data), at) for at, data in MARKS.items()} == MARKS
            assert os.pread(descriptor, 4096, GIB) == bytes(4096)
        finally:
            os.close(descriptor)

    async def test_holes_stay_holes(self, storage: StorageBackend, template: Path) -> None:
        assert (await storage.clone(template, "vm1")).used_bytes < 16 * MIB

    async def test_what_is_written_counts_as_used(self, storage: StorageBackend, template: Path) -> None:
        before = (await storage.clone(template, "vm1")).used_bytes
        descriptor = await storage.open("vm1")
        try:
            os.pwrite(descriptor, b"x" * 8 * MIB, GIB)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        assert await storage.used_bytes("vm1") >= before + 8 * MIB
        assert await storage.used_bytes("vm2") == 0

    async def test_what_is_written_is_read_by_the_next_who_opens(self, storage: StorageBackend, template: Path) -> None:
        await storage.clone(template, "vm1")
        for data in (b"first", b"second"):
            descriptor = await storage.open("vm1")
            try:
                os.pwrite(descriptor, data, 2 * MIB)
            finally:
                os.close(descriptor)
        descriptor = await storage.open("vm1")
        try:
            assert os.pread(descriptor, 6, 2 * MIB) == b"second"
        finally:
            os.close(descriptor)

    async def test_disks_share_nothing_they_write(self, storage: StorageBackend, template: Path) -> None:
        for key in ("vm1", "vm2"):
            await storage.clone(template, key)
        one, two = await storage.open("vm1"), await storage.open("vm2")
        try:
            os.pwrite(one, b"mine", 0)
            assert os.pread(two, 10, 0) == MARKS[0]
        finally:
            os.close(one)
            os.close(two)
        with template.open("rb") as file:
            assert file.read(10) == MARKS[0]

    async def test_a_copy_has_what_its_source_had_and_then_goes_its_own_way(
        self, storage: StorageBackend, template: Path
    ) -> None:
        await storage.clone(template, "vm1")
        one = await storage.open("vm1")
        try:
            os.pwrite(one, b"written", 3 * MIB)
            disk = await storage.copy("vm1", "vm2")
            assert (disk.key, disk.size_bytes) == ("vm2", SIZE)
            assert disk.used_bytes < 16 * MIB
            two = await storage.open("vm2")
            try:
                assert os.pread(two, 7, 3 * MIB) == b"written"
                assert {at: os.pread(two, len(data), at) for at, data in MARKS.items()} == MARKS
                os.pwrite(two, b"another", 3 * MIB)
                assert os.pread(one, 7, 3 * MIB) == b"written"
            finally:
                os.close(two)
        finally:
            os.close(one)
        with pytest.raises(ConflictError):
            await storage.copy("vm1", "vm2")
        with pytest.raises(NotFoundError):
            await storage.copy("vm0", "vm3")
        assert {disk.key for disk in await storage.disks()} == {"vm1", "vm2"}

    async def test_a_disk_for_content_from_elsewhere_is_all_zeros_and_takes_nothing(
        self, storage: StorageBackend
    ) -> None:
        disk = await storage.create("vm1", SIZE)
        assert (disk.key, disk.size_bytes) == ("vm1", SIZE)
        assert disk.used_bytes < MIB
        descriptor = await storage.open("vm1")
        try:
            assert os.pread(descriptor, 4096, GIB) == bytes(4096)
            os.pwrite(descriptor, b"written", SIZE - 7)
        finally:
            os.close(descriptor)
        with pytest.raises(ConflictError):
            await storage.create("vm1", SIZE)
        assert [each.size_bytes for each in await storage.disks()] == [SIZE]

    async def test_a_descriptor_outlives_its_disk(self, storage: StorageBackend, template: Path) -> None:
        await storage.clone(template, "vm1")
        descriptor = await storage.open("vm1")
        try:
            await storage.delete("vm1")
            assert os.pwrite(descriptor, b"still here", 0) == 10
        finally:
            os.close(descriptor)
        assert await storage.disks() == ()

    async def test_a_descriptor_is_not_inherited_by_accident(self, storage: StorageBackend, template: Path) -> None:
        await storage.clone(template, "vm1")
        descriptor = await storage.open("vm1")
        try:
            assert not os.get_inheritable(descriptor)
        finally:
            os.close(descriptor)

    async def test_a_key_is_used_once(self, storage: StorageBackend, template: Path) -> None:
        await storage.clone(template, "vm1")
        with pytest.raises(ConflictError):
            await storage.clone(template, "vm1")
        assert [disk.key for disk in await storage.disks()] == ["vm1"]

    async def test_of_clones_at_once_under_one_key_one_succeeds(self, storage: StorageBackend, template: Path) -> None:
        results = await asyncio.gather(*(storage.clone(template, "vm1") for _ in range(5)), return_exceptions=True)
        assert sorted(isinstance(result, ConflictError) for result in results) == [False, True, True, True, True]

    async def test_many_disks_can_be_made_at_once(self, storage: StorageBackend, template: Path) -> None:
        await asyncio.gather(*(storage.clone(template, f"vm{number}") for number in range(12)))
        assert len(await storage.disks()) == 12

    async def test_deleting_twice_is_fine_and_frees_the_key(self, storage: StorageBackend, template: Path) -> None:
        await storage.clone(template, "vm1")
        await storage.delete("vm1")
        await storage.delete("vm1")
        await storage.delete("never")
        await storage.clone(template, "vm1")

    async def test_an_unknown_disk_is_told(self, storage: StorageBackend) -> None:
        with pytest.raises(NotFoundError):
            await storage.open("nothing")

    async def test_a_missing_template_leaves_nothing(self, storage: StorageBackend, tmp_path: Path) -> None:
        with pytest.raises(HostError):
            await storage.clone(tmp_path / "no such template", "vm1")
        assert await storage.disks() == ()

    async def test_a_clone_that_is_cancelled_leaves_nothing(self, storage: StorageBackend, template: Path) -> None:
        task = asyncio.create_task(storage.clone(template, "vm1"))
        await asyncio.sleep(0)
        if task.cancel():
            await asyncio.wait({task})
        if task.cancelled():
            assert await storage.disks() == ()

    @pytest.mark.parametrize("key", ["", "../vm1", "a/b", "A", ".", "a\0", "-a", "a" * 64])
    async def test_keys_are_from_an_allow_list(self, storage: StorageBackend, template: Path, key: str) -> None:
        with pytest.raises(InvalidSpecError):
            await storage.clone(template, key)
        with pytest.raises(InvalidSpecError):
            await storage.open(key)

    async def test_all_disks_are_listed(self, storage: StorageBackend, template: Path) -> None:
        for key in ("vm2", "vm1"):
            await storage.clone(template, key)
        assert {disk.key: disk.size_bytes for disk in await storage.disks()} == {"vm1": SIZE, "vm2": SIZE}
        assert await storage.free_bytes() > 0


class FullDiskContract:
    """For drivers that can be given a small disk: fixtures `small` (a backend on it) and `big_template`."""

    async def test_a_full_disk_is_told_and_nothing_is_left(self, small: StorageBackend, big_template: Path) -> None:
        with pytest.raises(CapacityError) as caught:
            await small.clone(big_template, "vm1")
        assert caught.value.code == "disk-full"
        assert await small.disks() == ()


def make_big_template(directory: Path, size: int) -> Path:
    """A template full of data."""
    path = directory / "big.ext4"
    path.write_bytes(os.urandom(MIB) * (size // MIB))
    return path
