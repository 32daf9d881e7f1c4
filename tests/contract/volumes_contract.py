"""What every driver of volumes must do, whatever its volumes are made of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from plasmavmc.errors import CapacityError, ConflictError, InvalidSpecError, NotFoundError
from plasmavmc.storage.volumes.backend import SendReceive, VolumeDriver
from plasmavmc.types import MIB

SIZE = 64 * MIB


def blank(_file: int) -> None:
    """Nothing but zeros."""


def marked(file: int) -> None:
    """What the host lays into a new volume."""
    os.pwrite(file, b"laid by the host", 0)


@contextmanager
def opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def write(driver: VolumeDriver, volume_id: str, data: bytes, at: int = MIB) -> None:
    """As a guest does, through a descriptor."""
    with opened(await driver.open(volume_id)) as file:
        os.pwrite(file, data, at)
        os.fsync(file)


async def read(driver: VolumeDriver, volume_id: str, size: int, at: int = MIB) -> bytes:
    with opened(await driver.open(volume_id)) as file:
        return os.pread(file, size, at)


async def sizes(driver: VolumeDriver) -> dict[str, int]:
    return {volume.volume_id: volume.size_bytes for volume in await driver.volumes()}


async def clones(driver: VolumeDriver, snapshot_id: str) -> None:
    """So many that a small disk has no room for all of them."""
    for number in range(2, 16):
        await driver.clone(snapshot_id, f"vol_{number}", SIZE)


class VolumesContract:
    """Derive a class, give it the fixture `driver`."""

    async def test_a_volume_has_its_size_and_what_was_laid_into_it(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, marked)
        with opened(await driver.open("vol_1")) as file:
            assert os.fstat(file).st_size == SIZE
            assert os.pread(file, 16, 0) == b"laid by the host"
            assert os.pread(file, 4096, SIZE - 4096) == bytes(4096)
            assert not os.get_inheritable(file)

    async def test_what_is_written_is_there_for_the_next_who_opens(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, blank)
        await write(driver, "vol_1", b"first")
        await write(driver, "vol_1", b"again")
        assert await read(driver, "vol_1", 5) == b"again"

    async def test_a_volume_takes_only_what_is_written(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, marked)
        (before,) = await driver.volumes()
        assert before.used_bytes < 4 * MIB
        await write(driver, "vol_1", os.urandom(8 * MIB))
        await driver.snapshot("vol_1", "snap_1")  # else a driver may count what was written some seconds later
        (after,) = await driver.volumes()
        assert after.used_bytes >= before.used_bytes + 8 * MIB

    async def test_an_id_is_used_once(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, marked)
        await write(driver, "vol_1", b"mine")
        with pytest.raises(ConflictError) as caught:
            await driver.create("vol_1", SIZE, blank)
        assert caught.value.code == "volume-exists"
        assert await read(driver, "vol_1", 4) == b"mine"

    async def test_a_volume_that_could_not_be_filled_is_not_there(self, driver: VolumeDriver) -> None:
        def broken(file: int) -> None:
            os.pwrite(file, b"half", 0)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await driver.create("vol_1", SIZE, broken)
        assert await driver.volumes() == ()
        await driver.create("vol_1", SIZE, marked)

    async def test_a_volume_grows_and_never_shrinks(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, blank)
        await write(driver, "vol_1", b"kept", SIZE - 4)
        await driver.resize("vol_1", 2 * SIZE)
        await driver.resize("vol_1", SIZE)
        assert await sizes(driver) == {"vol_1": 2 * SIZE}
        assert await read(driver, "vol_1", 8, SIZE - 4) == b"kept" + bytes(4)

    async def test_who_has_a_volume_open_sees_it_grow(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, blank)
        with opened(await driver.open("vol_1")) as file:
            await driver.resize("vol_1", 2 * SIZE)
            assert os.fstat(file).st_size == 2 * SIZE

    async def test_a_snapshot_stays_what_its_volume_was(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, marked)
        await write(driver, "vol_1", b"before")
        await driver.snapshot("vol_1", "snap_1")
        await write(driver, "vol_1", b"after!")
        await driver.clone("snap_1", "vol_2", SIZE)
        assert await read(driver, "vol_2", 6) == b"before"
        assert await read(driver, "vol_2", 16, 0) == b"laid by the host"
        assert await read(driver, "vol_1", 6) == b"after!"

    async def test_a_snapshot_has_what_an_open_descriptor_wrote(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, blank)
        with opened(await driver.open("vol_1")) as file:
            os.pwrite(file, b"not synced", 0)
            await driver.snapshot("vol_1", "snap_1")
        await driver.clone("snap_1", "vol_2", SIZE)
        assert await read(driver, "vol_2", 10, 0) == b"not synced"

    async def test_a_clone_goes_its_own_way(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        for volume_id in ("vol_2", "vol_3"):
            await driver.clone("snap_1", volume_id, SIZE)
            await write(driver, volume_id, volume_id.encode())
        assert await read(driver, "vol_1", 5) == bytes(5)
        assert await read(driver, "vol_2", 5) == b"vol_2"
        assert await read(driver, "vol_3", 5) == b"vol_3"

    async def test_a_clone_may_be_larger_than_its_snapshot(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        await driver.clone("snap_1", "vol_2", 2 * SIZE)
        await driver.clone("snap_1", "vol_3", MIB)
        assert await sizes(driver) == {"vol_1": SIZE, "vol_2": 2 * SIZE, "vol_3": SIZE}

    async def test_a_clone_is_sealed_as_its_origin_is(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, marked, sealed=True)
        await driver.snapshot("vol_1", "snap_1")
        await driver.clone("snap_1", "vol_2", SIZE)
        await driver.create("vol_3", SIZE, blank)
        assert [volume.sealed for volume in await driver.volumes()] == [True, True, False]

    async def test_what_a_snapshot_holds_can_be_read_and_not_written(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        await write(driver, "vol_1", b"written since", 0)
        with opened(await driver.open_snapshot("snap_1")) as file:
            assert os.fstat(file).st_size == SIZE
            assert os.pread(file, 16, 0) == b"laid by the host"
            assert not os.get_inheritable(file)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(file, b"never", 0)

    async def test_what_is_not_there_cannot_be_used(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, blank)
        for attempt in (
            driver.open("vol_9"),
            driver.open_snapshot("snap_9"),
            driver.resize("vol_9", SIZE),
            driver.snapshot("vol_9", "snap_1"),
            driver.restore("vol_9", "snap_1"),
            driver.clone("snap_9", "vol_2", SIZE),
            driver.restore("vol_1", "snap_9"),
        ):
            with pytest.raises(NotFoundError):
                await attempt
        assert await sizes(driver) == {"vol_1": SIZE}

    async def test_a_snapshots_id_is_used_once_among_all_volumes(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, blank)
        await driver.create("vol_2", SIZE, blank)
        await driver.snapshot("vol_1", "snap_1")
        for volume_id in ("vol_1", "vol_2"):
            with pytest.raises(ConflictError) as caught:
                await driver.snapshot(volume_id, "snap_1")
            assert caught.value.code == "snapshot-exists"

    async def test_a_volume_becomes_what_it_was_and_keeps_its_size_and_snapshots(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, marked)
        await write(driver, "vol_1", b"before")
        await driver.snapshot("vol_1", "snap_1")
        await driver.resize("vol_1", 2 * SIZE)
        await write(driver, "vol_1", b"after!")
        await write(driver, "vol_1", b"beyond", SIZE + MIB)
        await driver.restore("vol_1", "snap_1")
        assert await read(driver, "vol_1", 6) == b"before"
        assert await read(driver, "vol_1", 6, SIZE + MIB) == bytes(6)
        (volume,) = await driver.volumes()
        assert volume.size_bytes == 2 * SIZE
        assert [snapshot.snapshot_id for snapshot in volume.snapshots] == ["snap_1"]
        await write(driver, "vol_1", b"again!")
        await driver.restore("vol_1", "snap_1")
        assert await read(driver, "vol_1", 6) == b"before"

    async def test_a_volume_may_go_back_past_a_younger_snapshot_which_stays(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, blank)
        for number in (1, 2):
            await write(driver, "vol_1", b"%d" % number)
            await driver.snapshot("vol_1", f"snap_{number}")
        await driver.restore("vol_1", "snap_1")
        assert await read(driver, "vol_1", 1) == b"1"
        await driver.restore("vol_1", "snap_2")
        assert await read(driver, "vol_1", 1) == b"2"

    async def test_another_volumes_snapshot_is_none_of_ours(self, driver: VolumeDriver) -> None:
        for number in (1, 2):
            await driver.create(f"vol_{number}", SIZE, blank)
            await write(driver, f"vol_{number}", b"%d" % number)
            await driver.snapshot(f"vol_{number}", f"snap_{number}")
        with pytest.raises(NotFoundError):
            await driver.restore("vol_1", "snap_2")
        assert await read(driver, "vol_1", 1) == b"1"

    async def test_a_volume_with_snapshots_is_not_removed(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        with pytest.raises(ConflictError) as caught:
            await driver.delete("vol_1")
        assert caught.value.code == "volume-has-snapshots"
        assert await read(driver, "vol_1", 16, 0) == b"laid by the host"
        await driver.delete_snapshot("snap_1")
        await driver.delete("vol_1")
        assert await driver.volumes() == ()

    async def test_or_it_goes_with_all_of_them_and_no_others(self, driver: VolumeDriver) -> None:
        for number in (1, 2):
            await driver.create(f"vol_{number}", SIZE, marked)
            for name in ("a", "b"):
                await driver.snapshot(f"vol_{number}", f"snap_{number}{name}")
        os.close(await driver.open_snapshot("snap_1a"))
        for _ in range(2):
            await driver.delete("vol_1", with_snapshots=True)
        (left,) = await driver.volumes()
        assert (left.volume_id, [each.snapshot_id for each in left.snapshots]) == ("vol_2", ["snap_2a", "snap_2b"])
        assert await driver.origin("snap_1a") is None
        await driver.create("vol_1", SIZE, blank)
        await driver.snapshot("vol_1", "snap_1a")

    async def test_a_snapshot_under_a_clone_goes_or_is_refused_and_the_clone_stays_whole(
        self, driver: VolumeDriver
    ) -> None:
        await driver.create("vol_1", SIZE, marked)
        await driver.snapshot("vol_1", "snap_1")
        await driver.clone("snap_1", "vol_2", SIZE)
        with suppress(ConflictError):
            await driver.delete_snapshot("snap_1")
        assert await read(driver, "vol_2", 16, 0) == b"laid by the host"
        await driver.delete("vol_2")
        await driver.delete_snapshot("snap_1")
        await driver.delete("vol_1")

    async def test_removing_twice_is_fine_and_frees_the_id(self, driver: VolumeDriver) -> None:
        await driver.create("vol_1", SIZE, blank)
        await driver.snapshot("vol_1", "snap_1")
        for _ in range(2):
            await driver.delete_snapshot("snap_1")
        for _ in range(2):
            await driver.delete("vol_1")
        await driver.create("vol_1", SIZE, blank)
        await driver.snapshot("vol_1", "snap_1")

    async def test_all_are_listed_with_their_snapshots(self, driver: VolumeDriver) -> None:
        for number in (2, 1):
            await driver.create(f"vol_{number}", number * SIZE, blank)
        for snapshot_id in ("snap_b", "snap_a"):
            await driver.snapshot("vol_2", snapshot_id)
        listed = {each.volume_id: [s.snapshot_id for s in each.snapshots] for each in await driver.volumes()}
        assert listed == {"vol_1": [], "vol_2": ["snap_a", "snap_b"]}
        assert await sizes(driver) == {"vol_1": SIZE, "vol_2": 2 * SIZE}
        assert await driver.free_bytes() > 0

    async def test_one_is_found_by_its_id_or_by_a_snapshot_of_it(self, driver: VolumeDriver) -> None:
        for number in (1, 2):
            await driver.create(f"vol_{number}", number * SIZE, blank)
            await driver.snapshot(f"vol_{number}", f"snap_{number}")
        for one in await driver.volumes():
            assert await driver.find(one.volume_id) == one
            assert await driver.origin(one.snapshots[0].snapshot_id) == one
        assert await driver.find("vol_3") is None
        assert await driver.origin("snap_3") is None

    @pytest.mark.parametrize("bad", ["", "../vol", "a/b", "Vol_1", ".", "vol\0", "-vol", "v" * 65, "vol_1.part", "*"])
    async def test_ids_are_from_an_allow_list(self, driver: VolumeDriver, bad: str) -> None:
        await driver.create("vol_1", SIZE, blank)
        for attempt in (
            driver.create(bad, SIZE, blank),
            driver.open(bad),
            driver.open_snapshot(bad),
            driver.resize(bad, SIZE),
            driver.snapshot("vol_1", bad),
            driver.clone(bad, "vol_2", SIZE),
            driver.restore("vol_1", bad),
            driver.delete(bad),
            driver.delete_snapshot(bad),
        ):
            with pytest.raises(InvalidSpecError):
                await attempt


class FullVolumesContract:
    """For drivers that can be given a small disk: fixture `small`, which has no room for `TOO_MUCH`."""

    TOO_MUCH = 64 * MIB

    async def test_a_full_disk_is_told_and_nothing_is_left(self, small: VolumeDriver) -> None:
        def fill(file: int) -> None:
            for at in range(0, self.TOO_MUCH, MIB):
                os.pwrite(file, os.urandom(MIB), at)

        with pytest.raises(CapacityError) as caught:
            await small.create("vol_1", self.TOO_MUCH, fill)
        assert caught.value.code == "disk-full"
        assert await small.volumes() == ()
        await small.create("vol_1", SIZE, marked)
        assert await read(small, "vol_1", 16, 0) == b"laid by the host"

    async def test_a_disk_that_fills_in_the_midst_of_an_order_leaves_all_as_it_was(self, small: VolumeDriver) -> None:
        before, after = os.urandom(5 * MIB), os.urandom(5 * MIB)

        def fill(file: int) -> None:
            os.pwrite(file, after, MIB)

        assert isinstance(small, SendReceive)
        await small.create("vol_1", SIZE, blank)
        await write(small, "vol_1", before)
        await small.snapshot("vol_1", "snap_1")
        await write(small, "vol_1", after)
        with pytest.raises(CapacityError):
            await clones(small, "snap_1")
        there = [(each.volume_id, len(each.snapshots)) for each in await small.volumes()]
        for attempt in (
            small.snapshot("vol_1", "snap_2"),
            small.restore("vol_1", "snap_1"),
            small.receive("vol_1", "snap_2", SIZE, fill, sealed=False, since="snap_1"),
            small.receive("vol_99", "snap_2", SIZE, fill, sealed=False, since=""),
        ):
            with pytest.raises(CapacityError) as caught:
                await attempt
            assert caught.value.code == "disk-full"
        assert [(each.volume_id, len(each.snapshots)) for each in await small.volumes()] == there
        assert await read(small, "vol_1", 5 * MIB) == after
        await small.delete("vol_2")
        await small.restore("vol_1", "snap_1")
        assert await read(small, "vol_1", 5 * MIB) == before
