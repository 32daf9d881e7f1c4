"""Passwords with argon2id, by the second recommended parameters of RFC 9106, section 4: three passes over 64 MiB in four
lanes, a salt of 16 bytes, a tag of 32."""

from __future__ import annotations

import argon2
from argon2.exceptions import Argon2Error, InvalidHashError
from argon2.profiles import RFC_9106_LOW_MEMORY


class Argon2Hasher:
    """See `ports.passwords.PasswordHasher`."""

    def __init__(self, parameters: argon2.Parameters = RFC_9106_LOW_MEMORY) -> None:
        self._hasher = argon2.PasswordHasher.from_parameters(parameters)

    def hash(self, password: str) -> str:
        return self._hasher.hash(password)

    def matches(self, password: str, hashed: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (Argon2Error, InvalidHashError):
            return False

    def is_outdated(self, hashed: str) -> bool:
        return self._hasher.check_needs_rehash(hashed)
