"""What every keeper of master keys must do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.ports.kms import Kms, RotatingKms, WrappedKey

KEY = Sensitive(bytes(range(32)))
CONTEXT = {"purpose": "secret", "project_id": "prj_1", "subject": "sec_1", "organization_id": "org_1"}


class KmsContract:
    """Inherit, and give a fixture `kms`."""

    async def test_a_key_comes_back_as_it_was(self, kms: Kms) -> None:
        assert await kms.unwrap(await kms.wrap(KEY, CONTEXT), CONTEXT) == KEY

    async def test_the_order_of_the_context_does_not_matter(self, kms: Kms) -> None:
        wrapped = await kms.wrap(KEY, CONTEXT)
        assert await kms.unwrap(wrapped, dict(reversed(CONTEXT.items()))) == KEY

    async def test_it_is_wrapped_under_the_current_master_key(self, kms: Kms) -> None:
        assert (await kms.wrap(KEY, CONTEXT)).master_key == await kms.current()

    async def test_the_key_does_not_lie_in_what_it_was_wrapped_into(self, kms: Kms) -> None:
        wrapped = await kms.wrap(KEY, CONTEXT)
        assert KEY.reveal() not in wrapped.blob

    async def test_the_same_key_is_wrapped_otherwise_each_time(self, kms: Kms) -> None:
        assert (await kms.wrap(KEY, CONTEXT)).blob != (await kms.wrap(KEY, CONTEXT)).blob

    @pytest.mark.parametrize("change", [{"project_id": "prj_2"}, {"subject": ""}, {"more": "x"}])
    async def test_another_context_opens_nothing(self, kms: Kms, change: dict[str, str]) -> None:
        wrapped = await kms.wrap(KEY, CONTEXT)
        with pytest.raises(ConflictError) as refused:
            await kms.unwrap(wrapped, {**CONTEXT, **change})
        assert refused.value.code == "seal-broken"

    @pytest.mark.parametrize("place", [0, -1])
    async def test_a_changed_blob_opens_nothing(self, kms: Kms, place: int) -> None:
        wrapped = await kms.wrap(KEY, CONTEXT)
        blob = bytearray(wrapped.blob)
        blob[place] ^= 1
        with pytest.raises(ConflictError):
            await kms.unwrap(WrappedKey(wrapped.master_key, bytes(blob)), CONTEXT)

    async def test_an_empty_blob_opens_nothing(self, kms: Kms) -> None:
        with pytest.raises(ConflictError):
            await kms.unwrap(WrappedKey(await kms.current(), b""), CONTEXT)

    async def test_a_master_key_that_it_has_not_is_told_as_such(self, kms: Kms) -> None:
        wrapped = await kms.wrap(KEY, CONTEXT)
        with pytest.raises(UnavailableError) as refused:
            await kms.unwrap(replace(wrapped, master_key="elsewhere:9"), CONTEXT)
        assert refused.value.code == "master-key-missing"


class RotatingKmsContract(KmsContract):
    """As `KmsContract`, for one that rotates."""

    async def test_after_a_rotation_new_keys_are_under_the_new_one_and_old_ones_still_open(
        self, kms: RotatingKms
    ) -> None:
        old = await kms.wrap(KEY, CONTEXT)
        name = await kms.rotate()
        new = await kms.wrap(KEY, CONTEXT)
        assert new.master_key == name == await kms.current() != old.master_key
        assert await kms.unwrap(old, CONTEXT) == await kms.unwrap(new, CONTEXT) == KEY

    async def test_a_retired_master_key_opens_nothing_any_more(self, kms: RotatingKms) -> None:
        old = await kms.wrap(KEY, CONTEXT)
        await kms.rotate()
        new = await kms.wrap(KEY, CONTEXT)
        await kms.retire(old.master_key)
        await kms.retire(old.master_key)
        with pytest.raises(UnavailableError):
            await kms.unwrap(old, CONTEXT)
        assert await kms.unwrap(new, CONTEXT) == KEY

    async def test_the_current_master_key_cannot_be_retired(self, kms: RotatingKms) -> None:
        with pytest.raises(ConflictError):
            await kms.retire(await kms.current())
        assert await kms.unwrap(await kms.wrap(KEY, CONTEXT), CONTEXT) == KEY

    async def test_a_key_of_the_old_master_key_is_none_of_the_new(self, kms: RotatingKms) -> None:
        old = await kms.wrap(KEY, CONTEXT)
        name = await kms.rotate()
        with pytest.raises(ConflictError):
            await kms.unwrap(WrappedKey(name, old.blob), CONTEXT)
