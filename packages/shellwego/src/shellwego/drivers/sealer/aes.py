"""AES-256-GCM (NIST SP 800-38D) over one secret, with a random nonce of 96 bits; the subject is authenticated with it."""

from __future__ import annotations

import base64
import binascii
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shellwego.core.errors import ConflictError

KEY_BYTES = 32
_NONCE_BYTES = 12


class AesSealer:
    """See `ports.sealer.Sealer`."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    async def seal(self, secret: str, subject: str) -> str:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, secret.encode(), subject.encode())
        return base64.b64encode(nonce + sealed).decode()

    async def unseal(self, sealed: str, subject: str) -> str:
        try:
            raw = base64.b64decode(sealed, validate=True)
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], subject.encode()).decode()
        except (InvalidTag, ValueError, binascii.Error):
            raise ConflictError(
                "seal-broken",
                "a sealed secret does not open: it was changed, moved, or sealed under another key",
                resolution="Set the secret again, or restore the key file.",
            ) from None
