"""Driver `keyfile`: seals under a key in a file of its own beside the database, for its owner only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from shellwego.core.errors import ConflictError
from shellwego.drivers.sealer.aes import KEY_BYTES, AesSealer


def open_keyfile(path: Path) -> AesSealer:
    """The sealer of this key file, which is made where there is none.

    Raises:
        ConflictError: the file holds no key.
    """
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = _make(path)
    if len(key) != KEY_BYTES:
        raise ConflictError(
            "bad-key-file",
            f"{path} does not hold a key of {KEY_BYTES} bytes",
            resolution="Restore it from a backup: without it nothing that was sealed can be read.",
        )
    return AesSealer(key)


def _make(path: Path) -> bytes:
    """Whole and on disk before anything is sealed under it."""
    key = secrets.token_bytes(KEY_BYTES)
    draft = path.with_name(f"{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return key
