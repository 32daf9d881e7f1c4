"""Port: hashing passwords. Slow and large in memory on purpose, so it runs in threads and never in a transaction."""

from __future__ import annotations

from typing import Protocol


class PasswordHasher(Protocol):
    def hash(self, password: str) -> str:
        """A salted hash that says how it was made."""

    def matches(self, password: str, hashed: str) -> bool:
        """Whether the hash is of this password. False too where the hash makes no sense."""

    def is_outdated(self, hashed: str) -> bool:
        """Whether the hash was made with weaker parameters than are used today."""
