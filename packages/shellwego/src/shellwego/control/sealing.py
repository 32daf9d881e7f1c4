"""Small values sealed at rest: what a use case stores of a secret, and how it gets it back.

A use case may run twice and must not wait for a KMS, so sealing has two halves: `Sealer.seal` before the transaction, and
`keep` in it. What is stored by the caller is a `SealedValue`; the wrapped data key lies in a table of its own, so that a
rotation of the master key touches those rows and no others.

    sealing = await sealer.seal(value, Label(purpose="totp", subject=user.id))
    await access.write(target, lambda unit, row: unit.tx.users.update(replace(row, totp=keep(unit, sealing))))
    value = await sealer.unseal(row.totp, Label(purpose="totp", subject=user.id))
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from shellwego.control.unit import Control, Unit
from shellwego.core.envelope import (
    KEY_BYTES,
    NONCE_BYTES,
    DataKey,
    Label,
    MasterKey,
    SealedValue,
    decrypt,
    encrypt,
    seal_broken,
)
from shellwego.core.errors import UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.ports.kms import Kms, WrappedKey

CACHED_KEYS = 256
CACHED_S = 60.0


@dataclass(frozen=True, slots=True)
class OpenKey:
    """A data key that can be used; `row` is how it is, or will be, stored."""

    row: DataKey
    label: Label
    key: Sensitive = field(repr=False)

    def seal(self, value: Sensitive, number: int = 1) -> SealedValue:
        """A version of the value under this key; may be called in a transaction."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return SealedValue(
            key_id=self.row.id,
            nonce=nonce,
            ciphertext=encrypt(self.key, nonce, value, self.label.value_context(number)),
        )

    def unseal(self, sealed: SealedValue, number: int = 1) -> Sensitive:
        """What was sealed; raises `ConflictError` where it was changed or moved."""
        return decrypt(self.key, sealed.nonce, sealed.ciphertext, self.label.value_context(number))


@dataclass(frozen=True, slots=True)
class Sealing:
    """A value sealed, and not yet stored."""

    key: OpenKey
    value: SealedValue


class Sealer:
    """Seals and unseals by the platform's KMS. Raises what `ports.kms.Kms` raises."""

    def __init__(self, control: Control, kms: Kms) -> None:
        self._control = control
        self._kms = kms
        self._cache: OrderedDict[tuple[str, Label], tuple[Sensitive, float]] = OrderedDict()

    async def seal(self, value: Sensitive, label: Label) -> Sealing:
        """Seal a value that has one version, under a data key of its own; `keep` stores that key."""
        key = await self.new_key(label)
        return Sealing(key, key.seal(value))

    async def unseal(self, sealed: SealedValue, label: Label) -> Sensitive:
        """The value that `seal` was given with this label.

        Raises:
            ConflictError: what is stored is not what was sealed.
        """
        return (await self.open(sealed.key_id, label)).unseal(sealed)

    async def new_key(self, label: Label) -> OpenKey:
        """A fresh data key for a resource, wrapped and not yet stored."""
        key = Sensitive(secrets.token_bytes(KEY_BYTES))
        wrapped = await self._kms.wrap(key, label.context())
        now = self._control.clock.now()
        row = DataKey(
            id=self._control.clock.new_id("dek"),
            purpose=label.purpose,
            subject=label.subject,
            master_key=wrapped.master_key,
            wrapped=wrapped.blob,
            created_at=now,
            wrapped_at=now,
        )
        return OpenKey(row, label, key)

    async def open(self, key_id: str, label: Label) -> OpenKey:
        """The data key of a resource; kept for a minute, since a deploy opens the same few again and again.

        Raises:
            ConflictError: there is none, or it is not this resource's.
        """
        row = await self._control.read(lambda tx: tx.data_keys.get(key_id))
        if row is None:
            raise seal_broken()
        now = self._control.clock.monotonic()
        known, until = self._cache.get((key_id, label), (None, 0.0))
        if known is None or until <= now:
            known = await self._kms.unwrap(WrappedKey(row.master_key, row.wrapped), label.context())
            self._remember(key_id, label, known, now)
        return OpenKey(row, label, known)

    def _remember(self, key_id: str, label: Label, key: Sensitive, now: float) -> None:
        for stale in [each for each, (_, until) in self._cache.items() if until <= now]:
            del self._cache[stale]
        self._cache[key_id, label] = (key, now + CACHED_S)
        while len(self._cache) > CACHED_KEYS:
            self._cache.popitem(last=False)


def keep(unit: Unit, sealing: Sealing) -> SealedValue:
    """Store the data key of a sealed value; the value is the caller's to store.

    Raises:
        UnavailableError: the master key was retired meanwhile; sealing it again helps.
    """
    keep_key(unit, sealing.key.row)
    return sealing.value


def keep_key(unit: Unit, row: DataKey) -> None:
    """Store a fresh data key; raises as `keep`."""
    note_master_key(unit, row.master_key)
    unit.tx.data_keys.insert(row)


def note_master_key(unit: Unit, name: str) -> None:
    """Say that data keys are stored under this master key, so that it is not retired behind their back; raises as `keep`."""
    known = unit.tx.master_keys.get(name)
    if known is None:
        unit.tx.master_keys.insert(MasterKey(id=name, created_at=unit.now()))
    elif known.retired_at is not None:
        raise UnavailableError("master-key-retired", "the master key was rotated meanwhile", resolution="Try again.")


def forget(unit: Unit, key_id: str) -> None:
    """Delete a data key: what is sealed under it can never be opened again. One that is gone is left alone."""
    if unit.tx.data_keys.get(key_id) is not None:
        unit.tx.data_keys.delete(key_id)


def rewrapped(row: DataKey, wrapped: WrappedKey, now: float) -> DataKey:
    """The data key under another master key."""
    return replace(row, master_key=wrapped.master_key, wrapped=wrapped.blob, wrapped_at=now)
