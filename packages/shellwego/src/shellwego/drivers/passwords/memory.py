"""Passwords for what lives in memory only: salted, and as quick as tests need it, so never for a platform."""

from __future__ import annotations

import hashlib
import hmac
import secrets


class MemoryHasher:
    """See `ports.passwords.PasswordHasher`. `strength` stands for the parameters of a real one."""

    def __init__(self, strength: int = 1) -> None:
        self._strength = strength

    def hash(self, password: str) -> str:
        return self._made(password, secrets.token_hex(8), self._strength)

    def matches(self, password: str, hashed: str) -> bool:
        strength, _, rest = hashed.partition("$")
        salt, _, _ = rest.partition("$")
        if not strength.isdecimal():
            return False
        return hmac.compare_digest(self._made(password, salt, int(strength)), hashed)

    def is_outdated(self, hashed: str) -> bool:
        return hashed.partition("$")[0] != str(self._strength)

    @staticmethod
    def _made(password: str, salt: str, strength: int) -> str:
        return f"{strength}${salt}${hashlib.sha256(f'{salt}{password}'.encode()).hexdigest()}"
