"""What an image may cost: memory is charged where it is taken, and no step goes on for long without coming back."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from plasmavmc.cli.unpacking import unpack
from plasmavmc.errors import ImageError
from plasmavmc.images import layers
from plasmavmc.images.layers import Layer
from plasmavmc.images.limits import HEADER_BYTES, ImageLimits
from plasmavmc.images.merge import check, merge
from plasmavmc.images.tar import TarReader
from plasmavmc.images.tarindex import TarIndex
from tests.contract.images_samples import digest_of, directory, entry, layer, pack, symlink

MIB = 1 << 20
SLACK = 100
"""Entries and more that a test's image has beside what it is about."""


def refused(data: bytes, limits: ImageLimits = ImageLimits()) -> str:  # noqa: B008
    """The code by which both the whole merge and the check at a load refuse a layer."""
    codes = set()
    for work in (merge, check):
        with pytest.raises(ImageError) as caught:
            for _ in work([Layer(io.BytesIO(data), len(data), digest_of(data))], limits):
                pass
        codes.add(caught.value.code)
    assert len(codes) == 1
    return codes.pop()


def passes(data: bytes, limits: ImageLimits = ImageLimits()) -> None:  # noqa: B008
    for _ in check([Layer(io.BytesIO(data), len(data), digest_of(data))], limits):
        pass


def header(name: str, kind: bytes, payload: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(payload)
    return info.tobuf() + payload + bytes(-len(payload) % 512)


def records(*pairs: tuple[str, bytes]) -> bytes:
    """Records of a pax header."""
    out = b""
    for key, value in pairs:
        body = b" " + key.encode() + b"=" + value + b"\n"
        length = len(body)
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        out += str(length).encode() + body
    return out


class TestDirectories:
    NAMES = tuple(f"{number:04}/" + "d/" * 1000 + "f" for number in range(10))

    def test_those_that_only_names_imply_count_as_entries(self) -> None:
        data = layer(*(entry(name) for name in self.NAMES))
        passes(data)
        assert refused(data, ImageLimits(entries=5000)) == "image-too-large"

    def test_those_that_only_names_imply_take_memory(self) -> None:
        data = layer(*(entry(name) for name in self.NAMES))
        assert refused(data, ImageLimits(metadata_bytes=MIB)) == "image-too-large"

    def test_those_that_a_symbolic_link_leads_to_count_too(self) -> None:
        data = layer(symlink("s", "d/" * 1000), entry("s/f"))
        passes(data)
        assert refused(data, ImageLimits(entries=SLACK)) == "image-too-large"

    def test_those_that_members_are_for_take_memory_and_count_once(self) -> None:
        data = layer(*(directory(f"{number}/") for number in range(1000)))
        passes(data, ImageLimits(entries=1000))
        assert refused(data, ImageLimits(metadata_bytes=100_000)) == "image-too-large"

    def test_the_whole_paths_of_the_merged_tree_take_memory(self) -> None:
        """A short name has a long path where a symbolic link comes before it."""
        deep = "/".join(["d" * 200] * 19)
        data = layer(directory(f"{deep}/"), symlink("s", deep), *(entry(f"s/{number}") for number in range(100)))
        passes(data)
        assert refused(data, ImageLimits(metadata_bytes=100_000)) == "image-too-large"

    def test_a_layer_of_usual_shape_needs_little(self) -> None:
        data = layer(*(entry(f"usr/lib/x{number % 10}/file{number}") for number in range(1000)))
        passes(data, ImageLimits(entries=1012, metadata_bytes=50_000))


class TestMembers:
    def test_extended_attributes_take_more_than_their_letters(self) -> None:
        many = records(*((f"SCHILY.xattr.user.{number}", b"x") for number in range(2000)))
        data = header("h", b"x", many) + layer(entry("a"))
        passes(data)
        assert refused(data, ImageLimits(metadata_bytes=100_000)) == "image-too-large"

    def test_so_do_the_runs_of_a_sparse_file(self) -> None:
        runs = ",".join(f"{offset},0" for offset in range(2000))
        headers = {"GNU.sparse.map": runs, "GNU.sparse.size": "4000", "GNU.sparse.name": "s"}
        data = layer(entry("x", pax_headers=headers))
        passes(data)
        assert refused(data, ImageLimits(metadata_bytes=100_000)) == "image-too-large"

    @pytest.mark.parametrize("kind", [b"x", b"g"])
    def test_extended_headers_of_no_member_are_nothing(self, kind: bytes) -> None:
        passes(header("h", kind, records(("mtime", b"5"))) + layer())

    @pytest.mark.parametrize("number", ["--5", "-", "", "- 5", "\u0665"])
    def test_a_number_that_is_none_is_refused(self, number: str) -> None:
        data = header("h", b"x", records(("mtime", number.encode() or b"."))) + layer(entry("a"))
        assert refused(data) == "image-tar"


def extended(kind: bytes, count: int, size: int) -> bytes:
    """So many extended headers before one member."""
    payloads = {b"L": b"n" * size, b"K": b"l" * size}
    each = [
        header("h", kind, payloads.get(kind) or records((f"SCHILY.xattr.user.{number}", b"v" * size)))
        for number in range(count)
    ]
    return b"".join(each) + layer(entry("a", b"content"))


READERS: dict[str, Callable[[bytes, Path], object]] = {
    "layer": lambda data, _: passes(data),
    "archive": lambda data, _: list(TarIndex(io.BytesIO(data)).scan()),
    "copy": lambda data, path: unpack(io.BytesIO(data), str(path), "name", contents=False, max_bytes=MIB),
}


@pytest.mark.parametrize("reader", READERS)
class TestExtendedHeaders:
    """However an archive comes: as a layer, as an image from a file, or out of a guest."""

    def test_a_few_are_read(self, reader: str, tmp_path: Path) -> None:
        READERS[reader](extended(b"g", 3, 1000), tmp_path)
        READERS[reader](extended(b"x", 3, 1000), tmp_path)

    @pytest.mark.parametrize("kind", [b"x", b"X", b"g", b"L", b"K"])
    def test_their_sum_before_one_member_is_bounded(self, reader: str, tmp_path: Path, kind: bytes) -> None:
        with pytest.raises(ImageError) as caught:
            READERS[reader](extended(kind, 40, HEADER_BYTES // 20), tmp_path)
        assert caught.value.code == "image-tar"

    @pytest.mark.parametrize("kind", [b"x", b"X", b"g", b"L", b"K"])
    def test_so_is_their_count(self, reader: str, tmp_path: Path, kind: bytes) -> None:
        with pytest.raises(ImageError) as caught:
            READERS[reader](extended(kind, 1000, 1), tmp_path)
        assert caught.value.code == "image-tar"

    def test_each_member_may_have_its_own(self, reader: str, tmp_path: Path) -> None:
        if reader == "copy":
            return  # where members must lie below the first
        member = extended(b"x", 1, 60_000)[:-1024]
        READERS[reader](member * 40 + bytes(1024), tmp_path)


class TestSparseMaps:
    def test_a_long_map_before_its_data_is_read_in_one_pass(self) -> None:
        count = 260_000
        text = b"%d\n" % count + b"0\n0\n" * count
        info, content = entry("x", text + bytes(-len(text) % 512))
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "0", "GNU.sparse.name": "s"}
        data = layer((info, content))
        begun = time.process_time()
        [member] = TarReader(io.BytesIO(data))
        assert time.process_time() - begun < 1.0
        assert member.segments is not None
        assert len(member.segments) == count

    @pytest.mark.parametrize("text", [b"", b"5\n1\n", b"x\n", b"\n", b"9999999999999999999\n0\n0\n", b"1" * 600])
    def test_a_map_that_is_cut_off_is_refused(self, text: bytes) -> None:
        info, content = entry("x", text + bytes(-len(text) % 512))
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "0", "GNU.sparse.name": "s"}
        assert refused(layer((info, content))) == "image-tar"


def stream(data: bytes) -> layers.LayerStream:
    return layers.LayerStream(Layer(io.BytesIO(data), len(data), ""), layers.Budget(ImageLimits()), verify=False)


def whole(data: bytes) -> bytes:
    source = stream(data)
    return b"".join(iter(lambda: source.read(100_000), b""))


def raw_gzip(deflated: bytes, content: bytes, name: bytes = b"") -> bytes:
    """A gzip member of a deflate stream made by hand."""
    head = b"\x1f\x8b\x08" + (b"\x08" if name else b"\0") + bytes(5) + b"\xff" + (name + b"\0" if name else b"")
    return head + deflated + struct.pack("<II", zlib.crc32(content), len(content))


EMPTY_GZIP = gzip.compress(b"", mtime=0)
EMPTY_ZSTD = zstandard.compress(b"")
SKIPPABLE = b"\x50\x2a\x4d\x18\0\0\0\0"
CONTENT = layer(entry("a", b"x" * 2000))
LAST = zlib.compress(CONTENT, wbits=-15)
BEYOND = 70 * MIB


class TestStreamsThatGiveNothing:
    @pytest.mark.parametrize(
        ("how", "nothing"),
        [("gzip", EMPTY_GZIP), ("zstd", EMPTY_ZSTD), ("zstd", SKIPPABLE), ("zstd", EMPTY_ZSTD + SKIPPABLE)],
    )
    def test_empty_parts_without_end_are_refused_at_once(self, how: str, nothing: bytes) -> None:
        assert whole(nothing * 100 + pack(CONTENT, how) + nothing * 100) == CONTENT
        for data in (nothing * 10_000 + pack(CONTENT, how), pack(CONTENT, how) + nothing * 10_000):
            with pytest.raises(ImageError) as caught:
                whole(data)
            assert caught.value.code == "image-layer"

    def test_parts_of_a_single_byte_are_as_good_as_empty(self) -> None:
        with pytest.raises(ImageError):
            whole(gzip.compress(b"x", mtime=0) * 10_000)

    @pytest.mark.parametrize("how", ["gzip", "zstd"])
    def test_a_part_for_each_small_file_is_usual(self, how: str) -> None:
        part = pack(layer(entry("a"))[:512], how)
        assert len(whole(part * 20_000)) == 512 * 20_000

    @pytest.mark.parametrize(
        "data",
        [
            raw_gzip(b"\0\0\0\xff\xff" * (BEYOND // 5) + LAST, CONTENT),
            raw_gzip(LAST, CONTENT, name=b"n" * BEYOND),
            raw_gzip(LAST, CONTENT) + bytes(BEYOND),
            SKIPPABLE[:4] + struct.pack("<I", BEYOND) + bytes(BEYOND) + pack(CONTENT, "zstd"),
        ],
        ids=["empty blocks", "a long name", "padding", "a long skippable frame"],
    )
    def test_input_that_holds_nothing_is_bounded(self, data: bytes) -> None:
        with pytest.raises(ImageError) as caught:
            whole(data)
        assert caught.value.code == "image-layer"

    def test_a_table_of_contents_in_a_skippable_frame_is_passed_over(self) -> None:
        frame = SKIPPABLE[:4] + struct.pack("<I", 20 * MIB) + bytes(20 * MIB)
        assert whole(pack(CONTENT, "zstd") + frame) == CONTENT

    def test_a_layer_that_cannot_be_compressed_is_as_good_as_any(self) -> None:
        data = bytes(itertools.islice(itertools.cycle(range(251)), 100_000)) * 30
        stored = zlib.compressobj(level=0, wbits=31)
        pieces = [
            stored.compress(data[at : at + 500]) + stored.flush(zlib.Z_FULL_FLUSH) for at in range(0, len(data), 500)
        ]
        assert whole(b"".join(pieces) + stored.flush()) == data


class TestSteps:
    FILES = layer(*(entry(f"{number:02}", bytes(MIB)) for number in range(80)), entry("last", b"x"))

    def test_files_below_the_size_of_a_step_make_steps_together(self) -> None:
        steps = check([Layer(io.BytesIO(self.FILES), len(self.FILES), digest_of(self.FILES))], ImageLimits())
        assert sum(1 for _ in steps) >= 8

    def test_so_do_files_that_a_layer_above_hides(self) -> None:
        """The second pass, in which only the last file is let through."""
        above = layer(*(entry(f".wh.{number:02}") for number in range(80)))
        parts = [Layer(io.BytesIO(data), len(data), digest_of(data)) for data in (self.FILES, above)]
        first = sum(1 for _ in check(parts, ImageLimits()))
        assert sum(1 for _ in merge(parts, ImageLimits())) >= first + 8
