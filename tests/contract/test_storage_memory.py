"""The storage contract on the memory driver, and wrong drivers that it rejects."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from plasmavmc.storage.backend import Disk, StorageBackend
from plasmavmc.storage.memory import MemoryStorage
from plasmavmc.types import MIB
from tests.contract.storage_contract import FullDiskContract, StorageContract, make_big_template, make_template


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return make_template(tmp_path)


class TestMemoryStorage(StorageContract, FullDiskContract):
    @pytest.fixture
    def storage(self) -> StorageBackend:
        return MemoryStorage()

    @pytest.fixture
    def small(self) -> StorageBackend:
        return MemoryStorage(capacity_bytes=4 * MIB)

    @pytest.fixture
    def big_template(self, tmp_path: Path) -> Path:
        return make_big_template(tmp_path, 8 * MIB)


class SharingStorage(MemoryStorage):
    """Wrong: every disk is the template itself."""

    async def open(self, key: str) -> int:
        return os.open(self.template, os.O_RDWR | os.O_CLOEXEC)

    async def clone(self, template: Path, key: str) -> Disk:
        self.template = template
        return await super().clone(template, key)


class OverwritingStorage(MemoryStorage):
    """Wrong: a second clone replaces the first."""

    async def clone(self, template: Path, key: str) -> Disk:
        await self.delete(key)
        return await super().clone(template, key)


class EagerStorage(MemoryStorage):
    """Wrong: a new disk replaces one that is there."""

    async def create(self, key: str, size_bytes: int) -> Disk:
        await self.delete(key)
        return await super().create(key, size_bytes)


class ForgettingStorage(MemoryStorage):
    """Wrong: a fresh, empty disk for every reader."""

    async def open(self, key: str) -> int:
        os.close(await super().open(key))
        descriptor = os.memfd_create(key)
        os.ftruncate(descriptor, 1 << 32)
        return descriptor


Behaviour = Callable[[StorageContract, StorageBackend, Path], Awaitable[None]]


@pytest.mark.parametrize(
    ("wrong", "behaviour"),
    [
        (SharingStorage, StorageContract.test_disks_share_nothing_they_write),
        (OverwritingStorage, StorageContract.test_a_key_is_used_once),
        (OverwritingStorage, StorageContract.test_of_clones_at_once_under_one_key_one_succeeds),
        (ForgettingStorage, StorageContract.test_a_clone_has_size_and_content_of_its_template),
        (ForgettingStorage, StorageContract.test_what_is_written_is_read_by_the_next_who_opens),
    ],
)
async def test_a_wrong_driver_is_rejected(wrong: type[MemoryStorage], behaviour: Behaviour, template: Path) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await behaviour(StorageContract(), wrong(), template)


async def test_a_driver_that_makes_a_disk_over_another_is_rejected() -> None:
    with pytest.raises(pytest.fail.Exception):
        await StorageContract().test_a_disk_for_content_from_elsewhere_is_all_zeros_and_takes_nothing(EagerStorage())
