"""The blob store: what is in it is whole, what is half is not in it, and what is needed stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from plasmavmc.errors import CapacityError, ImageError, UnavailableError
from plasmavmc.images.blobs import Asker, BlobStore
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.pull import pull
from plasmavmc.images.source import BlobRef
from tests.contract.images_samples import MemorySource, digest_of, entry, hello, image, layer, with_layer_blob

DATA = os.urandom(300_000)
REF = BlobRef(digest_of(DATA), len(DATA))


class BreakingSource(MemorySource):
    """Breaks every connection after so many bytes."""

    def __init__(self, data: bytes, bytes_per_connection: int) -> None:
        super().__init__()
        self.blobs = {digest_of(data): data}
        self._count = bytes_per_connection

    async def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
        self.asked.append((ref.digest, offset))
        data = self.blobs[ref.digest]
        yield data[offset : offset + self._count]
        if offset + self._count < len(data):
            raise UnavailableError("registry-unreachable", "cut")


def files_of(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path, grace_s=0)


async def read(store: BlobStore, ref: BlobRef, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in store.blob(ref, offset)])


async def test_a_blob_comes_out_as_it_went_in(store: BlobStore) -> None:
    assert await store.put(DATA) == REF.digest
    assert store.has(REF.digest)
    assert await read(store, REF) == DATA
    assert await read(store, REF, 299_990) == DATA[-10:]
    assert store.local_path(REF) == store.path(REF.digest)


async def test_an_unknown_blob_is_told(store: BlobStore) -> None:
    with pytest.raises(ImageError) as caught:
        await store.manifest(REF.digest)
    assert caught.value.code == "image-not-found"
    assert store.local_path(REF) is None


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "md5:00", "sha256:" + "A" * 64, ""])
async def test_only_digests_become_paths(store: BlobStore, digest: str) -> None:
    with pytest.raises(ImageError, match="not a sha256 digest"):
        store.path(digest)


async def test_a_fetch_goes_on_where_the_last_one_broke(tmp_path: Path) -> None:
    source = BreakingSource(DATA, 100_000)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await BlobStore(tmp_path).fetch(REF, source)
    await BlobStore(tmp_path).fetch(REF, source)
    assert [offset for _, offset in source.asked] == [0, 100_000, 200_000]
    assert await read(BlobStore(tmp_path), REF) == DATA


async def test_a_fetch_that_was_cancelled_is_resumed(store: BlobStore) -> None:
    class Stalling(MemorySource):
        async def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
            self.asked.append((ref.digest, offset))
            yield DATA[offset : offset + 100_000]
            if offset < 200_000:
                stalled.set()
                await asyncio.Event().wait()

    stalled, source = asyncio.Event(), Stalling()
    for _ in range(2):
        stalled.clear()
        task = asyncio.create_task(store.fetch(REF, source))
        await stalled.wait()
        task.cancel()
        await asyncio.wait({task})
    await store.fetch(REF, source)
    assert [offset for _, offset in source.asked] == [0, 100_000, 200_000]


async def test_a_blob_that_is_here_is_not_asked_for(store: BlobStore) -> None:
    await store.put(DATA)
    source = MemorySource()
    await store.fetch(REF, source)
    assert source.asked == []


async def test_concurrent_fetches_of_one_blob_are_one(store: BlobStore) -> None:
    source = BreakingSource(DATA, len(DATA))
    await asyncio.gather(*(store.fetch(REF, source) for _ in range(5)))
    assert len(source.asked) == 1


@pytest.mark.parametrize("wrong", [DATA[:-1] + bytes([DATA[-1] ^ 1]), DATA[:-1], DATA + b"x", b""])
async def test_a_corrupt_blob_leaves_nothing(store: BlobStore, tmp_path: Path, wrong: bytes) -> None:
    source = MemorySource()
    source.blobs = {REF.digest: wrong}
    with pytest.raises(ImageError) as caught:
        await store.fetch(REF, source)
    assert caught.value.code == "digest-mismatch"
    assert files_of(tmp_path) == []


async def test_a_partial_file_that_rotted_is_not_believed(store: BlobStore, tmp_path: Path) -> None:
    source = BreakingSource(DATA, 100_000)
    with pytest.raises(UnavailableError):
        await store.fetch(REF, source)
    next((tmp_path / "partial").iterdir()).write_bytes(b"z" * 500_000)
    good = BreakingSource(DATA, len(DATA))
    await store.fetch(REF, good)
    assert good.asked[-1] == (REF.digest, 0)
    assert await read(store, REF) == DATA


async def test_more_than_the_blob_in_a_partial_file_is_cut_off(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "partial" / REF.digest.removeprefix("sha256:")).write_bytes(DATA + b"more")
    await store.fetch(REF, BreakingSource(DATA, len(DATA)))
    assert store.path(REF.digest).read_bytes() == DATA


async def test_a_blob_larger_than_the_disk_is_refused_before_it_comes(store: BlobStore, tmp_path: Path) -> None:
    source = MemorySource()
    with pytest.raises(CapacityError) as caught:
        await store.fetch(BlobRef(REF.digest, 1 << 60), source)
    assert caught.value.code == "disk-full"
    assert source.asked == []
    assert files_of(tmp_path) == []


async def test_a_manifest_in_the_store_means_a_whole_image(store: BlobStore) -> None:
    sample = hello()
    broken = with_layer_blob(sample, 1, b"other")
    with pytest.raises(ImageError):
        await pull(sample.digest, MemorySource(broken), store, ImageLimits())
    assert not store.has_image(sample.digest)
    manifest = await pull(sample.digest, MemorySource(sample), store, ImageLimits())
    assert manifest.digest == sample.digest
    assert store.has_image(sample.digest)


async def test_an_image_without_one_of_its_layers_is_not_whole(store: BlobStore) -> None:
    sample = hello()
    await pull(sample.digest, MemorySource(sample), store, ImageLimits())
    await store.remove([digest_of(sample.layers[0])])
    assert not store.has_image(sample.digest)


async def test_an_image_of_more_bytes_than_the_limit_is_not_fetched(store: BlobStore) -> None:
    source = MemorySource(hello())
    with pytest.raises(ImageError) as caught:
        await pull(hello().digest, source, store, ImageLimits(packed_bytes=10))
    assert caught.value.code == "image-too-large"
    assert source.asked == []


async def test_collecting_keeps_shared_blobs_and_removes_the_rest(store: BlobStore) -> None:
    base = layer(entry("base", b"shared"))
    one, two = image(base, layer(entry("one", b"1"))), image(base, layer(entry("two", b"2")))
    for sample in (one, two):
        await pull(sample.digest, MemorySource(sample), store, ImageLimits())
    gone = set(two.blobs) - set(one.blobs)
    assert await store.collect(frozenset({one.digest})) == sum(len(two.blobs[digest]) for digest in gone)
    assert store.has_image(one.digest)
    assert not any(store.has(digest) for digest in gone)


async def test_collecting_spares_what_is_being_fetched(store: BlobStore) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Waiting(MemorySource):
        async def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
            yield DATA[:1000]
            begun.set()
            await go_on.wait()
            yield DATA[1000:]

    task = asyncio.create_task(store.fetch(REF, Waiting()))
    await begun.wait()
    assert await store.collect(frozenset()) == 0
    go_on.set()
    await task
    assert store.has(REF.digest)


async def test_collecting_spares_what_came_within_the_grace_period(tmp_path: Path) -> None:
    now = 1_000_000.0
    store = BlobStore(tmp_path, grace_s=60, clock=lambda: now)
    await store.put(DATA)
    now = 1_000_000.0 + os.stat(store.path(REF.digest)).st_mtime  # noqa: PTH116
    await store.put(DATA)
    assert await store.collect(frozenset()) == 0
    now += 61
    assert await store.collect(frozenset()) == len(DATA)


async def test_a_sweep_empties_the_spool_only(store: BlobStore) -> None:
    await store.put(DATA)
    (store.spool / "left").write_bytes(b"x")
    store.sweep()
    assert list(store.spool.iterdir()) == []
    assert store.has(REF.digest)


OURS, THEIRS = Asker("acme/web", frozenset({REF.digest})), Asker("other/shop")


class TestWhoAsks:
    """A digest is known to many: in the store lies what is not everybody's."""

    async def test_what_he_has_is_not_asked_for(self, store: BlobStore) -> None:
        await store.put(DATA)
        source = MemorySource()
        await store.fetch(REF, source, OURS)
        assert source.asked == []

    async def test_what_he_is_not_known_to_have_comes_from_his_source(self, store: BlobStore, tmp_path: Path) -> None:
        await store.put(DATA)
        with pytest.raises(KeyError):
            await store.fetch(REF, MemorySource(), THEIRS)
        source = BreakingSource(DATA, len(DATA))
        await store.fetch(REF, source, THEIRS)
        assert source.asked == [(REF.digest, 0)]
        assert files_of(tmp_path) == [store.path(REF.digest)], "and it is stored once"

    @pytest.mark.parametrize("guess", [b"", DATA[:-1], DATA[:-1] + bytes([DATA[-1] ^ 1]), DATA + b"x"])
    async def test_a_guess_opens_nothing_and_leaves_what_is_here(self, store: BlobStore, guess: bytes) -> None:
        await store.put(DATA)
        source = MemorySource()
        source.blobs = {REF.digest: guess}
        with pytest.raises(ImageError) as caught:
            await store.fetch(REF, source, THEIRS)
        assert caught.value.code == "digest-mismatch"
        assert digest_of(guess) not in str(caught.value)
        assert await read(store, REF) == DATA

    async def test_what_came_for_another_is_not_gone_on_with(self, store: BlobStore) -> None:
        with pytest.raises(UnavailableError):
            await store.fetch(REF, BreakingSource(DATA, len(DATA) - 1), Asker("acme/web"))
        rest = BreakingSource(DATA, len(DATA))
        await store.fetch(REF, rest, THEIRS)
        assert rest.asked == [(REF.digest, 0)]

    async def test_what_came_for_himself_is(self, store: BlobStore) -> None:
        source = BreakingSource(DATA, 200_000)
        with pytest.raises(UnavailableError):
            await store.fetch(REF, source, THEIRS)
        await store.fetch(REF, source, THEIRS)
        assert [offset for _, offset in source.asked] == [0, 200_000]

    async def test_what_came_whole_for_him_does_not_come_again_when_another_blob_broke_off(
        self, store: BlobStore
    ) -> None:
        source = BreakingSource(DATA, len(DATA))
        for _ in range(2):
            await store.fetch(REF, source, THEIRS)
        assert source.asked == [(REF.digest, 0)]
        await store.fetch(REF, source, Asker("acme/web"))
        assert source.asked == [(REF.digest, 0)] * 2

    async def test_nobody_waits_for_anothers_source(self, store: BlobStore) -> None:
        begun = asyncio.Event()

        class Stalling(MemorySource):
            async def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
                begun.set()
                yield DATA[:1]
                await asyncio.Event().wait()

        stalled = asyncio.create_task(store.fetch(REF, Stalling(), THEIRS))
        await begun.wait()
        async with asyncio.timeout(10):
            await store.fetch(REF, BreakingSource(DATA, len(DATA)), Asker("acme/web"))
        assert await store.collect(frozenset()) == len(DATA), "what comes for him is spared"
        stalled.cancel()
        await asyncio.wait({stalled})

    async def test_an_image_that_names_one_blob_often_asks_for_it_once(self, store: BlobStore) -> None:
        sample = image(*[layer(entry("a", b"x"))] * 20)
        source = MemorySource(sample)
        await pull(sample.digest, source, store, ImageLimits(), THEIRS)
        assert len(source.asked) == 2
        assert await store.parts([sample.digest, "sha256:" + "0" * 64]) == set(sample.blobs)

    async def test_what_broke_off_goes_though_the_blob_is_needed(self, store: BlobStore, tmp_path: Path) -> None:
        sample = image(layer(entry("a", os.urandom(50_000))), compress="none")
        await pull(sample.digest, MemorySource(sample), store, ImageLimits())
        ref = BlobRef(digest_of(sample.layers[0]), len(sample.layers[0]))
        with pytest.raises(UnavailableError):
            await store.fetch(ref, BreakingSource(sample.layers[0], 1000), THEIRS)
        assert await store.collect(frozenset({sample.digest})) == 1000
        assert store.has_image(sample.digest)
        assert list((tmp_path / "partial").iterdir()) == []


class TestSizes:
    async def test_a_size_that_is_not_the_blobs_own_is_refused(self, store: BlobStore) -> None:
        await store.put(DATA)
        for size in (len(DATA) - 1, len(DATA) + 1, 0):
            lying = BlobRef(REF.digest, size)
            assert store.local_path(lying) is None
            with pytest.raises(ImageError) as caught:
                await store.fetch(lying, BreakingSource(DATA, len(DATA)))
            assert caught.value.code == "digest-mismatch"
        assert await read(store, REF) == DATA

    async def test_a_blob_that_the_disk_cut_off_comes_again(self, store: BlobStore) -> None:
        await store.put(DATA)
        store.path(REF.digest).write_bytes(DATA[:1000])
        await store.fetch(REF, BreakingSource(DATA, len(DATA)))
        assert await read(store, REF) == DATA


async def test_a_file_that_goes_while_it_is_collected_is_nobodys_error(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put(DATA)
    gone = store.path("sha256:" + "0" * 64)
    listed = (gone, store.path(REF.digest))
    monkeypatch.setattr(store, "_all_files", lambda: listed)
    assert await store.collect(frozenset()) == len(DATA)


async def test_a_disk_that_comes_to_its_reserve_while_a_blob_comes_takes_no_more_of_it(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twentieth of the disk is others'. Room is looked for before the blob, and again with each piece."""

    def disk(free: int) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 1_000_000, free, free, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", lambda _: disk(51_000))
    monkeypatch.setattr(os, "fstatvfs", lambda _: disk(49_000))
    with pytest.raises(CapacityError) as caught:
        await store.fetch(REF, BreakingSource(DATA, len(DATA)))
    assert caught.value.code == "disk-full"
    assert files_of(tmp_path) == []


@pytest.mark.parametrize(("gib", "kept_mib"), [(1, 64), (100, 5 * 1024), (10_000, 10 * 1024)])
async def test_a_share_of_the_disk_is_left_to_others(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, gib: int, kept_mib: int
) -> None:
    for more_mib, fits in ((0, False), (1, True)):
        pages = (kept_mib + more_mib) * 256
        disk = os.statvfs_result((4096, 4096, gib << 18, pages, pages, 0, 0, 0, 0, 255))
        for name in ("statvfs", "fstatvfs"):
            monkeypatch.setattr(os, name, lambda _, disk=disk: disk)
        with nullcontext() if fits else pytest.raises(CapacityError):
            await store.fetch(REF, BreakingSource(DATA, len(DATA)))
