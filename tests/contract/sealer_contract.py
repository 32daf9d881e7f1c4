"""What every driver of the sealer port must do."""

from __future__ import annotations

import base64

import pytest

from shellwego.core.errors import ConflictError
from shellwego.ports.sealer import Sealer

SECRET = "whsec_" + "é" * 40


class SealerContract:
    """Derive a class, give it a fixture `sealer`."""

    async def test_what_was_sealed_opens_for_its_subject(self, sealer: Sealer) -> None:
        assert await sealer.unseal(await sealer.seal(SECRET, "whk_1"), "whk_1") == SECRET

    async def test_what_is_stored_shows_nothing_of_the_secret(self, sealer: Sealer) -> None:
        one, other = await sealer.seal(SECRET, "whk_1"), await sealer.seal(SECRET, "whk_1")
        assert one != other
        for sealed in (one, other):
            assert SECRET[:8] not in sealed
            assert SECRET.encode() not in base64.b64decode(sealed)

    async def test_it_opens_for_no_other_subject(self, sealer: Sealer) -> None:
        sealed = await sealer.seal(SECRET, "whk_1")
        with pytest.raises(ConflictError):
            await sealer.unseal(sealed, "whk_2")

    async def test_what_was_changed_does_not_open(self, sealer: Sealer) -> None:
        sealed = await sealer.seal(SECRET, "whk_1")
        raw = bytearray(base64.b64decode(sealed))
        for index in (0, len(raw) // 2, len(raw) - 1):
            changed = raw.copy()
            changed[index] ^= 1
            with pytest.raises(ConflictError):
                await sealer.unseal(base64.b64encode(changed).decode(), "whk_1")
        for nonsense in ("", "AAAA", "?", "é", sealed[:-4]):
            with pytest.raises(ConflictError):
                await sealer.unseal(nonsense, "whk_1")
