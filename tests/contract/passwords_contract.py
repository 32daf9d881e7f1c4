"""What every password hasher must do."""

from __future__ import annotations

import pytest

from shellwego.ports.passwords import PasswordHasher


class PasswordsContract:
    """Give `hasher` and `weaker`, the same with weaker parameters, as fixtures."""

    def test_a_password_matches_its_hash_and_no_other(self, hasher: PasswordHasher) -> None:
        hashed = hasher.hash("correct horse")
        assert hasher.matches("correct horse", hashed)
        assert not hasher.matches("correct horsE", hashed)
        assert not hasher.matches("", hashed)

    def test_two_hashes_of_one_password_differ_and_hold_nothing_of_it(self, hasher: PasswordHasher) -> None:
        first, second = hasher.hash("correct horse"), hasher.hash("correct horse")
        assert first != second
        assert "correct" not in first

    @pytest.mark.parametrize("hashed", ["", "x", "$argon2id$", "$argon2id$v=19$m=65536,t=3,p=4$AAAA$AAAA"])
    def test_what_is_no_hash_matches_nothing(self, hasher: PasswordHasher, hashed: str) -> None:
        assert not hasher.matches("correct horse", hashed)

    def test_the_end_of_a_long_password_counts(self, hasher: PasswordHasher) -> None:
        assert not hasher.matches("x" * 1023 + "y", hasher.hash("x" * 1023 + "z"))

    def test_a_hash_of_weaker_parameters_is_outdated_and_matches_still(
        self, hasher: PasswordHasher, weaker: PasswordHasher
    ) -> None:
        old = weaker.hash("correct horse")
        assert hasher.matches("correct horse", old)
        assert hasher.is_outdated(old)
        assert not hasher.is_outdated(hasher.hash("correct horse"))
