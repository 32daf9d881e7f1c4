"""The contract of a KMS on the memory driver, and a wrong driver that it rejects."""

from __future__ import annotations

import pytest

from shellwego.core.envelope import Context
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.ports.kms import Kms, WrappedKey
from tests.contract.kms_contract import KmsContract, RotatingKmsContract


class TestMemoryKms(RotatingKmsContract):
    @pytest.fixture
    def kms(self) -> Kms:
        return MemoryKms()


class CarelessKms:
    """Wrong: turns the key around, and authenticates neither it nor the context."""

    async def current(self) -> str:
        return "careless:1"

    async def wrap(self, key: Sensitive, context: Context) -> WrappedKey:
        return WrappedKey("careless:1", key.reveal()[::-1])

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> Sensitive:
        return Sensitive(wrapped.blob[::-1])

    async def close(self) -> None:
        pass


class TestTheContractRejectsAWrongKms:
    async def test_that_does_not_authenticate_the_context(self) -> None:
        with pytest.raises(pytest.fail.Exception):
            await KmsContract().test_another_context_opens_nothing(CarelessKms(), {"project_id": "prj_2"})

    async def test_that_does_not_authenticate_the_key(self) -> None:
        with pytest.raises(pytest.fail.Exception):
            await KmsContract().test_a_changed_blob_opens_nothing(CarelessKms(), 0)

    async def test_that_wraps_without_a_nonce(self) -> None:
        with pytest.raises(AssertionError):
            await KmsContract().test_the_same_key_is_wrapped_otherwise_each_time(CarelessKms())

    async def test_that_opens_under_any_master_key(self) -> None:
        with pytest.raises(pytest.fail.Exception):
            await KmsContract().test_a_master_key_that_it_has_not_is_told_as_such(CarelessKms())
