"""From layers to a mounted root file system, compared with what umoci unpacks; and the store of built images."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plasmavmc.errors import CapacityError, ConflictError, ImageError, PlasmaError, UnavailableError
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.pull import pull
from plasmavmc.images.source import BlobRef
from plasmavmc.images.store import BuiltImage, ImageStore
from plasmavmc.server.upkeep import keep_within
from plasmavmc.types import MIB
from tests.contract.images_samples import (
    MemorySource,
    Sample,
    digest_of,
    directory,
    entry,
    hard_link,
    hello,
    image,
    layer,
    symlink,
    with_layer_blob,
)
from tests.contract.registry_server import run, write_layout

pytestmark = pytest.mark.real

CAPABILITY = "\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"


@contextmanager
def mounted(built: BuiltImage, place: Path) -> Iterator[Path]:
    """The root file system as the kernel reads it."""
    place.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", str(built.rootfs), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """All that an image can say about its files; hard links as the set of names of one inode."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, set[str]] = {}
    for path in root.rglob("*"):
        info, name = path.lstat(), str(path.relative_to(root))
        if not stat.S_ISDIR(info.st_mode):
            names.setdefault(info.st_ino, set()).add(name)
        attributes = attributes_of(path)
        content: object = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        owner, siblings = (info.st_uid, info.st_gid), names.get(info.st_ino, set())
        mode = stat.filemode(info.st_mode)
        found[name] = (mode, owner, info.st_rdev, int(info.st_mtime), attributes, content, siblings)
    return found


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def attributes_of(path: Path) -> dict[str, bytes]:
    """Extended attributes; a squashfs without any says that it cannot have them."""
    try:
        keys = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    return {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}


def unpacked(sample: Sample, place: Path) -> Path:
    layout = write_layout(place / "layout", sample)
    run("umoci", "unpack", "--image", f"{layout}:image", str(place / "bundle"))
    return place / "bundle" / "rootfs"


def rich() -> Sample:
    """Whatever layers can hold, over three of them."""
    attributes = {"SCHILY.xattr.security.capability": CAPABILITY, "SCHILY.xattr.user.note": "kept"}
    base = layer(
        directory("./", mode=0o755),
        directory("usr/bin/"),
        symlink("bin", "usr/bin"),
        entry("usr/bin/su", b"setuid", mode=0o4755),
        entry("usr/bin/ping", b"caps", mode=0o755, pax_headers=attributes),
        directory("dev/"),
        entry("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        entry("dev/sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o660, gid=6),
        entry("dev/fifo", type=tarfile.FIFOTYPE, mode=0o600),
        directory("data/", mode=0o1777, uid=1000),
        entry("data/one", os.urandom(300_000), uid=1000, gid=4_000_000_000, mtime=1_600_000_000),
        hard_link("data/two", "data/one"),
        hard_link("data/three", "data/one"),
        entry("data/gone", b"gone"),
        directory("opaque/"),
        entry("opaque/old", b"old"),
        entry("big", bytes(3_000_000)),
        entry("n" * 200 + "/" + "m" * 200, b"long"),
        directory("n" * 200 + "/"),
    )
    middle = layer(
        directory("data/", mode=0o1777, uid=1000),
        entry("data/.wh.gone"),
        entry("data/one", b"replaced"),
        directory("opaque/", mode=0o700),
        entry("opaque/.wh..wh..opq"),
        entry("opaque/new", b"new"),
        directory("usr/"),
        directory("usr/bin/", mtime=1_650_000_000),
        entry("usr/bin/new", b"new", mode=0o755),
    )
    top = layer(
        entry("opaque/.wh.new"),
        directory("opaque/", mode=0o700),
        directory("data/", mode=0o700),
        hard_link("data/four", "data/two"),
        entry("data/one", b"again"),
        entry("dev/.wh.sda"),
        directory("dev/"),
    )
    return image(base, middle, top)


def of_this_host() -> Sample:
    """Two layers of real files: a part of this host's tree, then a changed part of it."""
    below = subprocess.run(
        ["tar", "-C", "/", "--format=pax", "--sort=name", "-c", "etc", "usr/sbin"], check=False, capture_output=True
    )
    above = layer(
        directory("etc/"), entry("etc/.wh.passwd"), entry("etc/hostname", b"changed\n"), entry("usr/.wh.sbin")
    )
    return image(below.stdout, above)


class TestAgainstUmoci:
    @pytest.mark.parametrize("sample", [rich, of_this_host, hello], ids=lambda make: make.__name__)
    async def test_the_kernel_sees_what_umoci_unpacks(self, sample: object, tmp_path: Path) -> None:
        made: Sample = sample()  # type: ignore[operator]
        expected = listing(unpacked(made, tmp_path))
        built = await ImageStore(tmp_path / "store").ensure(made.digest, MemorySource(made))
        with mounted(built, tmp_path / "mnt") as root:
            found = listing(root)
        assert found == without_times(expected, {name for name, facts in found.items() if facts[3] == 0})


def without_times(facts: dict[str, tuple[object, ...]], names: set[str]) -> dict[str, tuple[object, ...]]:
    """The facts with time 0 for directories that no layer has an entry for: umoci gives them the present."""
    return {name: (*fact[:3], 0, *fact[4:]) if name in names else fact for name, fact in facts.items()}


class TestTheStore:
    @pytest.fixture
    def store(self, tmp_path: Path) -> ImageStore:
        return ImageStore(tmp_path / "store")

    async def test_an_image_is_built_once(self, store: ImageStore) -> None:
        source, said = MemorySource(hello()), list[str]()
        first = await store.ensure(hello().digest, source, progress=said.append)
        asked = len(source.asked)
        assert await store.ensure(hello().digest, source) == first
        assert len(source.asked) == asked
        assert (first.config.entrypoint, first.size_bytes) == (("/bin/hello",), first.rootfs.stat().st_size)
        assert said[0] == "fetching the manifest"
        assert said[-1] == "building the root file system"

    async def test_concurrent_calls_share_one_build(self, store: ImageStore) -> None:
        source = MemorySource(hello())
        built = await asyncio.gather(*(store.ensure(hello().digest, source) for _ in range(8)))
        assert len({image.rootfs for image in built}) == 1
        assert len(source.asked) == 3

    async def test_the_same_image_is_the_same_file_everywhere(self, store: ImageStore, tmp_path: Path) -> None:
        sample = rich()
        first = await store.ensure(sample.digest, MemorySource(sample))
        second = await ImageStore(tmp_path / "other").ensure(sample.digest, MemorySource(sample))
        assert first.rootfs.read_bytes() == second.rootfs.read_bytes()

    async def test_an_image_outlives_a_restart_without_its_source(self, store: ImageStore, tmp_path: Path) -> None:
        first = await store.ensure(hello().digest, MemorySource(hello()))
        again = ImageStore(tmp_path / "store")
        assert again.list() == (first,)
        assert await again.ensure(hello().digest, MemorySource()) == first

    async def test_layers_are_not_kept_beside_the_built_image(self, store: ImageStore, tmp_path: Path) -> None:
        await store.ensure(hello().digest, MemorySource(hello()))
        assert [path for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()] == []
        assert list((tmp_path / "store" / "building").iterdir()) == []

    async def test_blobs_on_this_host_are_read_in_place(self, store: ImageStore, tmp_path: Path) -> None:
        blobs = BlobStore(tmp_path / "blobs")
        await pull(hello().digest, MemorySource(hello()), blobs, ImageLimits())
        said: list[str] = []
        await store.ensure(hello().digest, blobs, progress=said.append)
        assert blobs.has_image(hello().digest)

    @pytest.mark.parametrize("number", [0, 1])
    async def test_a_corrupt_layer_leaves_nothing_and_can_be_tried_again(
        self, store: ImageStore, tmp_path: Path, number: int
    ) -> None:
        with pytest.raises(ImageError) as caught:
            await store.ensure(hello().digest, MemorySource(with_layer_blob(hello(), number, b"rotten")))
        assert caught.value.code == "digest-mismatch"
        assert (store.list(), list((tmp_path / "store" / "building").iterdir())) == ((), [])
        await store.ensure(hello().digest, MemorySource(hello()))

    async def test_a_hostile_layer_is_refused_with_its_name(self, store: ImageStore, tmp_path: Path) -> None:
        hostile = image(layer(entry("../../etc/cron.d/x", b"x")))
        with pytest.raises(ImageError) as caught:
            await store.ensure(hostile.digest, MemorySource(hostile))
        assert caught.value.code == "image-path"
        assert list((tmp_path / "store" / "building").iterdir()) == []

    async def test_layers_whose_diff_ids_lie_are_refused(self, store: ImageStore) -> None:
        good, other = layer(entry("a", b"x")), layer(entry("a", b"y"))
        lying = image(good, rootfs={"type": "layers", "diff_ids": [digest_of(other)]})
        with pytest.raises(ImageError) as caught:
            await store.ensure(lying.digest, MemorySource(lying))
        assert caught.value.code == "digest-mismatch"

    async def test_an_image_for_another_machine_is_refused_before_its_layers_come(self, store: ImageStore) -> None:
        sample = image(layer(entry("a", b"x")), architecture="riscv64")
        source = MemorySource(sample)
        with pytest.raises(ImageError) as caught:
            await store.ensure(sample.digest, source)
        assert caught.value.code == "image-platform"
        assert [digest for digest, _ in source.asked] == [digest_of(sample.config)]

    async def test_what_arrived_before_the_source_broke_is_not_fetched_again(self, store: ImageStore) -> None:
        below, above = (digest_of(data) for data in hello().layers)
        delivered = asyncio.Event()

        class Breaking(MemorySource):
            broken = True

            async def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
                if self.broken and ref.digest == above:
                    await delivered.wait()
                    raise UnavailableError("registry-unreachable", "gone")
                async for chunk in super().blob(ref, offset):
                    yield chunk
                if ref.digest == below:
                    delivered.set()

        source = Breaking(hello())
        with pytest.raises(UnavailableError):
            await store.ensure(hello().digest, source)
        source.broken = False
        await store.ensure(hello().digest, source)
        assert [offset for digest, offset in source.asked if digest == below] in ([0], [0, len(hello().layers[0])])

    async def test_a_build_that_is_cancelled_leaves_nothing(self, store: ImageStore, tmp_path: Path) -> None:
        sample = image(layer(*(entry(f"f{number}", os.urandom(MIB)) for number in range(40))), compress="none")
        building = asyncio.Event()

        def progress(step: str) -> None:
            if step.startswith("building"):
                building.set()

        task = asyncio.create_task(store.ensure(sample.digest, MemorySource(sample), progress=progress))
        await building.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert (store.list(), list((tmp_path / "store" / "building").iterdir())) == ((), [])

    async def test_the_event_loop_never_stalls_while_an_image_is_built(self, store: ImageStore) -> None:
        sample = image(layer(*(entry(f"f{number}", os.urandom(MIB)) for number in range(40))))
        source, longest, done = MemorySource(sample), 0.0, False

        async def measure() -> None:
            nonlocal longest
            loop = asyncio.get_running_loop()
            while not done:
                before = loop.time()
                await asyncio.sleep(0.005)
                longest = max(longest, loop.time() - before)

        task = asyncio.create_task(measure())
        await store.ensure(sample.digest, source)
        done = True
        await task
        assert longest < 0.5

    async def test_a_root_file_system_that_rotted_is_built_anew(self, store: ImageStore, tmp_path: Path) -> None:
        built = await store.ensure(hello().digest, MemorySource(hello()))
        good = built.rootfs.read_bytes()
        built.rootfs.write_bytes(good[:100] + b"rot" + good[103:])
        again = await ImageStore(tmp_path / "store").ensure(hello().digest, MemorySource(hello()))
        assert again.rootfs.read_bytes() == good

    @pytest.mark.parametrize("name", ["built.json", "config.json", "rootfs.squashfs"])
    @pytest.mark.parametrize("data", [None, b"", b"{}", b"rot"])
    async def test_an_image_that_lost_a_part_is_built_anew(
        self, store: ImageStore, tmp_path: Path, name: str, data: bytes | None
    ) -> None:
        built = await store.ensure(hello().digest, MemorySource(hello()))
        part = built.rootfs.parent / name
        part.unlink() if data is None else part.write_bytes(data)
        again = ImageStore(tmp_path / "store")
        assert len(again.list()) <= 1
        found = await again.ensure(hello().digest, MemorySource(hello()))
        assert found == built
        assert found.rootfs.stat().st_size == built.size_bytes

    async def test_work_left_by_a_crash_is_gone_after_a_start(self, store: ImageStore, tmp_path: Path) -> None:
        half = tmp_path / "store" / "building" / "abc"
        half.mkdir()
        (half / "rootfs.squashfs").write_bytes(b"half")
        ImageStore(tmp_path / "store")
        assert list((tmp_path / "store" / "building").iterdir()) == []

    async def test_an_empty_image_is_an_image(self, store: ImageStore) -> None:
        assert (await store.ensure(image().digest, MemorySource(image()))).size_bytes > 0


class TestCollecting:
    def make(self, tmp_path: Path) -> tuple[ImageStore, list[float]]:
        now = [1_000_000.0]
        return ImageStore(tmp_path / "store", clock=lambda: now[0]), now

    async def fill(self, store: ImageStore, now: list[float], count: int) -> list[BuiltImage]:
        built = []
        for number in range(count):
            sample = image(layer(entry("content", os.urandom(200_000) + bytes([number]))))
            now[0] += 100
            built.append(await store.ensure(sample.digest, MemorySource(sample)))
        now[0] += 100
        return built

    async def test_the_longest_unused_go_first_until_the_budget_is_met(self, tmp_path: Path) -> None:
        store, now = self.make(tmp_path)
        built = await self.fill(store, now, 4)
        await store.ensure(built[0].digest, MemorySource())
        now[0] += 100
        budget = 2 * built[0].size_bytes
        assert await store.collect(budget) >= 2 * built[0].size_bytes
        assert {image.digest for image in store.list()} == {built[0].digest, built[3].digest}

    async def test_an_engine_keeps_its_images_within_a_budget_by_itself(self, tmp_path: Path) -> None:
        store, now = self.make(tmp_path)
        built = await self.fill(store, now, 2)
        keeping = asyncio.create_task(keep_within(store, built[1].size_bytes))
        try:
            async with asyncio.timeout(60):
                while len(store.list()) > 1:  # noqa: ASYNC110 - a directory has no event
                    await asyncio.sleep(0.01)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        assert [image.digest for image in store.list()] == [built[1].digest]

    async def test_held_images_stay_whatever_the_budget(self, tmp_path: Path) -> None:
        store, now = self.make(tmp_path)
        built = await self.fill(store, now, 2)
        store.hold(built[0].digest, "vm1")
        store.hold(built[0].digest, "vm2")
        await store.collect(0)
        assert [image.digest for image in store.list()] == [built[0].digest]
        store.release("vm1")
        await store.collect(0)
        assert len(store.list()) == 1
        store.release("vm2")
        store.release("vm2")
        await store.collect(0)
        assert store.list() == ()

    async def test_an_image_just_given_out_is_not_taken_away(self, tmp_path: Path) -> None:
        store, now = self.make(tmp_path)
        await self.fill(store, now, 1)
        await store.ensure(store.list()[0].digest, MemorySource())
        await store.collect(0)
        assert len(store.list()) == 1

    async def test_a_collected_image_is_built_again_when_it_is_wanted(self, tmp_path: Path) -> None:
        store, now = self.make(tmp_path)
        await store.ensure(hello().digest, MemorySource(hello()))
        now[0] += 100
        await store.collect(0)
        await store.ensure(hello().digest, MemorySource(hello()))

    async def test_a_removed_image_is_gone_unless_a_vm_holds_it(self, tmp_path: Path) -> None:
        store, _ = self.make(tmp_path)
        digest = (await store.ensure(hello().digest, MemorySource(hello()))).digest
        store.hold(digest, "vm1")
        with pytest.raises(ConflictError, match="runs from image"):
            await store.remove(digest)
        store.release("vm1")
        await store.remove(digest)
        await store.remove(digest)
        assert store.list() == ()

    async def test_images_of_another_builder_go(self, tmp_path: Path) -> None:
        store, _ = self.make(tmp_path)
        old = tmp_path / "store" / "images" / ("a" * 64 + "-0")
        old.mkdir()
        (old / "rootfs.squashfs").write_bytes(b"x" * 1000)
        assert await store.collect(1 << 40) == 1000
        assert not old.exists()


class TestAFullDisk:
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        """A small file system, most of which is the reserve that downloads leave."""
        place = tmp_path / "disk"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "swg-test", str(place)], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)

    async def test_a_layer_that_cannot_fit_is_refused_before_it_comes(self, disk: Path) -> None:
        sample = image(layer(entry("a", os.urandom(60 * MIB))), compress="none")
        source = MemorySource(sample)
        with pytest.raises(CapacityError) as caught:
            await ImageStore(disk).ensure(sample.digest, source)
        assert caught.value.code == "disk-full"
        assert files_below(disk) == []

    async def test_a_root_file_system_that_does_not_fit_leaves_nothing(self, disk: Path) -> None:
        sample = image(layer(entry("a", os.urandom(8 * MIB))), compress="none")
        filler = disk / "filler"
        filler.write_bytes(bytes(92 * MIB))
        store = ImageStore(disk / "store")
        local = _InPlace(sample, disk.parent)
        with pytest.raises(PlasmaError) as caught:
            await store.ensure(sample.digest, local)
        assert (type(caught.value), caught.value.code) == (CapacityError, "disk-full")
        assert files_below(disk) == [filler]
        filler.unlink()
        await store.ensure(sample.digest, local)


class _InPlace(MemorySource):
    """A source whose layers lie on this host, on a disk with room."""

    def __init__(self, sample: Sample, directory: Path) -> None:
        super().__init__(sample)
        self._directory = directory

    def local_path(self, ref: BlobRef) -> Path:
        path = self._directory / ref.digest.replace(":", "-")
        path.write_bytes(self.blobs[ref.digest])
        return path
