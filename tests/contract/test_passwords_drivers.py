"""The contract of password hashers, on each driver and on wrong ones."""

from __future__ import annotations

import argon2
import pytest

from shellwego.drivers.passwords.argon2 import Argon2Hasher
from shellwego.drivers.passwords.memory import MemoryHasher
from shellwego.ports.passwords import PasswordHasher
from tests.contract.passwords_contract import PasswordsContract


class TestMemoryHasher(PasswordsContract):
    @pytest.fixture
    def hasher(self) -> PasswordHasher:
        return MemoryHasher(2)

    @pytest.fixture
    def weaker(self) -> PasswordHasher:
        return MemoryHasher(1)


class TestArgon2Hasher(PasswordsContract):
    @pytest.fixture
    def hasher(self) -> PasswordHasher:
        return Argon2Hasher()

    @pytest.fixture
    def weaker(self) -> PasswordHasher:
        return Argon2Hasher(argon2.Parameters(argon2.Type.ID, 19, 16, 32, 1, 1024, 1))


def test_the_parameters_are_the_second_recommended_ones_of_rfc_9106() -> None:
    assert Argon2Hasher().hash("x" * 12).startswith("$argon2id$v=19$m=65536,t=3,p=4$")


class Unsalted(MemoryHasher):
    def hash(self, password: str) -> str:
        return self._made(password, "", 2)


class Truncating(MemoryHasher):
    """As bcrypt, which looks at 72 bytes."""

    def hash(self, password: str) -> str:
        return super().hash(password[:72])

    def matches(self, password: str, hashed: str) -> bool:
        return super().matches(password[:72], hashed)


def test_the_contract_rejects_wrong_hashers() -> None:
    contract = PasswordsContract()
    with pytest.raises(AssertionError):
        contract.test_two_hashes_of_one_password_differ_and_hold_nothing_of_it(Unsalted(2))
    with pytest.raises(AssertionError):
        contract.test_the_end_of_a_long_password_counts(Truncating(2))
