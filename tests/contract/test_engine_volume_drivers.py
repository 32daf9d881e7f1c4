"""Snapshots from engine to engine, with real volumes at both ends: `file`, `reflink` and `zfs`. What is in memory is sent
beside the engines' own contracts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.storage.volumes.choose import file_volumes, reflink_volumes
from plasmavmc.storage.volumes.zfs.driver import open_zfs_volumes
from plasmavmc.types import MIB
from tests.contract.test_engine_plasmavmc import maker
from tests.contract.test_storage_file import mounted
from tests.contract.volume_sending_contract import VolumeSendingContract
from tests.contract.zfs_pool import RootZfs, pool

CHAIN = (
    VolumeSendingContract.test_snapshots_arrive_one_on_top_of_the_other_and_each_is_what_it_was,
    VolumeSendingContract.test_one_in_between_may_go_and_what_follows_comes_on_the_youngest,
    VolumeSendingContract.test_what_breaks_off_or_is_damaged_leaves_what_was_there_and_can_come_again,
)
"""What differs from driver to driver."""


async def keeps(directory: Path, here: VolumeDriver, there: VolumeDriver, number: int) -> None:
    ends = (maker(directory / f"engine-{each}", {}, volumes=driver) for each, driver in enumerate((here, there)))
    await CHAIN[number](VolumeSendingContract(), *ends)


@pytest.mark.parametrize("number", range(len(CHAIN)), ids=[each.__name__ for each in CHAIN])
class TestDrivers:
    async def test_from_files_to_files(self, tmp_path: Path, number: int) -> None:
        await keeps(tmp_path, file_volumes(tmp_path / "here"), file_volumes(tmp_path / "there"), number)

    @pytest.mark.real
    @pytest.mark.nightly
    async def test_from_files_to_reflinks(self, tmp_path: Path, number: int) -> None:
        for disk in mounted(tmp_path / "disk", 512 * MIB, tmp_path / "xfs", "mkfs.xfs", "-q", "-m", "reflink=1"):
            await keeps(tmp_path, file_volumes(tmp_path / "here"), reflink_volumes(disk / "there"), number)

    @pytest.mark.real
    @pytest.mark.nightly
    @pytest.mark.parametrize("inward", [True, False], ids=["in", "out"])
    async def test_from_and_to_zfs(self, tank: str, tmp_path: Path, number: int, inward: bool) -> None:
        with closing(RootZfs(tank, tmp_path / "zfs", f"swg-e{number}{inward:d}")) as host:
            zfs, files = await open_zfs_volumes(host), file_volumes(tmp_path / "files")
            here, there = (files, zfs) if inward else (zfs, files)
            await keeps(tmp_path, here, there, number)


@pytest.fixture(scope="module")
def tank() -> Iterator[str]:
    with pool(768 * MIB) as name:
        yield name
