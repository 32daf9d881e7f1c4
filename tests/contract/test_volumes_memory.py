"""The contract of volumes on the memory driver, and wrong drivers that it rejects."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest

from plasmavmc.storage.volumes.backend import Fill, VolumeDriver
from plasmavmc.storage.volumes.memory import MemoryVolumes
from plasmavmc.types import MIB
from tests.contract.volumes_contract import FullVolumesContract, VolumesContract


class TestMemoryVolumes(VolumesContract, FullVolumesContract):
    @pytest.fixture
    def driver(self) -> VolumeDriver:
        return MemoryVolumes()

    @pytest.fixture
    def small(self) -> VolumeDriver:
        return MemoryVolumes(capacity_bytes=16 * MIB)


class SharingVolumes(MemoryVolumes):
    """Wrong: a clone is its origin."""

    async def clone(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        self._volumes[volume_id] = self._origin(snapshot_id)


class LateVolumes(MemoryVolumes):
    """Wrong: a snapshot follows its volume."""

    async def snapshot(self, volume_id: str, snapshot_id: str) -> None:
        self._volume(volume_id).snapshots[snapshot_id] = self._volume(volume_id).file


class OverwritingVolumes(MemoryVolumes):
    """Wrong: whoever comes last has the id."""

    async def create(self, volume_id: str, size_bytes: int, fill: Fill, *, sealed: bool = False) -> None:
        self._volumes.pop(volume_id, None)
        await super().create(volume_id, size_bytes, fill, sealed=sealed)


class CarelessVolumes(MemoryVolumes):
    """Wrong: a volume takes its snapshots with it, and shrinks when it is asked to."""

    async def delete(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        self._volumes.pop(volume_id, None)

    async def resize(self, volume_id: str, size_bytes: int) -> None:
        os.ftruncate(self._volume(volume_id).file, size_bytes)


class HandingOutVolumes(MemoryVolumes):
    """Wrong: who reads a snapshot gets what its volume is now, and may write to it."""

    async def open_snapshot(self, snapshot_id: str) -> int:
        origin = await self.origin(snapshot_id)
        return await self.open(origin.volume_id if origin else snapshot_id)


Behaviour = Callable[[VolumesContract, VolumeDriver], Awaitable[None]]


@pytest.mark.parametrize(
    ("wrong", "behaviour"),
    [
        (SharingVolumes, VolumesContract.test_a_clone_goes_its_own_way),
        (LateVolumes, VolumesContract.test_a_snapshot_stays_what_its_volume_was),
        (OverwritingVolumes, VolumesContract.test_an_id_is_used_once),
        (HandingOutVolumes, VolumesContract.test_what_a_snapshot_holds_can_be_read_and_not_written),
        (CarelessVolumes, VolumesContract.test_a_volume_with_snapshots_is_not_removed),
        (CarelessVolumes, VolumesContract.test_a_volume_grows_and_never_shrinks),
    ],
)
async def test_a_wrong_driver_is_rejected(wrong: type[MemoryVolumes], behaviour: Behaviour) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await behaviour(VolumesContract(), wrong())
