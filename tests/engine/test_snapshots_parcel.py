"""A snapshot as a stream: what is packed comes back, and of what is not as it should be nothing does."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from collections.abc import AsyncIterator

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.errors import HostError
from plasmavmc.snapshots import parcel
from plasmavmc.snapshots.content import PIECE
from plasmavmc.snapshots.manifest import Piece
from plasmavmc.snapshots.parcel import MAGIC, Parcel, ParcelReader, decode_header, encode_header, pack, unpack
from plasmavmc.types import MIB
from tests.engine.test_snapshots import a_manifest

_LENGTH = struct.Struct("!I")


def piece_of(data: bytes, offset: int = 0) -> Piece:
    return Piece(offset, len(data), hashlib.sha256(data).hexdigest())


def a_parcel(**changes: object) -> Parcel:
    values: dict[str, object] = {
        "version": parcel.VERSION,
        "organization": "org_1",
        "project": "prj_1",
        "rootfs": "0" * 64,
        "layer_bytes": MIB,
        "layer": (),
        "snapshot": a_manifest(),
    }
    return Parcel(**{**values, **changes})  # type: ignore[arg-type]


async def stream_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def header_of(encoded: bytes) -> bytes:
    return encoded[len(MAGIC) + _LENGTH.size :]


@given(st.binary(min_size=1, max_size=4096), st.integers(1, 7))
async def test_any_stream_is_taken_apart_however_it_is_cut(data: bytes, cut: int) -> None:
    piece = piece_of(data)
    sent = encode_header(a_parcel(layer=(piece,))) + pack(data) + parcel.END
    reader = ParcelReader(stream_of(*(sent[at : at + cut] for at in range(0, len(sent), cut))))
    header = await reader.header()
    assert [unpack(packed, each) async for each, packed in reader.pieces(header.layer)] == [data]
    await reader.end()


@pytest.mark.parametrize(
    "changes",
    [
        {"layer": (Piece(0, MIB + 1, "0" * 64),)},
        {"layer": (Piece(MIB - 1, 2, "0" * 64),)},
        {"layer": (Piece(0, 0, "0" * 64),)},
        {"layer": (Piece(0, -1, "0" * 64),)},
        {"layer": (Piece(-5, 2, "0" * 64),)},
        {"layer": (Piece(0, 9, "0" * 64), Piece(8, 2, "0" * 64))},
        {"layer_bytes": 1 << 50, "layer": (Piece(0, PIECE + 1, "0" * 64),)},
        {"snapshot": a_manifest(memory=(Piece(16 * MIB, 1, "0" * 64),))},
        {"snapshot": a_manifest(state=(Piece(0, 1, "0" * 64), Piece(90 * MIB, 1, "0" * 64)))},
    ],
)
def test_a_header_whose_pieces_make_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(HostError) as refused:
        decode_header(header_of(encode_header(a_parcel(**changes))))
    assert refused.value.code == "snapshot-damaged"


def test_a_header_of_another_version_is_told_as_that() -> None:
    with pytest.raises(HostError) as refused:
        decode_header(header_of(encode_header(a_parcel(version=2))))
    assert refused.value.code == "snapshot-version"


@given(st.integers(0, 400), st.integers(1, 255))
def test_no_byte_of_a_header_can_change_unnoticed(at: int, flipped: int) -> None:
    raw = bytearray(header_of(encode_header(a_parcel())))
    raw[at % len(raw)] ^= flipped
    with pytest.raises(HostError):
        decode_header(bytes(raw))


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"version": "x"}', b'{"version": 1}', b"\xff\xfe", b'{"version": 1e999}']
)
def test_a_header_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(HostError):
        decode_header(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


async def test_what_is_no_snapshot_at_all_is_refused_before_anything_is_kept() -> None:
    endless = (b"x" * 65536 for _ in range(10_000))
    for stream in (stream_of(), stream_of(b"\x00"), stream_of(*endless), stream_of(MAGIC, b"\xff\xff\xff\xff")):
        with pytest.raises(HostError) as refused:
            await ParcelReader(stream).header()
        assert refused.value.code == "snapshot-damaged"


def test_a_piece_that_would_unpack_to_more_than_it_should_is_refused_before_it_does() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(512 * MIB))
    assert len(bomb) < PIECE
    untold = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(512 * MIB))
    tracemalloc.start()
    try:
        for packed in (bomb, untold):
            with pytest.raises(HostError):
                unpack(packed, piece_of(b"x" * 100))
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_a_piece_that_lies_about_its_size_is_refused() -> None:
    """Its frame says 100 bytes and holds more."""
    honest = zstandard.ZstdCompressor().compress(b"x" * 100)
    assert zstandard.frame_content_size(honest) == 100
    liar = bytearray(zstandard.ZstdCompressor().compress(bytes(range(256)) * 300))
    with pytest.raises(HostError):
        unpack(bytes(liar), piece_of(b"x" * 100))
    with pytest.raises(HostError):
        unpack(honest + honest, piece_of(b"x" * 100))


@given(st.binary(max_size=300))
def test_noise_in_place_of_a_piece_is_refused(noise: bytes) -> None:
    with pytest.raises(HostError):
        unpack(noise, piece_of(b"content"))


@pytest.mark.parametrize("tail", [b"", b"\x00\x00", b"\x00\x00\x00\x01", parcel.END + b"x"])
async def test_a_stream_without_its_last_word_or_with_more_is_none(tail: bytes) -> None:
    reader = ParcelReader(stream_of(encode_header(a_parcel()), tail) if tail else stream_of(encode_header(a_parcel())))
    await reader.header()
    with pytest.raises(HostError):
        await reader.end()


def test_what_is_encoded_is_decoded() -> None:
    made = a_parcel(layer=(piece_of(b"x"),), snapshot=a_manifest(origin="vm_two"))
    assert decode_header(header_of(encode_header(made))) == made
    assert b"origin" not in msgspec.json.encode(a_manifest())
