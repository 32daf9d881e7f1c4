"""A value that nobody is to read by accident.

It has no useful `repr`, `str`, format, copy or serialization: what logs, formats, encodes or dumps it shows a placeholder or
fails. Whoever needs the value says so with `reveal`, and those places can be counted.
"""

from __future__ import annotations

import hmac
from typing import Any, NoReturn

PLACEHOLDER = "(hidden)"


class Sensitive:
    """Bytes that must not be shown."""

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]  # a key of a dictionary would be compared in time that tells of it

    def __init__(self, value: bytes) -> None:
        self._value = value

    @classmethod
    def of(cls, text: str) -> Sensitive:
        """The UTF-8 bytes of a text."""
        return cls(text.encode())

    def reveal(self) -> bytes:
        """The value itself."""
        return self._value

    def reveal_text(self) -> str:
        """The value as UTF-8 text."""
        return self._value.decode()

    def __len__(self) -> int:
        return len(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sensitive) and hmac.compare_digest(self._value, other._value)

    def __repr__(self) -> str:
        return PLACEHOLDER

    def __format__(self, _spec: str) -> str:
        return PLACEHOLDER

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError("a sensitive value is neither copied nor serialized")
