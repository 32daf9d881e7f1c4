"""What a password may be. Length is what makes one strong (NIST SP 800-63B), so nothing else is asked of it."""

from __future__ import annotations

import unicodedata

MIN_LETTERS = 12
MAX_BYTES = 1024


def prepared(password: str) -> str:
    """The form that is hashed: as RFC 8265 (OpaqueString) has it, so that one keyboard's é is that of another.

    Raises:
        ValueError: it is too long, or holds control characters; in words for people, never with the password.
    """
    if len(password) > MAX_BYTES:
        raise ValueError(f"at most {MAX_BYTES} bytes")
    spaced = "".join(" " if unicodedata.category(letter) == "Zs" else letter for letter in password)
    composed = unicodedata.normalize("NFC", spaced)
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in composed):
        raise ValueError("control characters cannot be typed everywhere")
    if len(composed.encode()) > MAX_BYTES:
        raise ValueError(f"at most {MAX_BYTES} bytes")
    return composed


def chosen(password: str, email: str) -> str:
    """A new password, prepared.

    Raises:
        ValueError: as `prepared`; or it is too short, or the address itself.
    """
    ready = prepared(password)
    if len(ready) < MIN_LETTERS:
        raise ValueError(f"at least {MIN_LETTERS} characters")
    if ready.casefold() in (email, email.partition("@")[0]) or len(set(ready)) < 4:
        raise ValueError("anybody would try it first")
    return ready
