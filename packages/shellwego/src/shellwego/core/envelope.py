"""Envelope encryption: a value under a data key of its own, and that key under a master key that only the KMS knows.

AES-256-GCM (NIST SP 800-38D) with a random nonce of 96 bits. What a value is and whose travels as associated data, with the
wrapped data key as with the value: a row that was moved to another tenant, resource or version does not decrypt.
The caller gives the randomness, because core has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shellwego.core.errors import ConflictError
from shellwego.core.sensitive import Sensitive

KEY_BYTES = 32
NONCE_BYTES = 12

Context = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a sealed value is, and whose. Taken from the resource that it belongs to, never from what is stored with it."""

    purpose: str
    subject: str
    """Id of the resource."""
    organization_id: str = ""
    project_id: str = ""

    def context(self) -> dict[str, str]:
        """As associated data of the wrapped data key."""
        return asdict(self)

    def value_context(self, number: int) -> dict[str, str]:
        """As associated data of the value's version of this number."""
        return {**self.context(), "version": str(number)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataKey:
    """The data key of one resource, as it is stored: under a master key."""

    id: str
    purpose: str
    subject: str
    master_key: str
    """The version of the master key, as its KMS names it."""
    wrapped: bytes
    created_at: float
    wrapped_at: float
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterKey:
    """A version of the master key that data keys were wrapped under. Its id is the name that the KMS gave it."""

    id: str
    created_at: float
    retired_at: float | None = None
    """Since then no data key may be stored under it."""
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedValue:
    """A value under a data key."""

    key_id: str
    nonce: bytes
    ciphertext: bytes


def associated_data(context: Context) -> bytes:
    """A context in its one spelling."""
    return json.dumps(dict(context), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def encrypt(key: Sensitive, nonce: bytes, value: Sensitive, context: Context) -> bytes:
    """The value under a key; a nonce is used once with it."""
    return AESGCM(key.reveal()).encrypt(nonce, value.reveal(), associated_data(context))


def decrypt(key: Sensitive, nonce: bytes, ciphertext: bytes, context: Context) -> Sensitive:
    """What `encrypt` was given.

    Raises:
        ConflictError: `seal-broken`: another key, another context, or a changed ciphertext.
    """
    try:
        return Sensitive(AESGCM(key.reveal()).decrypt(nonce, ciphertext, associated_data(context)))
    except (InvalidTag, ValueError):
        raise seal_broken() from None


def seal_broken() -> ConflictError:
    """What is stored is not what was sealed here, for this resource and version."""
    return ConflictError(
        "seal-broken",
        "a sealed value does not open: it was changed, moved, or sealed under another key",
        resolution="Set the value again. If nobody touched the database, see with which master key it was started.",
    )
