"""The file with the master keys: replaced as a whole, 0600, synced; sealed by a passphrase where there is one.

Sealed means: each key under AES-256-GCM with a key that scrypt (RFC 7914) makes of the passphrase. An unsealed file is
worth what its permissions are worth; `swg doctor` tells of it.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from shellwego.core.envelope import KEY_BYTES, NONCE_BYTES, decrypt, encrypt
from shellwego.core.errors import InvalidError, ShellWeGoError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.files import replace_file
from shellwego.drivers.kms.ring import Ring

FORMAT = 1
SALT_BYTES = 16
_COST, _BLOCK, _PARALLEL = 1 << 16, 8, 2
"""64 MiB for a fraction of a second (OWASP's second choice for scrypt, which spares small hosts)."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The key that a passphrase makes with a salt, kept so that a rotation need not ask for the passphrase again."""

    salt: bytes
    key: Sensitive = field(repr=False)

    @classmethod
    def of(cls, passphrase: Sensitive, salt: bytes) -> Seal:
        """Takes 64 MiB and a fraction of a second."""
        kdf = Scrypt(salt=salt, length=KEY_BYTES, n=_COST, r=_BLOCK, p=_PARALLEL)
        return cls(salt, Sensitive(kdf.derive(passphrase.reveal())))


def key_names(path: Path, content: bytes) -> frozenset[str]:
    """Those of the keys in what was read of a key file; raises `InvalidError`."""
    try:
        return frozenset(str(name) for name in _keys(_parsed(path, content.decode())))
    except ValueError:
        raise _damaged(path) from None


def is_sealed(path: Path) -> bool:
    """Whether the key file is sealed by a passphrase; raises as `load`."""
    return bool(_document(path).get("salt"))


def load(path: Path, passphrase: Sensitive | None) -> tuple[Ring, Seal | None]:
    """The keys of a file, and the seal that it has.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: this user may not read it.
        InvalidError: it cannot be read, is no key file, or the passphrase is not the one; nothing of it is told.
    """
    document = _document(path)
    try:
        salt = base64.b64decode(str(document.get("salt", "")), validate=True)
        stored = {str(name): base64.b64decode(str(key), validate=True) for name, key in _keys(document).items()}
    except (binascii.Error, ValueError):
        raise _damaged(path) from None
    seal = _seal(path, salt, passphrase)
    try:
        keys = {name: Sensitive(blob) if seal is None else _opened(seal, name, blob) for name, blob in stored.items()}
    except ShellWeGoError:
        raise InvalidError(
            "wrong-passphrase",
            f"the passphrase does not open the master keys in {path}",
            resolution="Give the one that they were sealed with.",
        ) from None
    current = str(document.get("current"))
    if current not in keys or any(len(key) != KEY_BYTES for key in keys.values()):
        raise _damaged(path)
    return Ring(current, keys), seal


def save(path: Path, ring: Ring, seal: Seal | None) -> None:
    """Replace the file, durably."""
    document = {
        "format": FORMAT,
        "salt": _text(seal.salt) if seal else "",
        "current": ring.current,
        "keys": {name: _text(_closed(seal, name, key)) for name, key in ring.keys.items()},
    }
    replace_file(path, json.dumps(document).encode())


def _document(path: Path) -> Mapping[str, object]:
    try:
        text = path.read_text()
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "they are no text"
        raise InvalidError("bad-key-file", f"the master keys in {path} cannot be read: {reason}") from None
    return _parsed(path, text)


def _parsed(path: Path, text: str) -> Mapping[str, object]:
    try:
        document = json.loads(text)
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _damaged(path)
    return document


def _keys(document: Mapping[str, object]) -> Mapping[object, object]:
    keys = document.get("keys")
    if not isinstance(keys, dict):
        raise ValueError("keys")
    return keys


def _seal(path: Path, salt: bytes, passphrase: Sensitive | None) -> Seal | None:
    if not salt:
        return None
    if passphrase is None:
        raise InvalidError(
            "passphrase-needed",
            f"the master keys in {path} are sealed by a passphrase, and none is given",
            resolution="Give it as the systemd credential shellwego.master-passphrase, or in --master-passphrase-file.",
        )
    return Seal.of(passphrase, salt)


def _closed(seal: Seal | None, name: str, key: Sensitive) -> bytes:
    if seal is None:
        return key.reveal()
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + encrypt(seal.key, nonce, key, {"master_key": name})


def _opened(seal: Seal, name: str, blob: bytes) -> Sensitive:
    return decrypt(seal.key, blob[:NONCE_BYTES], blob[NONCE_BYTES:], {"master_key": name})


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _damaged(path: Path) -> InvalidError:
    return InvalidError(
        "bad-key-file",
        f"{path} is no file of master keys, or it is damaged",
        resolution="Put back the copy that was kept with the backups; without it no secret of this platform opens.",
    )
