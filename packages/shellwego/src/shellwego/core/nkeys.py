"""NKeys, the key pairs of NATS: Ed25519, written in base32 with a prefix that tells the role and a checksum.

The first letter of a public key says whose it is: `O` an operator's, `A` an account's, `U` a user's, who listens or speaks.
A seed begins with `S` and that letter. Source: the NKeys documentation of NATS (`github.com/nats-io/nkeys`).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shellwego.core.errors import InvalidError
from shellwego.core.sensitive import Sensitive

SEED_BYTES = 32
_SEED = 18 << 3


class Role(IntEnum):
    """The prefix byte of a public key."""

    ACCOUNT = 0
    OPERATOR = 14 << 3
    USER = 20 << 3


@dataclass(frozen=True, slots=True)
class NKey:
    """A key pair. Its seed shows nowhere but by `seed_text`."""

    role: Role
    seed: Sensitive
    """32 bytes of randomness, given by the caller, because core has none."""

    @property
    def public(self) -> str:
        """As text; this is what others know it by."""
        key = self._private().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return _text(bytes((self.role,)) + key)

    @property
    def seed_text(self) -> Sensitive:
        """As text, to be kept in a file that nobody else reads."""
        head = bytes((_SEED | self.role >> 5, (self.role & 31) << 3))
        return Sensitive.of(_text(head + self.seed.reveal()))

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return self._private().sign(data)

    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed.reveal())


def parse_seed(text: Sensitive) -> NKey:
    """A key pair from the text of its seed.

    Raises:
        InvalidError: it is none; nothing of it is repeated.
    """
    try:
        raw = _raw(text.reveal_text())
        role = Role((raw[0] & 7) << 5 | raw[1] >> 3)
    except (ValueError, IndexError):
        raise _invalid("this is no seed of an NKey") from None
    if raw[0] & ~7 != _SEED or len(raw) != 2 + SEED_BYTES:
        raise _invalid("this is no seed of an NKey")
    return NKey(role, Sensitive(raw[2:]))


def check_public(role: Role, text: str) -> None:
    """Refuse what is no public key of this role.

    Raises:
        InvalidError: naming what is missing.
    """
    try:
        raw = _raw(text)
    except ValueError:
        raise _invalid(f"{text[:80]!r} is no public NKey") from None
    if len(raw) != 1 + SEED_BYTES or raw[0] != role:
        raise _invalid(f"{text[:80]!r} is no public NKey of {role.name.lower()}s")


def verify(public: str, signature: bytes, data: bytes) -> bool:
    """Whether the holder of this key, whatever its role, signed these bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(_raw(public)[1:]).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _text(raw: bytes) -> str:
    checked = raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def _raw(text: str) -> bytes:
    """Raises `ValueError` where text or checksum is wrong, or where the same key could be written otherwise."""
    checked = base64.b32decode(text + "=" * (-len(text) % 8))
    raw = checked[:-2]
    if _text(raw) != text:
        raise ValueError("checksum")
    return raw


def _invalid(message: str) -> InvalidError:
    return InvalidError("invalid-nkey", message)
