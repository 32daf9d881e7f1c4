"""Snapshots as files: what has content is kept and verified, what has none is not, and nothing counts before its time."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.errors import CapacityError, HostError, InvalidSpecError
from plasmavmc.snapshots import content, files, manifest
from plasmavmc.snapshots.content import BLOCK, PIECE, copy_in, copy_out, digest, new_memory, pieces_of, seal
from plasmavmc.snapshots.files import Draft, SnapshotStore
from plasmavmc.snapshots.manifest import VERSION, Manifest, Piece
from plasmavmc.types import MIB, vm_key

KEY = vm_key("vm_one")
SIZE = 16 * MIB


def a_manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "version": VERSION,
        "vm_id": "vm_one",
        "image": "sha256:" + "0" * 64,
        "backend": "memory",
        "memory_bytes": SIZE,
        "generation": 0,
        "created": 1.0,
        "traits": {"program": "p"},
        "state": (),
        "memory": (),
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


def nothing_in(directory: Path) -> bool:
    return not any(directory.iterdir())


@contextmanager
def memory() -> Iterator[int]:
    descriptor = new_memory(SIZE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def whole(descriptor: int) -> bytes:
    return os.pread(descriptor, SIZE, 0)


async def test_memory_comes_back_as_it_was_and_only_what_has_content_is_kept(tmp_path: Path) -> None:
    with memory() as source, memory() as restored, (tmp_path / "memory").open("w+b") as file:
        for at in (0, 5 * MIB - 7, 9 * MIB, SIZE - 1):
            os.pwrite(source, b"content", at) if at < SIZE - 7 else os.pwrite(source, b"e", at)
        os.pwrite(source, bytes(3 * MIB), 11 * MIB)
        pieces = await copy_out(source, file.fileno())
        assert sum(piece.length for piece in pieces) <= 5 * BLOCK
        assert os.fstat(file.fileno()).st_blocks * 512 <= 6 * BLOCK
        assert os.fstat(file.fileno()).st_size == SIZE
        await copy_in(file.fileno(), pieces, restored)
        assert whole(restored) == whole(source)


async def test_a_memory_in_very_many_runs_is_kept_in_few_pieces_and_the_event_loop_counts_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeking: set[threading.Thread] = set()
    seek = os.lseek

    def seen(descriptor: int, at: int, whence: int) -> int:
        seeking.add(threading.current_thread())
        return seek(descriptor, at, whence)

    with memory() as source, memory() as kept, memory() as restored:
        for at in range(0, SIZE, 2 * mmap.PAGESIZE):
            os.pwrite(source, b"x", at)
        monkeypatch.setattr(os, "lseek", seen)
        pieces = await copy_out(source, kept)
        assert await pieces_of(source) == pieces
        monkeypatch.undo()
        assert len(pieces) == SIZE // PIECE
        assert threading.main_thread() not in seeking
        await copy_in(kept, pieces, restored)
        assert whole(restored) == whole(source)


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=3 * BLOCK)), max_size=8))
def test_any_memory_comes_back(writes: list[tuple[int, bytes]]) -> None:
    async def there_and_back() -> None:
        with memory() as source, memory() as kept, memory() as restored:
            for at, data in writes:
                os.pwrite(source, data[: SIZE - at], at)
            await copy_in(kept, await copy_out(source, kept), restored)
            assert whole(restored) == whole(source)

    asyncio.run(there_and_back())


async def test_every_bit_of_every_piece_counts(tmp_path: Path) -> None:
    with memory() as source, memory() as restored, (tmp_path / "memory").open("w+b") as file:
        os.pwrite(source, os.urandom(5 * MIB), MIB)
        pieces = await copy_out(source, file.fileno())
        for piece in pieces:
            for at in (piece.offset, piece.offset + piece.length - 1):
                byte = os.pread(file.fileno(), 1, at)
                os.pwrite(file.fileno(), bytes([byte[0] ^ 0x80]), at)
                with pytest.raises(HostError) as refused:
                    await copy_in(file.fileno(), pieces, restored)
                assert refused.value.code == "snapshot-damaged"
                os.pwrite(file.fileno(), byte, at)
        await copy_in(file.fileno(), pieces, restored)


async def test_a_file_that_is_cut_short_is_damaged(tmp_path: Path) -> None:
    with memory() as restored, (tmp_path / "state").open("w+b") as file:
        file.write(os.urandom(3 * PIECE + 5))
        file.flush()
        pieces = await digest(file.fileno())
        assert [piece.length for piece in pieces] == [PIECE, PIECE, PIECE, 5]
        file.truncate(3 * PIECE + 4)
        with pytest.raises(HostError, match="damaged"):
            await copy_in(file.fileno(), pieces, restored)


async def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    with memory() as source:
        os.pwrite(source, b"x", 0)
        full = os.open("/dev/full", os.O_WRONLY)
        try:
            with pytest.raises(CapacityError) as failed:
                await content._each([0], lambda _: os.write(full, b"x") and [])  # type: ignore[return-value]
        finally:
            os.close(full)
    assert failed.value.code == "disk-full"


async def test_a_disk_that_gives_less_than_was_asked_for_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pread
    with memory() as source, (tmp_path / "kept").open("w+b") as kept, (tmp_path / "disk").open("w+b") as disk:
        for file in (source, disk.fileno()):
            os.pwrite(file, os.urandom(3 * MIB), MIB)
        monkeypatch.setattr(os, "pread", lambda file, size, at: whole(file, min(size, BLOCK), at))
        assert sum(piece.length for piece in await copy_out(source, kept.fileno())) == 3 * MIB
        assert sum(piece.length for piece in await pieces_of(disk.fileno())) == 3 * MIB
        assert sum(piece.length for piece in await digest(disk.fileno())) == 4 * MIB
        monkeypatch.undo()
        assert whole(kept.fileno(), SIZE, 0) == whole(source, SIZE, 0)


async def test_a_file_that_shrinks_while_it_is_read_is_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "state").open("w+b") as file:
        file.write(os.urandom(MIB))
        file.flush()
        monkeypatch.setattr(os, "pread", lambda *_: b"")
        with pytest.raises(HostError, match="shrank"):
            await digest(file.fileno())


async def test_threads_have_ended_when_a_copy_is_given_up() -> None:
    working = 0

    def slow(_part: int) -> list[Piece]:
        nonlocal working
        working += 1
        try:
            os.sched_yield()
            return []
        finally:
            working -= 1

    copying = asyncio.create_task(content._each(range(200_000), slow))
    await asyncio.sleep(0.02)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert working == 0


def test_memory_for_a_guest_cannot_change_its_size() -> None:
    with memory() as descriptor:
        for size in (SIZE - 4096, SIZE + 4096):
            with pytest.raises(OSError) as refused:  # noqa: PT011 - the number follows
                os.ftruncate(descriptor, size)
            assert refused.value.errno == errno.EPERM


def test_a_manifest_is_read_as_it_was_written() -> None:
    written = a_manifest(memory=(Piece(0, 1, "a" * 64),), state=(Piece(4, 5, "b" * 64),))
    assert manifest.decode(manifest.encode(written)) == written
    assert manifest.decode(manifest.encode(a_manifest(memory=None))).memory is None


def test_a_manifest_of_another_version_is_told_as_such() -> None:
    with pytest.raises(HostError) as refused:
        manifest.decode(manifest.encode(a_manifest(version=VERSION + 1)))
    assert refused.value.code == "snapshot-version"


@given(st.binary(max_size=300))
def test_bytes_that_are_no_manifest_are_damage(raw: bytes) -> None:
    with pytest.raises(HostError) as refused:
        manifest.decode(raw)
    assert refused.value.code == "snapshot-damaged"


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_byte_of_a_manifest_can_change(at: int, change: int) -> None:
    raw = bytearray(manifest.encode(a_manifest(memory=tuple(Piece(n, n, "c" * 64) for n in range(3)))))
    raw[at % len(raw)] ^= change
    with pytest.raises(HostError):
        manifest.decode(bytes(raw))


async def test_a_snapshot_counts_when_it_is_committed_and_until_it_is_used(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    async with store.draft(KEY) as draft:
        os.write(draft.state, b"state")
        assert not store.has(KEY)
        await store.commit(draft, a_manifest())
    assert store.has(KEY)
    assert store.keys() == {KEY}
    with store.open(KEY) as stored:
        assert os.pread(stored.state, 5, 0) == b"state"
        await store.use(KEY)
    assert not store.has(KEY)
    assert SnapshotStore(tmp_path).keys() == frozenset()
    assert nothing_in(tmp_path)


async def test_a_draft_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    with pytest.raises(RuntimeError):
        async with store.draft(KEY):
            raise RuntimeError("given up")
    assert nothing_in(tmp_path)


async def test_who_is_cancelled_after_a_commit_is_not_so_before_its_draft_is_over(tmp_path: Path) -> None:
    store, heard = SnapshotStore(tmp_path), False

    async def work() -> None:
        nonlocal heard
        own = asyncio.current_task()
        assert own is not None
        async with store.draft(KEY) as draft:
            await store.commit(draft, a_manifest())
            own.cancel()
        heard = True

    await asyncio.wait({asyncio.create_task(work())})
    assert heard
    assert store.has(KEY)


async def test_a_large_draft_that_is_given_up_is_removed_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, removed, remove = SnapshotStore(tmp_path), [], shutil.rmtree

    def seen(path: Path, *, ignore_errors: bool) -> None:
        if path.exists():
            removed.append(threading.current_thread())
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", seen)
    with suppress(RuntimeError):
        async with store.draft(KEY):
            raise RuntimeError("given up")
    assert len(removed) == 1
    assert threading.main_thread() not in removed


async def test_a_snapshot_that_would_not_be_read_again_does_not_come_to_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SnapshotStore(tmp_path)
    pieces = tuple(Piece(number * BLOCK, BLOCK, "0" * 64) for number in range(100))
    monkeypatch.setattr(files, "_MOST_MANIFEST", len(manifest.encode(a_manifest(memory=pieces))))
    async with store.draft(KEY) as draft:
        await store.commit(draft, a_manifest(memory=pieces))
    with store.open(KEY) as stored:
        assert stored.manifest.memory == pieces
    await store.delete(KEY)
    with pytest.raises(HostError) as refused:
        async with store.draft(KEY) as draft:
            await store.commit(draft, a_manifest(memory=(*pieces, Piece(SIZE - BLOCK, BLOCK, "0" * 64))))
    assert refused.value.code == "snapshot-large"
    assert not store.has(KEY)


async def test_a_commit_that_was_cancelled_too_late_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, entered, go = SnapshotStore(tmp_path), asyncio.Event(), asyncio.Event()
    commit, loop = store._commit, asyncio.get_running_loop()

    def slowly(draft: Draft, found: Manifest) -> None:
        commit(draft, found)
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()

    monkeypatch.setattr(store, "_commit", slowly)
    async with store.draft(KEY) as draft:
        committing = asyncio.create_task(store.commit(draft, a_manifest()))
        await entered.wait()
        committing.cancel()
        await asyncio.sleep(0)
        go.set()
        await committing
    assert store.has(KEY)


async def test_a_directory_that_is_no_key_is_refused(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    for name in ("..", "a/b", "", "UPPERCASE222"):
        with pytest.raises(InvalidSpecError):
            store.has(name)
        with pytest.raises(InvalidSpecError):
            await store.delete(name)


async def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    async with store.draft(KEY) as draft:
        await store.commit(draft, a_manifest(memory=None))
    place = tmp_path / "snapshots" / KEY / "state"
    place.unlink()
    place.symlink_to("/etc/passwd")
    with pytest.raises(HostError) as refused, store.open(KEY):
        pass
    assert refused.value.code == "snapshot-error"


def test_a_sealed_memory_is_for_private_use_only() -> None:
    memory = new_memory(SIZE)
    try:
        os.pwrite(memory, b"template", 0)
        seal(memory)
        for attempt in (lambda: os.pwrite(memory, b"other", 0), lambda: mmap.mmap(memory, SIZE)):
            with pytest.raises(PermissionError):
                attempt()
        with mmap.mmap(memory, SIZE, flags=mmap.MAP_PRIVATE) as own:
            own[:5] = b"other"
        assert os.pread(memory, 8, 0) == b"template"
    finally:
        os.close(memory)
