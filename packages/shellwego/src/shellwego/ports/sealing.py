"""Port: small values sealed at rest, such as the secret of one-time codes.

What is sealed is bound to a purpose and to the id of the row that holds it: moved to another row, or used for something
else, it does not open.
"""

from __future__ import annotations

from typing import Protocol


class Sealer(Protocol):
    async def seal(self, value: bytes, *, purpose: str, id_: str) -> str:
        """The value as a text that tells nothing of it but its length. Raises `UnavailableError`."""

    async def unseal(self, sealed: str, *, purpose: str, id_: str) -> bytes:
        """The value again.

        Raises:
            InvalidError: it was sealed for another purpose or id, by another key, or was changed.
            UnavailableError: the keys cannot be reached now.
        """
