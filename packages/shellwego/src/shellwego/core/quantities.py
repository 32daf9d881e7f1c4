"""Quantities as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SIZE = re.compile(r"(\d{1,12})(?:([kmgt])i?b?|b)?", re.IGNORECASE | re.ASCII)
_POWERS: Mapping[str, int] = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """`512m`, `1gb`, `1GiB`, `4096` as bytes; the units are powers of 1,024.

    Raises:
        ValueError: it is none of these.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("a size is a whole number with an optional unit, such as 512m or 1gb")
    return int(match[1]) << (10 * _POWERS[(match[2] or "").lower()])
