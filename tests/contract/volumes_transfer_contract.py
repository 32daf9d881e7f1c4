"""What a driver does that takes snapshots of other nodes, whatever the volumes are made of at either end."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import AsyncIterator

import pytest

from plasmavmc.errors import ConflictError, InvalidSpecError, NotFoundError, PlasmaError, UnavailableError
from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.types import MIB
from plasmavmc.volumes import Volumes
from tests.contract.volumes_contract import blank, opened, read, write

SIZE = 16 * MIB
CUTS = (5, 17, 20, 4000, -33, -1)
"""How much of a stream arrives: in its header, between its blocks, in them, and in the sum at its end."""


async def never(_size_bytes: int) -> AsyncIterator[None]:
    raise AssertionError("no template is needed")


def volumes(driver: VolumeDriver) -> Volumes:
    return Volumes(driver, never)


async def checksum(driver: VolumeDriver, volume_id: str) -> str:
    with opened(await driver.open(volume_id)) as file:
        return hashlib.sha256(os.pread(file, os.fstat(file).st_size, 0)).hexdigest()


async def sent(driver: VolumeDriver, snapshot_id: str, since: str = "") -> bytes:
    return b"".join([part async for part in volumes(driver).content.send(snapshot_id, since)])


async def stream(data: bytes, step: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


async def arrive(driver: VolumeDriver, data: bytes, snapshot_id: str = "snap_1", since: str = "") -> None:
    await volumes(driver).content.receive("vol_1", snapshot_id, stream(data), since=since)


async def state(driver: VolumeDriver) -> dict[str, list[str]]:
    return {each.volume_id: [one.snapshot_id for one in each.snapshots] for each in await driver.volumes()}


async def begun(driver: VolumeDriver) -> None:
    """A volume with some data in it, and two snapshots that differ by little."""
    await driver.create("vol_1", SIZE, blank)
    await write(driver, "vol_1", os.urandom(MIB), 3 * MIB)
    await driver.snapshot("vol_1", "snap_1")
    await write(driver, "vol_1", b"changed", 3 * MIB + 100_000)
    await write(driver, "vol_1", bytes(65_536), 3 * MIB + 65_536 * 4)
    await write(driver, "vol_1", b"the last", SIZE - 8)
    await driver.snapshot("vol_1", "snap_2")


class SendReceiveContract:
    """Derive a class, give it the fixtures `here` and `there`: two drivers that know nothing of each other."""

    async def test_a_volume_arrives_as_it_was_with_its_snapshot(self, here: VolumeDriver, there: VolumeDriver) -> None:
        await begun(here)
        await arrive(there, await sent(here, "snap_2"), "snap_2")
        assert await checksum(there, "vol_1") == await checksum(here, "vol_1")
        assert await state(there) == {"vol_1": ["snap_2"]}

    async def test_what_follows_is_small_and_makes_the_same(self, here: VolumeDriver, there: VolumeDriver) -> None:
        await begun(here)
        whole, more = await sent(here, "snap_1"), await sent(here, "snap_2", "snap_1")
        assert len(whole) < MIB + MIB // 4
        assert len(more) < MIB // 4
        await arrive(there, whole)
        await arrive(there, more, "snap_2", "snap_1")
        await arrive(there, b"", "snap_2", "snap_1")
        assert await checksum(there, "vol_1") == await checksum(here, "vol_1")
        await there.restore("vol_1", "snap_1")
        await here.restore("vol_1", "snap_1")
        assert await checksum(there, "vol_1") == await checksum(here, "vol_1")

    async def test_a_volume_that_grew_arrives_grown(self, here: VolumeDriver, there: VolumeDriver) -> None:
        await begun(here)
        await here.resize("vol_1", 2 * SIZE)
        await write(here, "vol_1", b"beyond", SIZE + MIB)
        await here.snapshot("vol_1", "snap_3")
        await arrive(there, await sent(here, "snap_2"), "snap_2")
        await arrive(there, await sent(here, "snap_3", "snap_2"), "snap_3", "snap_2")
        assert await checksum(there, "vol_1") == await checksum(here, "vol_1")

    async def test_what_is_sealed_arrives_sealed(self, here: VolumeDriver, there: VolumeDriver) -> None:
        await here.create("vol_1", 20 * MIB, blank, sealed=True)
        await here.snapshot("vol_1", "snap_1")
        await arrive(there, await sent(here, "snap_1"))
        assert [volume.sealed for volume in await there.volumes()] == [True]

    @pytest.mark.parametrize("cut", CUTS)
    async def test_what_is_cut_off_on_its_way_leaves_nothing_and_can_be_sent_again(
        self, here: VolumeDriver, there: VolumeDriver, cut: int
    ) -> None:
        await begun(here)
        whole, more = await sent(here, "snap_1"), await sent(here, "snap_2", "snap_1")
        with pytest.raises(UnavailableError) as caught:
            await arrive(there, whole[:cut])
        assert caught.value.code == "stream-cut"
        assert await state(there) == {}
        await arrive(there, whole)
        before = await checksum(there, "vol_1")
        with pytest.raises(UnavailableError):
            await arrive(there, more[:cut], "snap_2", "snap_1")
        assert await state(there) == {"vol_1": ["snap_1"]}
        assert await checksum(there, "vol_1") == before
        await arrive(there, more, "snap_2", "snap_1")
        assert await checksum(there, "vol_1") == await checksum(here, "vol_1")

    async def test_what_was_damaged_on_its_way_is_not_kept(self, here: VolumeDriver, there: VolumeDriver) -> None:
        await begun(here)
        whole = bytearray(await sent(here, "snap_1"))
        for at in (0, 16, 22, 5000, len(whole) - 1):
            damaged = bytes(whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :])
            with pytest.raises(PlasmaError):
                await arrive(there, damaged)
            assert await state(there) == {}

    async def test_what_began_with_something_else_is_not_mixed(self, here: VolumeDriver, there: VolumeDriver) -> None:
        await begun(here)
        await there.create("vol_1", SIZE, blank)
        await there.snapshot("vol_1", "snap_1")
        with pytest.raises(InvalidSpecError, match="differ"):
            await arrive(there, await sent(here, "snap_2", "snap_1"), "snap_2", "snap_1")
        with pytest.raises(ConflictError):
            await arrive(there, await sent(here, "snap_2"), "snap_2")
        assert await state(there) == {"vol_1": ["snap_1"]}

    async def test_only_what_is_there_can_be_sent_or_followed(self, here: VolumeDriver, there: VolumeDriver) -> None:
        await begun(here)
        for snapshot_id, since in (("snap_9", ""), ("snap_2", "snap_9")):
            with pytest.raises(NotFoundError):
                await sent(here, snapshot_id, since)
        with pytest.raises(NotFoundError):
            await arrive(there, await sent(here, "snap_2", "snap_1"), "snap_2", "snap_1")
        assert await state(there) == {}

    async def test_a_volume_that_somebody_has_is_not_received_into(
        self, here: VolumeDriver, there: VolumeDriver
    ) -> None:
        await begun(here)
        whole = await sent(here, "snap_1")
        await arrive(there, whole)
        with opened(await there.open("vol_1")) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.pwrite(file, b"written since", 5 * MIB)
            for late in (
                arrive(there, await sent(here, "snap_2", "snap_1"), "snap_2", "snap_1"),
                arrive(there, whole),  # once more: its answer was lost
            ):
                with pytest.raises(ConflictError) as caught:
                    await late
                assert caught.value.code == "volume-held"
        assert await read(there, "vol_1", 13, 5 * MIB) == b"written since"
