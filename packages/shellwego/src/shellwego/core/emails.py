"""Email addresses as names of users: one form for each, so that two that look alike to a person are one account."""

from __future__ import annotations

import unicodedata

MAX_BYTES = 254
"""RFC 5321, section 4.5.3.1.3, without the angle brackets."""
_MAX_LOCAL = 64


def normalized(text: str) -> str:
    """The address in the one form in which it is stored and looked up: NFKC, letters folded (UTS 46 does so to domains;
    to the part before it no provider that matters makes a difference).

    Raises:
        ValueError: it is no address, in words for people.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"at most {MAX_BYTES} bytes")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    local, at, domain = folded.rpartition("@")
    if not (at and local and domain) or "@" in local:
        raise ValueError("an address has the form name@domain")
    if any(unicodedata.category(letter)[0] in "CZ" for letter in folded):
        raise ValueError("an address has no spaces and no control characters")
    if len(local.encode()) > _MAX_LOCAL or len(folded.encode()) > MAX_BYTES:
        raise ValueError(f"at most {_MAX_LOCAL} bytes before the @, and {MAX_BYTES} in all")
    if any(not label or label[0] == "-" or label[-1] == "-" for label in domain.split(".")):
        raise ValueError("the part after the @ is no domain")
    return folded
