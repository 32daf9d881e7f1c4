"""Decompression of one layer as a bounded stream: gzip, zstd or plain tar, told by its first bytes.

Media types lie (Docker labels by what it meant to write), so the magic decides. Bounds are checked as bytes come out,
never after: a bomb is stopped when it crosses a bound, with at most one chunk in memory. Several gzip members or zstd
frames in a row are one stream (pigz, estargz and zstd:chunked write them so); gzip may be followed by zero padding. What
takes much in and gives nothing out (empty members, skippable frames, endless headers) is bounded too: one `read` would
go through the whole layer, and nobody could stop it.

Trap: the zstd reader ends silently where its input is cut off. The diff_id of the whole stream tells.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

import zstandard

from plasmavmc.errors import ImageError
from plasmavmc.images.limits import ImageLimits
from plasmavmc.types import MIB

_CHUNK = MIB // 4
_GZIP = b"\x1f\x8b"
_GZIP_INPUT = 32 * 1024
"""Fed at once: at the end of each member zlib copies what is left of it."""
_ZSTD_FRAME = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_ZSTD_INPUT = 16 * 1024
_ZSTD_WINDOW = 128 * MIB
"""What `zstd --long` writes by default; a frame may ask for gigabytes of memory."""
_IDLE_PARTS = 1000
"""Members or frames in a row that give nothing."""
_IDLE_BYTES = 64 * MIB
"""Input in a row that gives nothing: zero padding, or skippable frames; in such zstd:chunked has its table of contents."""
_PART_YIELD = 64
"""Bytes of output that make up for one member or frame: the smallest file has a header of 512."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A stored layer, open for reading; `diff_id` is the digest of its decompressed bytes."""

    file: BinaryIO
    packed_bytes: int
    diff_id: str


@dataclass(slots=True)
class Budget:
    """What the layers of one image have used of their limits together."""

    limits: ImageLimits
    unpacked_bytes: int = 0
    entries: int = 0
    metadata_bytes: int = 0

    def unpacked(self, count: int) -> None:
        self.unpacked_bytes += count
        if self.unpacked_bytes > self.limits.unpacked_bytes:
            raise too_large(f"its layers unpack to more than {self.limits.unpacked_bytes >> 20} MiB")

    def entry(self, metadata_bytes: int) -> None:
        """One more name in the index, whether a member's or a directory's that no member is for."""
        self.entries += 1
        if self.entries > self.limits.entries:
            raise too_large(f"its layers have more than {self.limits.entries} entries")
        self.metadata(metadata_bytes)

    def metadata(self, count: int) -> None:
        self.metadata_bytes += count
        if self.metadata_bytes > self.limits.metadata_bytes:
            raise too_large(f"its names and attributes need more than {self.limits.metadata_bytes >> 20} MiB")


def too_large(how: str) -> ImageError:
    return ImageError("image-too-large", f"the image is refused: {how}", resolution="make the image smaller")


def corrupt(details: str) -> ImageError:
    return ImageError("image-layer", "a layer cannot be decompressed", details=details)


def media_suffix(magic: bytes) -> str:
    """The suffix of the OCI layer media type for a stream that starts so: empty, `+gzip` or `+zstd`."""
    if magic.startswith(_GZIP):
        return "+gzip"
    return "+zstd" if _is_zstd(magic) else ""


class LayerStream:
    """The decompressed bytes of a layer, from its start. `verify` computes their digest on the way."""

    def __init__(self, layer: Layer, budget: Budget, *, verify: bool) -> None:
        self._layer = layer
        self._budget = budget
        self._hasher = hashlib.sha256() if verify else None
        self._produced = 0
        layer.file.seek(0)
        self._decoder = _decoder(layer.file)

    def read(self, count: int) -> bytes:
        """At most `count` bytes; fewer in the middle of the stream too. Empty at its end.

        Raises:
            ImageError: `image-layer` (not decompressible), `image-too-large`.
        """
        chunk = self._decoder.read(min(count, _CHUNK))
        self._produced += len(chunk)
        self._budget.unpacked(len(chunk))
        self._check_ratio()
        if self._hasher:
            self._hasher.update(chunk)
        return chunk

    def check_diff_id(self) -> None:
        """To be asked at the end of a stream that is verified.

        Raises:
            ImageError: `digest-mismatch`.
        """
        assert self._hasher is not None  # noqa: S101 - a caller's mistake, not an input's
        if f"sha256:{self._hasher.hexdigest()}" != self._layer.diff_id:
            raise ImageError(
                "digest-mismatch",
                "a layer is corrupt: its decompressed content does not have its diff_id",
                details=f"expected {self._layer.diff_id}",
                resolution="push the image again, or load it again",
            )

    def _check_ratio(self) -> None:
        limits = self._budget.limits
        if self._produced > max(limits.ratio_floor_bytes, limits.ratio * self._layer.packed_bytes):
            raise too_large(
                f"a layer of {self._layer.packed_bytes} bytes unpacks to more than {limits.ratio} times that"
            )


class _Decoder(Protocol):
    def read(self, count: int, /) -> bytes: ...


@dataclass(slots=True)
class _Idling:
    """Refuses a stream that takes in and gives nothing out. What it gives makes up for what it took before."""

    parts: int = 0
    bytes: int = 0

    def took(self, count: int, parts: int = 0) -> None:
        self.bytes += count
        self.parts += parts
        if self.parts > _IDLE_PARTS:
            raise corrupt(f"more than {_IDLE_PARTS} members or frames in a row are empty")
        if self.bytes > _IDLE_BYTES:
            raise corrupt(f"more than {_IDLE_BYTES >> 20} MiB in a row hold nothing")

    def gave(self, count: int) -> None:
        self.bytes = max(0, self.bytes - 2 * count)
        self.parts = max(0, self.parts - count // _PART_YIELD)


class _Gzip:
    """Members of gzip (RFC 1952), one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._idling = _Idling()
        self._file = file
        self._inflate = zlib.decompressobj(wbits=31)
        self._input = b""

    def read(self, count: int) -> bytes:
        try:
            while not (self._inflate.eof and not self._next_member()):
                if not self._input and not self._refill():
                    raise corrupt("the gzip stream is cut off")
                chunk = self._inflate.decompress(self._input, count)
                self._input = self._inflate.unconsumed_tail
                if chunk:
                    self._idling.gave(len(chunk))
                    return chunk
        except zlib.error as error:
            raise corrupt(f"gzip: {error}") from error
        return b""

    def _next_member(self) -> bool:
        """Begin the member after the one that ended; False at the end of the layer, past its zero padding."""
        rest = (self._inflate.unused_data or self._input).lstrip(b"\0")
        while not rest:
            if not self._refill():
                return False
            rest = self._input.lstrip(b"\0")
        self._idling.took(0, parts=1)
        self._inflate, self._input = zlib.decompressobj(wbits=31), rest
        return True

    def _refill(self) -> bool:
        self._input = self._file.read(_GZIP_INPUT)
        self._idling.took(len(self._input))
        return bool(self._input)


class _Zstd:
    """Frames of zstd (RFC 8878), one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._idling = _Idling()
        watched = cast(BinaryIO, _Watched(file, self._idling))
        self._reader = decompressor.stream_reader(
            watched, read_size=_ZSTD_INPUT, read_across_frames=True, closefd=False
        )

    def read(self, count: int) -> bytes:
        try:
            chunk = self._reader.read(count)
        except zstandard.ZstdError as error:
            raise corrupt(f"zstd: {error}") from error
        self._idling.gave(len(chunk))
        return chunk


@dataclass(slots=True)
class _Watched:
    """The input of a decoder that goes on by itself until it has something to give. Frames are told by their magic, each
    counted when more input is asked for than it came with, for it may have given something."""

    file: BinaryIO
    idling: _Idling
    _frames: int = 0

    def read(self, count: int, /) -> bytes:
        frames = self._frames
        chunk = self.file.read(count)
        self._frames = chunk.count(_ZSTD_FRAME) + chunk.count(_ZSTD_SKIPPABLE)
        self.idling.took(len(chunk), frames)
        return chunk


def _decoder(file: BinaryIO) -> _Decoder:
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(_GZIP):
        return _Gzip(file)
    return _Zstd(file) if _is_zstd(magic) else file


def _is_zstd(magic: bytes) -> bool:
    """A frame, or a skippable frame (0x184D2A50 to 5F), which zstd:chunked may put first."""
    return magic[:4] == _ZSTD_FRAME or (magic[1:4] == b"\x2a\x4d\x18" and 0x50 <= magic[0] <= 0x5F)
