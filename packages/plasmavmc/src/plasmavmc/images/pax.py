"""Records of extended tar headers (POSIX.1-2001 pax, "pax Extended Header"): `<length> <key>=<value>\\n`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from plasmavmc.errors import ImageError


def bad_tar(details: str) -> ImageError:
    return ImageError("image-tar", "the tar archive is malformed", details=details)


def parse_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values, in order; a key may come several times. Values may hold any bytes.

    Raises:
        ImageError: `image-tar`.
    """
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            raise bad_tar("a pax record has no length")
        end = position + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space or data[end - 1 : end] != b"\n" or not equals:
            raise bad_tar("a pax record has the wrong length")
        yield key, value
        position = end


def format_records(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(_format(key, value) for key, value in records)


def _format(key: bytes, value: bytes) -> bytes:
    """One record; its length counts its own digits."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body
