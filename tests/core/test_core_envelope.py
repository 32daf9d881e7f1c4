"""What is sealed opens for the resource, tenant and version that it was sealed for, and for nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.envelope import Label, associated_data, decrypt, encrypt
from shellwego.core.errors import ConflictError
from shellwego.core.sensitive import Sensitive

KEY, NONCE, VALUE = Sensitive(b"k" * 32), b"n" * 12, Sensitive.of("postgres://u:p@h/db")
LABEL = Label(purpose="secret", subject="sec_1", organization_id="org_1", project_id="prj_1")


def test_a_value_comes_back() -> None:
    sealed = encrypt(KEY, NONCE, VALUE, LABEL.value_context(3))
    assert VALUE.reveal() not in sealed
    assert decrypt(KEY, NONCE, sealed, LABEL.value_context(3)) == VALUE


@pytest.mark.parametrize(
    "moved",
    [
        replace(LABEL, purpose="totp"),
        replace(LABEL, subject="sec_2"),
        replace(LABEL, organization_id="org_2"),
        replace(LABEL, project_id="prj_2"),
        replace(LABEL, organization_id="prj_1", project_id="org_1"),
    ],
)
def test_a_row_that_was_moved_does_not_open(moved: Label) -> None:
    sealed = encrypt(KEY, NONCE, VALUE, LABEL.value_context(3))
    with pytest.raises(ConflictError):
        decrypt(KEY, NONCE, sealed, moved.value_context(3))


def test_one_version_is_not_another() -> None:
    sealed = encrypt(KEY, NONCE, VALUE, LABEL.value_context(3))
    with pytest.raises(ConflictError):
        decrypt(KEY, NONCE, sealed, LABEL.value_context(4))


@pytest.mark.parametrize("nonce", [b"", b"x" * 12, b"n" * 200])
def test_another_nonce_opens_nothing_and_is_no_defect(nonce: bytes) -> None:
    with pytest.raises(ConflictError):
        decrypt(KEY, nonce, encrypt(KEY, NONCE, VALUE, {}), {})


def test_two_contexts_never_spell_the_same() -> None:
    assert associated_data({"a": "b", "c": "d"}) != associated_data({"a": 'b","c":"d'})
    assert associated_data({"a": "1", "b": "2"}) == associated_data({"b": "2", "a": "1"})
