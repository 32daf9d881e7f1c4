"""Addresses, passwords and codes: what is taken, in which form, and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyotp import TOTP

from shellwego.core.credentials import KNOWN_SOURCES, Credentials
from shellwego.core.emails import normalized
from shellwego.core.passwords import chosen, prepared
from shellwego.core.totp import (
    RECOVERY_BYTES,
    matching_step,
    recovery_code,
    recovery_hash,
    secret_text,
    spend,
)

SECRET = secret_text(b"12345678901234567890")
VECTORS = {59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037"}
"""RFC 6238, appendix B, of which the last six digits are shown here."""


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("admin@localhost", "admin@localhost"),
        ("Ann@Example.ORG", "ann@example.org"),
        ("ＡＮＮ@example.org", "ann@example.org"),
        ("jörg@bücher.example", "jörg@bücher.example"),
        ("jo\u0308rg@bücher.example", "jörg@bücher.example"),
        ("straße@x", "strasse@x"),
        ("a+b@x", "a+b@x"),
    ],
)
def test_an_address_has_one_form(text: str, form: str) -> None:
    assert normalized(text) == form


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "@",
            "a@",
            "@x",
            "a",
            "a@b@c",
            "a b@x",
            "a\0@x",
            "a\n@x",
            "a\u200b@x",
            "a@\u202ex",
            "a@-x",
            "a@x..y",
            "a@.x",
        ),
        *("a" * 65 + "@x", "a@" + "x" * 260, "\ud800@x"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        normalized(text)


@given(st.text(max_size=40))
def test_the_form_of_a_form_is_itself(text: str) -> None:
    try:
        form = normalized(text)
    except ValueError:
        return
    assert normalized(form) == form


def test_a_password_is_the_same_from_every_keyboard() -> None:
    assert prepared("Cafe\u0301 au\u00a0lait!") == prepared("Café au lait!")


@pytest.mark.parametrize("password", ["x" * 1025, "é" * 513, "null\0byte-inside", "line\nbreak-inside", "\ud800" * 12])
def test_a_password_that_cannot_be_typed_or_is_endless_is_refused(password: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        prepared(password)
    assert password not in str(caught.value)


@pytest.mark.parametrize("password", ["short", "admin@localhost", "ADMIN@localhost", "aaaaaaaaaaaaaaaa"])
def test_a_new_password_is_not_what_anybody_tries_first(password: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        chosen(password, "admin@localhost")
    assert chosen("correct horse battery", "admin@localhost")


@pytest.mark.parametrize(("now", "code"), VECTORS.items())
def test_codes_are_those_of_the_rfc(now: int, code: str) -> None:
    assert matching_step(SECRET, code, now, 0) == now // 30


@given(now=st.integers(100, 2**33), drift=st.integers(-3, 3), last=st.integers(-3, 3))
def test_a_code_is_taken_one_step_off_and_never_again(now: int, drift: int, last: int) -> None:
    step = now // 30 + drift
    code = TOTP(SECRET).generate_otp(step)
    taken = matching_step(SECRET, code, now, now // 30 + last)
    if taken is None:
        assert abs(drift) > 1 or drift <= last
    else:
        assert taken > now // 30 + last
        assert matching_step(SECRET, code, now, taken) is None


@pytest.mark.parametrize("code", ["", "12345", "1234567", "２87082", "28708 ", "abcdef", "-87082", "\0" * 6])
def test_what_is_no_code_is_not_taken(code: str) -> None:
    assert matching_step(SECRET, code, 59.0, 0) is None


def test_a_recovery_code_is_taken_once_however_it_is_typed() -> None:
    codes = [recovery_code(bytes([number]) * RECOVERY_BYTES) for number in range(3)]
    hashes = tuple(recovery_hash(code) for code in codes)
    left = spend(hashes, codes[1].upper().replace("-", " "))
    assert left == (hashes[0], hashes[2])
    assert spend(left, codes[1]) is None
    assert spend(hashes, "") is None
    assert spend((), codes[0]) is None


def test_the_sources_of_a_user_are_bounded_and_the_newest_stay() -> None:
    known: tuple[str, ...] = ()
    for number in range(40):
        known = Credentials(id="u", known_sources=known).with_source(str(number))
    assert len(known) == KNOWN_SOURCES
    assert known[-1] == "39"
    assert Credentials(id="u", known_sources=known).with_source("30")[-1] == "30"


def test_credentials_do_not_tell_what_they_hold() -> None:
    text = repr(Credentials(id="u", password_hash="HASH", totp_sealed="SEALED", recovery_hashes=("RECOVERY",)))
    assert not any(word in text for word in ("HASH", "SEALED", "RECOVERY"))
