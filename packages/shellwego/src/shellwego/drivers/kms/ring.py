"""A ring of master keys in memory: AES-256-GCM under the current one, the others only unwrap."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from shellwego.core.envelope import KEY_BYTES, NONCE_BYTES, Context, decrypt, encrypt, seal_broken
from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.ports.kms import WrappedKey


@dataclass(frozen=True, slots=True)
class Ring:
    """Master keys by name. A value: rotation makes another ring."""

    current: str
    keys: Mapping[str, Sensitive] = field(repr=False)

    def wrap(self, key: Sensitive, context: Context) -> WrappedKey:
        """See `ports.kms.Kms.wrap`; the master key's name is authenticated with the context."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        blob = encrypt(self.keys[self.current], nonce, key, _named(context, self.current))
        return WrappedKey(self.current, nonce + blob)

    def unwrap(self, wrapped: WrappedKey, context: Context) -> Sensitive:
        """See `ports.kms.Kms.unwrap`."""
        master = self.keys.get(wrapped.master_key)
        if master is None:
            raise unknown_key(wrapped.master_key)
        nonce, blob = wrapped.blob[:NONCE_BYTES], wrapped.blob[NONCE_BYTES:]
        key = decrypt(master, nonce, blob, _named(context, wrapped.master_key))
        if len(key) != KEY_BYTES:
            raise seal_broken()
        return key

    def rotated(self, name: str) -> Ring:
        """With a new current key."""
        return Ring(name, {**self.keys, name: new_key()})

    def without(self, name: str) -> Ring:
        """Without a key that is not the current one; raises `ConflictError`."""
        if name == self.current:
            raise ConflictError("master-key-in-use", f"{name} is the current master key", resolution="Rotate it first.")
        return Ring(self.current, {known: key for known, key in self.keys.items() if known != name})


def new_key() -> Sensitive:
    """A random key for AES-256."""
    return Sensitive(secrets.token_bytes(KEY_BYTES))


def unknown_key(name: str) -> UnavailableError:
    """The platform was started without this master key."""
    return UnavailableError(
        "master-key-missing",
        f"the master key {name[:200]} is not here, and something is sealed under it",
        resolution="Start the platform with the master keys that its database was made with.",
    )


def _named(context: Context, master_key: str) -> dict[str, str]:
    return {**context, "master_key": master_key}
