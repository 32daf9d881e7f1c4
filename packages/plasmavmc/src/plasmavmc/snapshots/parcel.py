"""A snapshot on its way from one host to another. Pure but for the digests of what passes.

    magic, length, header        the header is JSON behind its own digest: whose VM it was, its manifest, its disk
    length, piece; …             every piece of state, memory and disk, in that order, each packed by zstd for itself
    0                            the sender still had it when the last piece had left

Theory. The header says how long each piece is and what its digest is before any of it comes, so the receiver knows from
the start how much it will be and whether it has a use for it; and whatever comes is held against that, piece by piece,
before it is written. A piece has at most two MiB, so that nothing in a stream makes anybody hold more. A stream is only
whole with its last word: one that breaks off, or whose sender found its VM awake, is none.

There is no signature. Who may send is settled by whoever opens the way; a digest guards against accidents, and against
a sender that does not know what it sends.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence

import msgspec
import zstandard

from plasmavmc.errors import HostError
from plasmavmc.host.threads import in_thread
from plasmavmc.snapshots.content import PIECE
from plasmavmc.snapshots.manifest import Manifest, Piece

VERSION = 1
MAGIC = b"swgsnap\0"
MOST_HEADER = 64 * 1024 * 1024
"""Bytes. Half a million pieces."""
STATE_ROOM = 64 * 1024 * 1024
"""Bytes that the state of devices may have beside the memory, which may be in it."""
_LEVEL = 1
_WINDOW = 8 * 1024 * 1024
_MOST_PACKED = PIECE + 64 * 1024
_LENGTH = struct.Struct("!I")
END = _LENGTH.pack(0)


class Parcel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the header says."""

    version: int
    organization: str
    project: str
    """Whose VM it was."""
    rootfs: str
    """sha256 of the image as it was built: the guest remembers places in it."""
    layer_bytes: int
    """Size of the writable layer."""
    layer: tuple[Piece, ...]
    snapshot: Manifest

    @property
    def content_bytes(self) -> int:
        """Of all that comes, unpacked."""
        parts = (self.snapshot.state, self.snapshot.memory or (), self.layer)
        return sum(piece.length for part in parts for piece in part)


def encode_header(parcel: Parcel) -> bytes:
    """The beginning of a stream.

    Raises:
        HostError: `snapshot-too-large`, its pieces are too many.
    """
    body = msgspec.json.encode(parcel)
    header = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    if len(header) > MOST_HEADER:
        raise HostError("snapshot-too-large", "the snapshot is in too many pieces to be sent")
    return MAGIC + _LENGTH.pack(len(header)) + header


def decode_header(raw: bytes) -> Parcel:
    """Read a header.

    Raises:
        HostError: `snapshot-damaged`; `snapshot-version`, it is of another version of the engine.
    """
    digest, _, body = raw.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise broken("its header is not what was sent")
    try:
        version = msgspec.json.decode(body, type=_Version).version
        if version == VERSION:
            parcel = msgspec.json.decode(body, type=Parcel)
            _check_bounds(parcel)
            return parcel
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise broken(f"its header cannot be read: {error}") from error
    raise HostError("snapshot-version", f"the snapshot was sent as version {version}, and this engine knows {VERSION}")


class _Version(msgspec.Struct):
    version: int


def _check_bounds(parcel: Parcel) -> None:
    """Every piece is within what it is a part of, in order, and none is larger than pieces are."""
    snapshot = parcel.snapshot
    memory_bytes, layer_bytes = snapshot.memory_bytes, parcel.layer_bytes
    _check_pieces("state", snapshot.state, memory_bytes + STATE_ROOM)
    _check_pieces("memory", snapshot.memory or (), memory_bytes)
    _check_pieces("disk", parcel.layer, layer_bytes)


def _check_pieces(name: str, pieces: Iterable[Piece], size: int) -> None:
    end = 0
    for piece in pieces:
        if not 0 < piece.length <= PIECE or piece.offset < end:
            raise broken(f"the pieces of its {name} make no sense, at {piece.offset}")
        end = piece.offset + piece.length
    if end > size:
        raise broken(f"its {name} is larger than it can be")


def pack(data: bytes) -> bytes:
    """A piece as it travels."""
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    return _LENGTH.pack(len(packed)) + packed


def unpack(packed: bytes, piece: Piece) -> bytes:
    """What a piece is.

    Raises:
        HostError: `snapshot-damaged`, it is not what the header says.
    """
    try:
        if zstandard.frame_content_size(packed) != piece.length:
            raise broken(f"a piece has not the length that it should, at {piece.offset}")
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        data = unpacker.decompress(packed, max_output_size=piece.length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise broken(f"a piece cannot be unpacked, at {piece.offset}: {error}") from error
    if len(data) != piece.length or hashlib.sha256(data).hexdigest() != piece.sha256:
        raise broken(f"its content is not what was sent, at {piece.offset}")
    return data


class ParcelReader:
    """Takes a stream apart. It holds one chunk of the stream and one packed piece, and no more."""

    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._chunks = aiter(stream)
        self._rest = bytearray()

    async def header(self) -> Parcel:
        """What comes first.

        Raises:
            HostError: `snapshot-damaged`, `snapshot-version`.
        """
        if await self._exactly(len(MAGIC)) != MAGIC:
            raise broken("it is none")
        return await in_thread(decode_header, await self._exactly(await self._length(MOST_HEADER)))

    async def pieces(self, pieces: Sequence[Piece]) -> AsyncIterator[tuple[Piece, bytes]]:
        """The next so many, each still packed.

        Raises:
            HostError: `snapshot-damaged`.
        """
        for piece in pieces:
            yield piece, await self._exactly(await self._length(_MOST_PACKED))

    async def end(self) -> None:
        """Hear the last word.

        Raises:
            HostError: `snapshot-damaged`, there is more, or none.
        """
        ended = await self._exactly(len(END)) == END
        more = bool(self._rest) or await anext(self._chunks, None) is not None
        if more or not ended:
            raise broken("it goes on where it should end")

    async def _length(self, most: int) -> int:
        (length,) = _LENGTH.unpack(await self._exactly(_LENGTH.size))
        if not 0 < length <= most:
            raise broken(f"a part of it has {length} bytes")
        return int(length)

    async def _exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                raise broken("it breaks off")
            self._rest += chunk
        taken = bytes(self._rest[:count])
        del self._rest[:count]
        return taken


def broken(why: str) -> HostError:
    """A stream that is not what it should be."""
    return HostError("snapshot-damaged", f"the snapshot that was sent is damaged: {why}", resolution="Send it again.")
