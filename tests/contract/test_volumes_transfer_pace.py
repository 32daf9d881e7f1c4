"""How a large snapshot is sent of which little, or nothing, is new: whoever reads hears of it in time, and may leave."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from plasmavmc.host.ranges import read_range
from plasmavmc.storage.volumes import transfer
from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.storage.volumes.choose import file_volumes
from plasmavmc.storage.volumes.memory import MemoryVolumes
from plasmavmc.storage.volumes.transfer import BLOCK, SILENT_S
from shellwego.api.uplink import transfers
from shellwego.drivers.uplink import downloads
from tests.contract.volumes_contract import blank, opened, write
from tests.contract.volumes_transfer_contract import SIZE, arrive, checksum, volumes

READ_S = 0.5
BLOCKS = SIZE // BLOCK
SOON = 2
"""Reads: the block under way, of both snapshots."""


class SlowDisk:
    """A disk that takes long for each read, by a clock of its own; it may stand still at one of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reads = 0
        self.stands_at = -1
        self.stood = threading.Event()
        self.goes_on = threading.Event()

    def clock(self) -> float:
        return self.now

    def read(self, file: int, size: int, offset: int) -> bytes:
        self.now += READ_S
        self.reads += 1
        if self.reads == self.stands_at:
            self.stood.set()
            assert self.goes_on.wait(30)
        return read_range(file, size, offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    made = SlowDisk()
    monkeypatch.setattr(transfer, "read_range", made.read)
    yield made
    made.goes_on.set()


@pytest.fixture(params=["file", "memory"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> VolumeDriver:
    return file_volumes(tmp_path) if request.param == "file" else MemoryVolumes()


@pytest.fixture
def there() -> VolumeDriver:
    return MemoryVolumes()


async def full(driver: VolumeDriver, last: bytes = b"") -> None:
    """A volume without holes, and two snapshots of it; `last` is what the second one has otherwise, at its end."""
    await driver.create("vol_1", SIZE, blank)
    await write(driver, "vol_1", os.urandom(SIZE), 0)
    await driver.snapshot("vol_1", "snap_1")
    await write(driver, "vol_1", last, SIZE - len(last))
    await driver.snapshot("vol_1", "snap_2")


async def send(driver: VolumeDriver, disk: SlowDisk, snapshot_id: str, since: str = "") -> AsyncGenerator[bytes]:
    with opened(await driver.open_snapshot(snapshot_id)) as new:
        if not since:
            async with aclosing(transfer.send(new, None, sealed=False, clock=disk.clock)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        with opened(await driver.open_snapshot(since)) as old:
            async with aclosing(transfer.send(new, old, sealed=False, clock=disk.clock)) as pieces:
                async for piece in pieces:
                    yield piece


async def told(stream: AsyncIterator[bytes], disk: SlowDisk) -> tuple[list[float], bytes]:
    """When its pieces came, and all that was in them."""
    moments, content = [], b""
    async for piece in stream:
        assert piece
        moments.append(disk.now)
        content += piece
    return moments, content


def longest(moments: list[float]) -> float:
    return max(later - before for before, later in zip([0.0, *moments], moments, strict=False))


async def test_who_waits_hears_of_a_scan_that_finds_nothing_and_gets_the_same(
    disk: SlowDisk, here: VolumeDriver, there: VolumeDriver
) -> None:
    await full(here, b"the last")
    _, whole = await told(send(here, disk, "snap_1"), disk)
    await arrive(there, whole)
    disk.now = 0.0
    moments, more = await told(send(here, disk, "snap_2", "snap_1"), disk)
    assert disk.now == 2 * BLOCKS * READ_S  # else there was nothing to wait for
    assert longest(moments) <= SILENT_S + 2 * READ_S
    await arrive(there, more, "snap_2", "snap_1")
    assert await checksum(there, "vol_1") == await checksum(here, "vol_1")


async def test_zeros_that_are_data_keep_nobody_waiting_and_stay_zeros(
    disk: SlowDisk, here: VolumeDriver, there: VolumeDriver
) -> None:
    await here.create("vol_1", SIZE, blank)
    await write(here, "vol_1", bytes(SIZE), 0)
    await here.snapshot("vol_1", "snap_1")
    moments, whole = await told(send(here, disk, "snap_1"), disk)
    assert longest(moments) <= SILENT_S + READ_S
    await arrive(there, whole)
    assert await checksum(there, "vol_1") == await checksum(here, "vol_1")


async def test_a_volume_that_was_larger_has_nothing_said_of_what_is_beyond(
    disk: SlowDisk, here: VolumeDriver, there: VolumeDriver
) -> None:
    await full(here)
    with opened(await here.open("vol_1")) as small:
        os.ftruncate(small, SIZE // 2)
        with opened(await here.open_snapshot("snap_1")) as old:
            _, more = await told(transfer.send(small, old, sealed=False, clock=disk.clock), disk)
    incoming = transfer.Incoming(_of(more))
    assert (await incoming.open()).size_bytes == SIZE // 2
    assert all([at < SIZE // 2 async for at, _ in incoming.blocks()])


async def _of(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_the_header_waits_for_no_block(disk: SlowDisk, here: VolumeDriver) -> None:
    await full(here)
    async with aclosing(send(here, disk, "snap_2", "snap_1")) as stream:
        assert await anext(stream)
        assert disk.reads == 0


async def test_what_says_that_there_is_somebody_costs_little(disk: SlowDisk, here: VolumeDriver) -> None:
    await full(here)
    _, more = await told(send(here, disk, "snap_2", "snap_1"), disk)
    assert len(more) <= (disk.now / SILENT_S + 1) * (BLOCK + 100)


async def test_what_is_new_says_enough_by_itself(disk: SlowDisk, here: VolumeDriver) -> None:
    await full(here)
    await write(here, "vol_1", b"the first", 0)
    await here.snapshot("vol_1", "snap_3")
    async with aclosing(send(here, disk, "snap_3", "snap_2")) as stream:
        await anext(stream)
        assert len(await anext(stream)) < BLOCK + 100


async def test_a_fast_scan_sends_only_what_differs(here: VolumeDriver) -> None:
    await full(here, b"the last")
    more = b"".join([part async for part in volumes(here).content.send("snap_2", "snap_1")])
    assert len(more) < 2 * BLOCK


async def test_who_leaves_between_two_pieces_stops_the_scan(disk: SlowDisk, here: VolumeDriver) -> None:
    await full(here)
    async with aclosing(send(here, disk, "snap_2", "snap_1")) as stream:
        await anext(stream)
        await anext(stream)
        so_far = disk.reads
    assert disk.reads == so_far <= SILENT_S / READ_S + SOON


async def test_who_leaves_while_he_waits_stops_the_scan_within_a_block(disk: SlowDisk, here: VolumeDriver) -> None:
    await full(here)
    disk.stands_at = 3
    stream = volumes(here).content.send("snap_2", "snap_1")
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.to_thread(disk.stood.wait, 30)
    waiting.cancel()
    for _ in range(3):
        await asyncio.wait({waiting}, timeout=0)
    assert not waiting.done()  # not before the thread, whose files are closed then
    disk.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert disk.reads <= disk.stands_at + SOON


def test_nobody_on_the_way_gives_up_before_something_is_said() -> None:
    assert min(transfers.STALL_S, downloads.STALL_S) >= 3 * SILENT_S
