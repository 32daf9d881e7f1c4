"""NKeys: the written form, checked against a pair that another program made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.errors import InvalidError
from shellwego.core.nkeys import SEED_BYTES, NKey, Role, check_public, parse_seed, verify
from shellwego.core.sensitive import Sensitive

keys = st.builds(NKey, st.sampled_from(Role), st.binary(min_size=SEED_BYTES, max_size=SEED_BYTES).map(Sensitive))


@given(keys)
def test_a_seed_is_read_as_it_was_written(key: NKey) -> None:
    assert parse_seed(key.seed_text) == key
    assert key.seed_text.reveal_text()[:2] == "S" + key.public[0]
    assert key.public[0] == key.role.name[0]
    check_public(key.role, key.public)


@given(keys, st.binary(max_size=100))
def test_what_a_key_signs_is_verified_by_its_public_half_alone(key: NKey, data: bytes) -> None:
    signature = key.sign(data)
    assert verify(key.public, signature, data)
    assert not verify(key.public, signature, data + b"x")
    assert not verify(NKey(key.role, Sensitive(b"another".ljust(SEED_BYTES))).public, signature, data)


@given(keys, st.integers(0, 55), st.sampled_from("A7Z"))
def test_a_changed_letter_makes_it_no_key(key: NKey, place: int, letter: str) -> None:
    changed = key.public[:place] + letter + key.public[place + 1 :]
    if changed != key.public:
        with pytest.raises(InvalidError):
            check_public(key.role, changed)


@pytest.mark.parametrize("text", ["", "S", "SU", "SUAA", "S" * 58, "sua", "é", "A" * 58])
def test_what_is_no_seed_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_seed(Sensitive.of(text))
    assert refused.value.message == "this is no seed of an NKey"


@given(keys)
def test_a_public_key_is_no_seed(key: NKey) -> None:
    with pytest.raises(InvalidError):
        parse_seed(Sensitive.of(key.public))
