"""What every sealer must do."""

from __future__ import annotations

import pytest

from shellwego.core.errors import InvalidError
from shellwego.ports.sealing import Sealer

VALUE = b"JBSWY3DPEHPK3PXP"


class SealingContract:
    """Give `sealer` and `other`, one with another key, as fixtures."""

    async def test_what_is_sealed_opens_again(self, sealer: Sealer) -> None:
        sealed = await sealer.seal(VALUE, purpose="totp", id_="usr_1")
        assert await sealer.unseal(sealed, purpose="totp", id_="usr_1") == VALUE
        assert await sealer.unseal(await sealer.seal(b"", purpose="p", id_=""), purpose="p", id_="") == b""

    async def test_what_is_sealed_tells_nothing_and_is_never_the_same(self, sealer: Sealer) -> None:
        first = await sealer.seal(VALUE, purpose="totp", id_="usr_1")
        second = await sealer.seal(VALUE, purpose="totp", id_="usr_1")
        assert first != second
        assert VALUE.decode() not in first

    async def test_it_opens_for_its_purpose_and_row_alone(self, sealer: Sealer) -> None:
        sealed = await sealer.seal(VALUE, purpose="totp", id_="usr_1")
        for purpose, id_ in (("totp", "usr_2"), ("other", "usr_1"), ("totpu", "sr_1"), ("", "totpusr_1")):
            with pytest.raises(InvalidError):
                await sealer.unseal(sealed, purpose=purpose, id_=id_)

    async def test_it_does_not_open_changed_or_by_another_key(self, sealer: Sealer, other: Sealer) -> None:
        sealed = await sealer.seal(VALUE, purpose="totp", id_="usr_1")
        for changed in ("", "x", "v1:", "v1:AAAA", sealed[:-8], f"{sealed}AAAA"):
            with pytest.raises(InvalidError):
                await sealer.unseal(changed, purpose="totp", id_="usr_1")
        with pytest.raises(InvalidError):
            await other.unseal(sealed, purpose="totp", id_="usr_1")
