"""Ids: a prefix that tells the kind, and a ULID (48 bits of milliseconds, 80 bits of randomness) in lower case.

Sorting ids of one kind sorts by time of birth. Clock and randomness are given by the caller, because core has neither.
"""

from __future__ import annotations

import re

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base32, as in the ULID specification
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
"""Two digits at a time: every write makes several ids."""
_ID = re.compile(r"([a-z]{2,8})_[0-9a-hjkmnp-tv-z]{26}")


def make_id(prefix: str, unix_ms: int, entropy: bytes) -> str:
    """Build an id such as `app_01j…`; `entropy` has ten bytes."""
    number = (unix_ms << 80) | int.from_bytes(entropy[:10], "big")
    return f"{prefix}_" + "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])


def is_id(prefix: str, text: str) -> bool:
    """True where `text` has the form of an id of this kind."""
    match = _ID.fullmatch(text)
    return match is not None and match[1] == prefix
