"""Small values as sealed texts, for a field of whatever row they belong to: the port `sealing` over the platform's KMS.

A row has one data key for each purpose, stored before the first value is given back; so a value that is replaced, or whose
transaction fails, leaves no more behind than that key. Rotation of the master key moves it like any other.
"""

from __future__ import annotations

import base64
import binascii

from shellwego.control.sealing import OpenKey, Sealer, keep_key
from shellwego.control.unit import Control
from shellwego.core.envelope import Label, SealedValue
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.core.sensitive import Sensitive
from shellwego.ports.store import Transaction, eq

_FORM = "v2"


class EnvelopeSealer:
    """See `ports.sealing.Sealer`."""

    def __init__(self, control: Control, sealer: Sealer) -> None:
        self._control = control
        self._sealer = sealer

    async def seal(self, value: bytes, *, purpose: str, id_: str) -> str:
        label = Label(purpose=purpose, subject=id_)
        sealed = (await self._key(label)).seal(Sensitive(value))
        parts = (base64.b64encode(part).decode() for part in (sealed.nonce, sealed.ciphertext))
        return ":".join((_FORM, sealed.key_id, *parts))

    async def unseal(self, sealed: str, *, purpose: str, id_: str) -> bytes:
        label = Label(purpose=purpose, subject=id_)
        try:
            return (await self._sealer.unseal(_parsed(sealed), label)).reveal()
        except (ConflictError, ValueError, binascii.Error):
            raise InvalidError("not-sealed-here", f"what was sealed for {purpose} of {id_} does not open") from None

    async def _key(self, label: Label) -> OpenKey:
        """The row's data key for this purpose; a fresh one where there is none that opens."""
        for key_id in await self._control.read(lambda tx: _keys_of(tx, label)):
            try:
                return await self._sealer.open(key_id, label)
            except ConflictError:
                continue
        key = await self._sealer.new_key(label)
        await self._control.commit(lambda unit: keep_key(unit, key.row))
        return key


def _keys_of(tx: Transaction, label: Label) -> list[str]:
    return [row.id for row in tx.data_keys.select(eq("subject", label.subject)) if row.label == label]


def _parsed(text: str) -> SealedValue:
    form, key_id, nonce, ciphertext = text.split(":")
    if form != _FORM:
        raise ValueError(form)
    return SealedValue(
        key_id=key_id,
        nonce=base64.b64decode(nonce, validate=True),
        ciphertext=base64.b64decode(ciphertext, validate=True),
    )
