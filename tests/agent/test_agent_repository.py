"""Backups as an agent stores, checks and reads them: on a store in memory, of volumes that are bytes."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shellwego.agent.repository import Repository, Taken
from shellwego.core.backups import BackupOrder
from shellwego.core.chunks import CHUNK_BYTES, VaultCipher
from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.objects.memory import MemoryObjects

PROJECT = "prj_1"
ORDER = BackupOrder(backup_id="bak_1", volume_id="vol_1", project_id=PROJECT)


@dataclass
class Disk:
    """`ports.engine.SnapshotSource`: bytes, and the runs of them that the host knows to be data."""

    content: bytes
    runs: list[tuple[int, int]] | None = None
    sealed: bool = False
    read_at: list[int] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    async def next_data(self, offset: int) -> tuple[int, int] | None:
        runs = [(0, len(self.content))] if self.runs is None else self.runs
        return next(((max(start, offset), end) for start, end in runs if end > offset), None)

    async def read(self, offset: int, size: int) -> bytes:
        self.read_at.append(offset)
        return self.content[offset : offset + size]


def disk(*chunks: bytes) -> Disk:
    """Chunks that begin so, and are zeros then."""
    return Disk(b"".join(chunk.ljust(CHUNK_BYTES, b"\0") for chunk in chunks))


def repository(objects: MemoryObjects, key: bytes = bytes(32), project: str = PROJECT) -> Repository:
    return Repository(objects, VaultCipher(Sensitive(key)), project)


def nobody(_done: int, _added: int) -> None:
    """Who wants to know how far it is."""


async def wanted() -> None:
    """Whether it still is."""


async def take(objects: MemoryObjects, source: Disk, order: BackupOrder = ORDER) -> Taken:
    return await repository(objects).take(order, source, nobody, wanted)


async def restored(objects: MemoryObjects, backup_id: str = "bak_1") -> bytes:
    mine = repository(objects)
    manifest = await mine.manifest(backup_id, "vol_1", "")
    content = bytearray(manifest.size_bytes)
    async for at, data in mine.content(manifest):
        content[at : at + len(data)] = data
    return bytes(content)


def chunks(objects: MemoryObjects) -> list[str]:
    return [path for path in objects.kept if "/chunks/" in path]


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"", b"a", b"b", os.urandom(64)]), max_size=6), st.integers(0, CHUNK_BYTES - 1))
def test_what_was_backed_up_is_what_comes_back(beginnings: list[bytes], tail: int) -> None:
    async def there_and_back() -> None:
        objects, source = MemoryObjects(), Disk(disk(*beginnings).content + b"\x01" * tail)
        await take(objects, source)
        assert await restored(objects) == source.content

    asyncio.run(there_and_back())


async def test_zeros_are_not_stored_and_holes_are_not_read() -> None:
    objects, source = MemoryObjects(), disk(b"a", b"", b"", b"b", b"")
    source.runs = [(0, 10), (2 * CHUNK_BYTES + 5, 3 * CHUNK_BYTES + 9)]
    await take(objects, source)
    assert sorted(source.read_at) == [0, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES]
    assert len(chunks(objects)) == 2
    assert await restored(objects) == source.content


async def test_runs_that_share_a_chunk_have_it_stored_once() -> None:
    objects, source = MemoryObjects(), disk(b"ab")
    source.runs = [(0, 1), (1, 2), (CHUNK_BYTES - 1, CHUNK_BYTES)]
    await take(objects, source)
    assert source.read_at == [0]
    assert await restored(objects) == source.content


async def test_an_incremental_one_sends_only_what_is_new() -> None:
    objects = MemoryObjects()
    await take(objects, disk(b"a", b"b", b"c"))
    objects.puts.clear()
    second = replace(ORDER, backup_id="bak_2", parent_id="bak_1")
    taken = await take(objects, disk(b"a", b"B", b"c", b"b"), second)
    assert len([path for path in objects.puts if "/chunks/" in path]) == 1
    assert taken.stored_bytes < 2000
    assert await restored(objects, "bak_2") == disk(b"a", b"B", b"c", b"b").content
    assert await restored(objects, "bak_1") == disk(b"a", b"b", b"c").content


async def test_nothing_that_was_backed_up_can_be_read_in_the_store() -> None:
    objects = MemoryObjects()
    await take(objects, disk(b"the canary sings", b"the canary sings"))
    stored = b"".join(objects.kept.values()) + "".join(objects.kept).encode()
    assert b"canary" not in stored
    assert b"vol_1" not in stored


async def test_equal_data_of_two_projects_is_stored_twice_under_other_names() -> None:
    objects, source = MemoryObjects(), disk(b"the same")
    await repository(objects, bytes(32), "prj_1").take(ORDER, source, nobody, wanted)
    other = replace(ORDER, project_id="prj_2")
    await repository(objects, bytes(31) + b"\1", "prj_2").take(other, source, nobody, wanted)
    first, second = (path.rpartition("/")[2] for path in sorted(chunks(objects)))
    assert first != second


@pytest.mark.parametrize("sent", range(6))
async def test_one_that_was_broken_off_anywhere_sends_the_rest_only(sent: int) -> None:
    objects, source = MemoryObjects(), disk(b"a", b"b", b"c", b"d", b"e")

    class Breaking(MemoryObjects):
        async def put(self, path: str, data: bytes) -> None:
            if len(objects.kept) == sent:
                raise UnavailableError("objects-unavailable", "the cable was pulled")
            await objects.put(path, data)

    with pytest.raises(UnavailableError):
        await take(Breaking(), source)
    assert not [path for path in objects.kept if "/backups/" in path], "half a backup is none"
    objects.puts.clear()
    await take(objects, source)
    assert len(objects.puts) == 6 - sent
    assert await restored(objects) == source.content


async def test_one_that_is_there_is_left_alone() -> None:
    objects = MemoryObjects()
    first = await take(objects, disk(b"a"))
    again = await take(objects, disk(b"something else"))
    assert again.digest == first.digest
    assert await restored(objects) == disk(b"a").content


async def test_a_parent_whose_chunks_are_gone_is_not_relied_on() -> None:
    objects = MemoryObjects()
    await take(objects, disk(b"a", b"b"))
    for path in chunks(objects):
        await objects.delete(path)
    await take(objects, disk(b"a", b"b"), replace(ORDER, backup_id="bak_2", parent_id="bak_1"))
    assert await restored(objects, "bak_2") == disk(b"a", b"b").content


async def test_after_damage_what_is_there_is_read_back_before_it_is_relied_on() -> None:
    objects = MemoryObjects()
    await take(objects, disk(b"a", b"b"))
    for path in chunks(objects):
        objects.kept[path] = b"\x01" + os.urandom(60)
    await take(objects, disk(b"a", b"b"), replace(ORDER, backup_id="bak_2", parent_id="bak_1", distrust=True))
    assert await restored(objects, "bak_2") == disk(b"a", b"b").content


@pytest.mark.parametrize("harm", ["missing", "not what they were"])
async def test_a_chunk_that_cannot_be_had_is_found_and_named(harm: str) -> None:
    objects = MemoryObjects()
    before = set(chunks(objects))
    await take(objects, disk(b"a"), replace(ORDER, backup_id="bak_0"))
    known = set(chunks(objects))
    await take(objects, disk(b"a", b"", b"c"))
    (path,) = set(chunks(objects)) - known - before
    if harm == "missing":
        del objects.kept[path]
    else:
        objects.kept[path] = objects.kept[path][:-1] + bytes([objects.kept[path][-1] ^ 1])
    mine = repository(objects)
    manifest = await mine.manifest("bak_1", "vol_1", "")
    told = await mine.check(manifest, nobody)
    assert f"the backup bak_1 is damaged: bytes {2 * CHUNK_BYTES} to {3 * CHUNK_BYTES - 1} of the volume vol_1" in told
    assert path.rpartition("/")[2] in told
    assert harm in told
    with pytest.raises(ConflictError) as caught:
        await restored(objects)
    assert (caught.value.code, caught.value.message) == ("backup-damaged", told)
    assert not await mine.check(await mine.manifest("bak_0", "vol_1", ""), nobody)


async def test_more_damage_is_counted() -> None:
    objects = MemoryObjects()
    await take(objects, disk(b"a", b"b", b"c"))
    for path in chunks(objects):
        del objects.kept[path]
    mine = repository(objects)
    assert (await mine.check(await mine.manifest("bak_1", "vol_1", ""), nobody)).endswith("; and 2 more")


async def test_a_manifest_that_is_missing_changed_or_another_is_named() -> None:
    objects, mine = MemoryObjects(), repository(MemoryObjects())
    with pytest.raises(ConflictError, match="bak_1 of the volume vol_1 is damaged: its manifest is missing"):
        await mine.manifest("bak_1", "vol_1", "")
    taken = await take(objects, disk(b"a"))
    await take(objects, disk(b"a"), replace(ORDER, backup_id="bak_2"))
    assert (await repository(objects).manifest("bak_1", "vol_1", taken.digest)).backup_id == "bak_1"
    objects.kept["prj_1/backups/bak_1"] = objects.kept["prj_1/backups/bak_2"]
    for digest in ("", taken.digest):
        with pytest.raises(ConflictError, match="is damaged: its manifest is not"):
            await repository(objects).manifest("bak_1", "vol_1", digest)


async def test_a_store_that_does_not_answer_is_no_damage() -> None:
    objects = MemoryObjects()
    await take(objects, disk(b"a"))
    mine = repository(objects)
    manifest = await mine.manifest("bak_1", "vol_1", "")
    objects.fails_with = UnavailableError("objects-unavailable", "away")
    with pytest.raises(UnavailableError):
        await mine.check(manifest, nobody)


async def test_a_snapshot_that_cannot_be_read_whole_is_not_stored_as_if_it_were() -> None:
    source = disk(b"a", b"b")

    class Short(Disk):
        async def read(self, offset: int, size: int) -> bytes:
            return (await super().read(offset, size))[:-1]

    with pytest.raises(UnavailableError):
        await take(MemoryObjects(), Short(source.content))
