"""Quantities as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shellwego.core.deployments import Share

_SIZE = re.compile(r"(\d{1,12})(?:([kmgt])i?b?|b)?", re.IGNORECASE | re.ASCII)
_SHARE = re.compile(r"(\d{1,4})(%?)", re.ASCII)
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


def parse_share(text: str) -> Share:
    """`25%` of what is wanted, or a number of instances such as `2`.

    Raises:
        ValueError: it is neither, or more than all.
    """
    match = _SHARE.fullmatch(text)
    if match is None or (match[2] and int(match[1]) > 100):
        raise ValueError("a number of instances, or a percentage of them up to 100%, such as 2 or 25%")
    return Share(percent=int(match[1])) if match[2] else Share(count=int(match[1]))
