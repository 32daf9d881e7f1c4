"""Master keys that this host keeps: in a file of the data directory, or given at the start and kept nowhere.

A key of the file is named by the ring and its number, so that the keys of two installations are never taken for one
another; a given key by a check value of itself, so that no numbering can go wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path

from shellwego.core.envelope import KEY_BYTES, Context
from shellwego.core.errors import InvalidError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms import keyfile
from shellwego.drivers.kms.keyfile import SALT_BYTES, Seal
from shellwego.drivers.kms.ring import Ring, new_key
from shellwego.ports.kms import WrappedKey


class GivenKms:
    """See `ports.kms.Kms`. The first key is the current one; whoever gives them rotates them, by a restart."""

    def __init__(self, keys: Sequence[Sensitive]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise InvalidError("bad-master-key", f"a master key has {KEY_BYTES} bytes, and at least one is needed")
        self._ring = Ring(_check_name(keys[0]), {_check_name(key): key for key in keys})

    async def current(self) -> str:
        return self._ring.current

    async def wrap(self, key: Sensitive, context: Context) -> WrappedKey:
        return self._ring.wrap(key, context)

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> Sensitive:
        return self._ring.unwrap(wrapped, context)

    async def close(self) -> None:
        pass


class FileKms:
    """See `ports.kms.RotatingKms`; the only writer of its file."""

    def __init__(self, path: Path, ring: Ring, seal: Seal | None) -> None:
        self._path = path
        self._ring = ring
        self._seal = seal

    @classmethod
    def open(cls, path: Path, passphrase: Sensitive | None = None) -> FileKms:
        """The keys at `path`, made where there are none; an unsealed file is sealed as soon as a passphrase is given.

        Raises:
            InvalidError: the file is damaged, or the passphrase is not the one.
        """
        try:
            ring, seal = keyfile.load(path, passphrase)
        except FileNotFoundError:
            name = f"local-{secrets.token_hex(4)}:1"
            ring, seal = Ring(name, {name: new_key()}), None
            if passphrase is None:
                keyfile.save(path, ring, None)
        if passphrase is not None and seal is None:
            seal = Seal.of(passphrase, secrets.token_bytes(SALT_BYTES))
            keyfile.save(path, ring, seal)
        return cls(path, ring, seal)

    @classmethod
    def existing(cls, path: Path, passphrase: Sensitive | None = None) -> FileKms:
        """The keys at `path`, for whoever works beside the platform whose they are: nothing is made, sealed or written.

        Raises:
            InvalidError: there is no such file; as `open`.
        """
        try:
            return cls(path, *keyfile.load(path, passphrase))
        except FileNotFoundError:
            raise InvalidError(
                "no-key-file",
                f"there are no master keys in {path}, and none are given",
                resolution="Where the platform's unit gives it its keys, give them here too: SHELLWEGO_MASTER_KEYS_FILE.",
            ) from None

    async def current(self) -> str:
        return self._ring.current

    async def wrap(self, key: Sensitive, context: Context) -> WrappedKey:
        return self._ring.wrap(key, context)

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> Sensitive:
        return self._ring.unwrap(wrapped, context)

    async def rotate(self) -> str:
        prefix, _, number = self._ring.current.rpartition(":")
        self._replace(self._ring.rotated(f"{prefix}:{int(number) + 1}"))
        return self._ring.current

    async def retire(self, master_key: str) -> None:
        self._replace(self._ring.without(master_key))

    async def close(self) -> None:
        pass

    def _replace(self, ring: Ring) -> None:
        """On disk first: what is wrapped under a key that a crash forgets is lost."""
        keyfile.save(self._path, ring, self._seal)
        self._ring = ring


def _check_name(key: Sensitive) -> str:
    return "given-" + hmac.new(key.reveal(), b"shellwego master key", hashlib.sha256).hexdigest()[:16]
