"""Ids that the server chooses: 26 characters of lower-case base32 behind a prefix.

A request with a request id gets the id that this makes: its repetition finds the same thing, also after a restart of the
server. One without gets a random one.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Protocol

_LENGTH = 26


class ChooseId(Protocol):
    """Makes an id for the `number`-th thing of a request: always the same for the same request id, a new one without."""

    def __call__(self, prefix: str, principal: str, request_id: str, number: int = 0) -> str: ...


def choose_id(prefix: str, principal: str, request_id: str, number: int = 0) -> str:
    """See `ChooseId`."""
    seed = f"{principal}\0{request_id}\0{number}".encode() if request_id else secrets.token_bytes(32)
    return f"{prefix}_{base64.b32encode(hashlib.sha256(seed).digest()).decode().lower()[:_LENGTH]}"


def name_of(identifier: str) -> str:
    """A name, fit for a hostname, for a thing that got none."""
    prefix, _, rest = identifier.partition("_")
    letters = "".join(character for character in rest if character.isalnum())
    return f"{prefix}-{letters[:12]}" if letters else prefix
