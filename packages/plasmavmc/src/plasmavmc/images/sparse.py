"""Sparse files in tar (GNU tar manual, "Storing Sparse Files"): the map from stored data to places in the file. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plasmavmc.images.pax import bad_tar

Segments = tuple[tuple[int, int], ...]
"""(offset, length) of each run of data, ascending; what lies between is zeros."""

_ZEROS = bytes(256 * 1024)


def decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise bad_tar("a sparse map holds something other than numbers")
    return int(text)


def pairs(texts: Sequence[bytes]) -> Segments:
    return paired([decimal(text) for text in texts])


def paired(numbers: Sequence[int]) -> Segments:
    if len(numbers) % 2:
        raise bad_tar("a sparse map has an odd count of numbers")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def check(segments: Segments, size: int, stored: int) -> None:
    """Refuse a map whose runs overlap, leave the file, or do not add up to the stored bytes.

    Raises:
        ImageError: `image-tar`.
    """
    at = 0
    for offset, length in segments:
        if offset < at or length < 0:
            raise bad_tar("the runs of a sparse file overlap")
        at = offset + length
    if at > size or sum(length for _, length in segments) != stored:
        raise bad_tar("a sparse map does not fit its file")


def zeros(count: int) -> Iterator[bytes]:
    """`count` zero bytes, in pieces."""
    while count > 0:
        piece = _ZEROS[:count]
        count -= len(piece)
        yield piece
