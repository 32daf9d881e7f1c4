"""Sealing with a key in a file of the data directory, 0600: AES-256-GCM with a random nonce, purpose and id as associated
data. It protects what is copied without that file (a backup of the database), not against who reads the whole directory."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shellwego.core.errors import InvalidError, UnavailableError

_FORM = "v1:"
_KEY_BYTES, _NONCE_BYTES = 32, 12


class LocalSealer:
    """See `ports.sealing.Sealer`."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    async def seal(self, value: bytes, *, purpose: str, id_: str) -> str:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, value, _bound(purpose, id_))
        return _FORM + base64.b64encode(sealed).decode()

    async def unseal(self, sealed: str, *, purpose: str, id_: str) -> bytes:
        try:
            raw = base64.b64decode(sealed.removeprefix(_FORM), validate=True)
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound(purpose, id_))
        except (InvalidTag, ValueError, binascii.Error):
            raise InvalidError("not-sealed-here", f"what was sealed for {purpose} of {id_} does not open") from None


def open_sealer(path: Path) -> LocalSealer:
    """The sealer with the key of this file, which is made where there is none.

    Raises:
        UnavailableError: others can read the file, or it holds no key; with the remedy.
    """
    with suppress(FileExistsError):
        _make(path)
    with path.open("rb") as stream:
        mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        key = stream.read(_KEY_BYTES + 1)
    if mode & 0o077 or len(key) != _KEY_BYTES:
        raise UnavailableError(
            "bad-key-file",
            f"{path} must be readable by its owner alone and hold {_KEY_BYTES} bytes; it has mode {mode:o}",
            resolution=f"Restore it from a backup; or chmod 600 {path}",
        )
    return LocalSealer(key)


def _make(path: Path) -> None:
    """Whole or not at all: a start that was cut off leaves no half key behind."""
    if path.exists():
        return
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        os.link(fresh, path)  # the first of two starts wins
    finally:
        fresh.unlink()


def _bound(purpose: str, id_: str) -> bytes:
    return f"{len(purpose)}:{purpose}:{id_}".encode()
