"""Content digests: `sha256:` and 64 hexadecimal digits (OCI image-spec, descriptor.md). No other algorithm is taken."""

from __future__ import annotations

import hashlib
import re

from plasmavmc.errors import ImageError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_digest(value: object, what: str) -> str:
    """Return `value` if it is a sha256 digest.

    Raises:
        ImageError: `image-digest`; `what` says where it stood.
    """
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ImageError("image-digest", f"{what} is not a sha256 digest", details=repr(value)[:100])
    return value


def hex_of(digest: str) -> str:
    """The hexadecimal part of a digest, safe as a file name."""
    return parse_digest(digest, "digest").removeprefix("sha256:")


def check_digest(data: bytes, digest: str, what: str) -> bytes:
    """Return `data` if it has this digest.

    Raises:
        ImageError: `digest-mismatch`.
    """
    if digest_of(data) != digest:
        raise mismatch(what, digest)
    return data


def mismatch(what: str, expected: str) -> ImageError:
    """What was found instead is not told: whoever asks may have guessed at what is another's."""
    return ImageError(
        "digest-mismatch",
        f"{what} is corrupt: its content does not have its digest",
        details=f"expected {expected}",
        resolution="push the image again, or load it again",
    )
