"""What volumes hold, read from a snapshot and made into another volume, on memory parts."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import AsyncIterator, Coroutine

import pytest

from plasmavmc.errors import ConflictError, InvalidSpecError, NotFoundError
from plasmavmc.storage.volumes.content import Extent, SnapshotReader
from plasmavmc.types import MIB
from plasmavmc.volumes import Volumes
from tests.engine.engine_rig import EngineRig

SIZE = 32 * MIB
KEY = bytes(range(32))


@pytest.fixture
def volumes(rig: EngineRig) -> Volumes:
    return rig.manager().volumes


async def write(rig: EngineRig, volume_id: str, data: bytes, at: int) -> None:
    file = await rig.volumes.open(volume_id)
    os.pwrite(file, data, at)
    os.close(file)


async def read(rig: EngineRig, volume_id: str) -> bytes:
    file = await rig.volumes.open(volume_id)
    content = os.pread(file, os.fstat(file).st_size, 0)
    os.close(file)
    return content


async def extents(source: SnapshotReader) -> AsyncIterator[Extent]:
    end = 0
    while (found := await source.next_data(end)) is not None:
        start, end = found
        yield start, await source.read(start, end - start)


async def given(*extents: Extent) -> AsyncIterator[Extent]:
    for extent in extents:
        yield extent


async def test_a_volume_filled_from_a_snapshot_is_what_that_was(rig: EngineRig, volumes: Volumes) -> None:
    await volumes.create("vol_1", SIZE)
    await write(rig, "vol_1", b"far", 20 * MIB)
    await volumes.snapshot("vol_1", "snap_1")
    before = await read(rig, "vol_1")
    await write(rig, "vol_1", b"now", 20 * MIB)
    async with volumes.content.reading("snap_1") as source:
        assert (source.size_bytes, source.sealed) == (SIZE, False)
        await volumes.content.fill("vol_2", source.size_bytes, extents(source))
    assert await read(rig, "vol_2") == before


async def test_holes_are_known(rig: EngineRig, volumes: Volumes) -> None:
    await volumes.content.fill("vol_1", SIZE, given((20 * MIB, b"x" * 4096)))
    await volumes.snapshot("vol_1", "snap_1")
    async with volumes.content.reading("snap_1") as source:
        assert await source.next_data(0) == (20 * MIB, 20 * MIB + 4096)
        assert await source.next_data(20 * MIB + 4096) is None
        assert await source.read(SIZE - 1, 10) == b"\0"


async def test_a_sealed_volume_travels_as_its_container_under_its_own_key(rig: EngineRig, volumes: Volumes) -> None:
    await volumes.create("vol_1", SIZE, key=KEY)
    await volumes.snapshot("vol_1", "snap_1")
    async with volumes.content.reading("snap_1") as source:
        assert source.sealed
        assert source.size_bytes > SIZE
        with pytest.raises(ConflictError) as caught:
            await volumes.content.fill("vol_2", source.size_bytes, extents(source), key=bytes(32))
        assert caught.value.code == "wrong-key"
        assert [each.volume_id for each in await volumes.list()] == ["vol_1"]
        await volumes.content.fill("vol_2", source.size_bytes, extents(source), key=KEY)
    _, filled = await volumes.list()
    assert (filled.size_bytes, filled.encrypted) == (SIZE, True)
    assert await read(rig, "vol_2") == await read(rig, "vol_1")


async def test_filling_again_changes_nothing_and_reads_nothing(rig: EngineRig, volumes: Volumes) -> None:
    await volumes.content.fill("vol_1", SIZE, given((0, b"first")))
    await volumes.content.fill("vol_1", SIZE, given((0, b"again")))
    assert (await read(rig, "vol_1"))[:5] == b"first"
    with pytest.raises(ConflictError) as caught:
        await volumes.content.fill("vol_1", 2 * SIZE, given())
    assert caught.value.code == "volume-exists"


async def test_content_that_breaks_off_leaves_no_volume(volumes: Volumes) -> None:
    async def breaking() -> AsyncIterator[Extent]:
        yield 0, b"half"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await volumes.content.fill("vol_1", SIZE, breaking())
    assert await volumes.list() == ()
    await volumes.content.fill("vol_1", SIZE, given())


async def test_one_who_is_cancelled_ends_soon_and_leaves_no_volume(volumes: Volumes) -> None:
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[Extent]:
        yield 0, b"half"
        waiting.set()
        await asyncio.Event().wait()

    filling = asyncio.create_task(volumes.content.fill("vol_1", SIZE, endless()))
    await waiting.wait()
    filling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await filling
    assert await volumes.list() == ()


async def test_one_who_is_cancelled_just_as_more_is_asked_for_ends_too(
    volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop may be asked for more, and begin to get it, before the thread that asks has noted that it does."""
    begun, released, cancelled = asyncio.Event(), asyncio.Event(), threading.Event()
    ask = asyncio.run_coroutine_threadsafe

    def noted_late(
        getting: Coroutine[None, None, Extent | None], loop: asyncio.AbstractEventLoop
    ) -> concurrent.futures.Future[Extent | None]:
        asked = ask(getting, loop)
        assert cancelled.wait(20)
        return asked

    async def endless() -> AsyncIterator[Extent]:
        begun.set()
        await released.wait()
        yield 0, b"never"

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", noted_late)
    filling = asyncio.create_task(volumes.content.fill("vol_1", SIZE, endless()))
    await begun.wait()
    filling.cancel()
    await asyncio.sleep(0)
    cancelled.set()
    ended, _ = await asyncio.wait({filling}, timeout=10)
    released.set()
    assert ended
    with pytest.raises(asyncio.CancelledError):
        await filling
    assert await volumes.list() == ()


async def test_what_makes_no_sense_is_refused(volumes: Volumes) -> None:
    with pytest.raises(NotFoundError):
        async with volumes.content.reading("snap_9"):
            pass
    with pytest.raises(InvalidSpecError):
        async with volumes.content.reading("../snap"):
            pass
    for order in (
        volumes.content.fill("vol_1", MIB, given()),
        volumes.content.fill("vol_1", SIZE, given(), key=b"short"),
    ):
        with pytest.raises(InvalidSpecError):
            await order
