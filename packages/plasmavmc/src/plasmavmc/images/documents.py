"""JSON documents of images, read as hostile input: bounded in size, and every value checked for its type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from plasmavmc.errors import ImageError
from plasmavmc.images.limits import BLOB_BYTES


def parse_object(data: bytes, what: str, limit: int) -> Mapping[str, object]:
    """Decode a JSON object of at most `limit` bytes.

    Raises:
        ImageError: `image-document`: too large, not JSON, nested too deeply, or not an object.
    """
    value = _decode(data, what, limit)
    if value is None:
        raise _wrong(what, "an object")
    return as_object(value, what)


def parse_list(data: bytes, what: str, limit: int) -> Sequence[object]:
    """Decode a JSON array; raises as `parse_object`."""
    return as_list(_decode(data, what, limit), what)


def _decode(data: bytes, what: str, limit: int) -> object:
    if len(data) > limit:
        raise ImageError("image-document", f"{what} has {len(data)} bytes; at most {limit} are taken")
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ImageError("image-document", f"{what} is not valid JSON", details=str(error)[:200]) from error


def as_object(value: object, what: str) -> Mapping[str, object]:
    """An object; `null` and absence mean the empty one, as Go programs write it."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(what, "an object")
    return value


def as_list(value: object, what: str) -> Sequence[object]:
    """A list; `null` and absence mean the empty one."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _wrong(what, "a list")
    return value


def as_text(value: object, what: str, default: str = "") -> str:
    if value is None:
        return default
    if not isinstance(value, str):
        raise _wrong(what, "a text")
    return value


def as_texts(value: object, what: str) -> tuple[str, ...]:
    return tuple(as_text(item, what) for item in as_list(value, what))


def as_text_map(value: object, what: str) -> dict[str, str]:
    return {key: as_text(item, what) for key, item in as_object(value, what).items()}


def as_size(value: object, what: str) -> int:
    """The bytes of a blob: a whole number from 0 to `BLOB_BYTES`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= BLOB_BYTES:
        raise _wrong(what, "a size in bytes")
    return value


def _wrong(what: str, wanted: str) -> ImageError:
    return ImageError("image-document", f"{what} is not {wanted}")
