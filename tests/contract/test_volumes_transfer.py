"""Snapshots from driver to driver, and a wrong driver that the contract rejects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from plasmavmc.errors import PlasmaError
from plasmavmc.storage.volumes.backend import Fill, VolumeDriver
from plasmavmc.storage.volumes.choose import file_volumes
from plasmavmc.storage.volumes.memory import MemoryVolumes
from plasmavmc.storage.volumes.zfs.driver import open_zfs_volumes
from plasmavmc.types import MIB
from tests.contract.volumes_transfer_contract import SendReceiveContract
from tests.contract.zfs_pool import RootZfs, pool


class TestFromFilesToMemory(SendReceiveContract):
    @pytest.fixture
    def here(self, tmp_path: Path) -> VolumeDriver:
        return file_volumes(tmp_path / "here")

    @pytest.fixture
    def there(self) -> VolumeDriver:
        return MemoryVolumes()


class TestFromMemoryToFiles(SendReceiveContract):
    @pytest.fixture
    def here(self) -> VolumeDriver:
        return MemoryVolumes()

    @pytest.fixture
    def there(self, tmp_path: Path) -> VolumeDriver:
        return file_volumes(tmp_path / "there")


@pytest.fixture(scope="module")
def tank() -> Iterator[str]:
    with pool(512 * MIB) as name:
        yield name


@pytest.mark.real
@pytest.mark.nightly
class TestZfs:
    """Both ends, from and to files: one pool for all behaviours."""

    BEHAVIOURS = (
        SendReceiveContract.test_a_volume_arrives_as_it_was_with_its_snapshot,
        SendReceiveContract.test_what_follows_is_small_and_makes_the_same,
        SendReceiveContract.test_a_volume_that_grew_arrives_grown,
        SendReceiveContract.test_what_began_with_something_else_is_not_mixed,
        SendReceiveContract.test_a_volume_that_somebody_has_is_not_received_into,
    )

    @pytest.mark.parametrize("number", range(len(BEHAVIOURS)), ids=[each.__name__ for each in BEHAVIOURS])
    async def test_it_takes_from_files_and_gives_to_them(self, tank: str, tmp_path: Path, number: int) -> None:
        for direction in ("in", "out"):
            host = RootZfs(tank, tmp_path / direction, f"swg-{direction}{number}")
            zfs, files = await open_zfs_volumes(host), file_volumes(tmp_path / f"files-{direction}")
            ends = (files, zfs) if direction == "in" else (zfs, files)
            try:
                await self.BEHAVIOURS[number](SendReceiveContract(), *ends)
            finally:
                host.close()

    @pytest.mark.parametrize("cut", [29, 65_600, -1])
    async def test_what_is_cut_off_leaves_nothing(self, tank: str, tmp_path: Path, cut: int) -> None:
        host = RootZfs(tank, tmp_path / "m", f"swg-cut{cut % 97}")
        try:
            await SendReceiveContract().test_what_is_cut_off_on_its_way_leaves_nothing_and_can_be_sent_again(
                file_volumes(tmp_path / "files"), await open_zfs_volumes(host), cut
            )
        finally:
            host.close()


class HalfVolumes(MemoryVolumes):
    """Wrong: it keeps what it has got."""

    async def receive(
        self, volume_id: str, snapshot_id: str, size_bytes: int, fill: Fill, *, sealed: bool, since: str
    ) -> None:
        def half(file: int) -> None:
            with suppress(PlasmaError):
                fill(file)

        await super().receive(volume_id, snapshot_id, size_bytes, half, sealed=sealed, since=since)


async def test_a_driver_that_keeps_half_is_rejected(tmp_path: Path) -> None:
    behaviour = SendReceiveContract().test_what_is_cut_off_on_its_way_leaves_nothing_and_can_be_sent_again
    with pytest.raises(pytest.fail.Exception):
        await behaviour(file_volumes(tmp_path), HalfVolumes(), 4000)
