"""Port: keeps a secret at rest unreadable for whoever has the database alone.

What is sealed belongs to a subject, the id of its owner's row: moved to another row it does not open.
"""

from __future__ import annotations

from typing import Protocol


class Sealer(Protocol):
    """Raises `UnavailableError` where the key cannot be reached now."""

    async def seal(self, secret: str, subject: str) -> str:
        """A text to store."""

    async def unseal(self, sealed: str, subject: str) -> str:
        """What was sealed.

        Raises:
            ConflictError: it was changed, moved, or sealed under another key.
        """
