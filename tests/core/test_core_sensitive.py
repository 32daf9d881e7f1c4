"""A sensitive value shows itself to nobody who does not ask for it by name."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict, dataclass

import msgspec
import pytest
import structlog

from shellwego.core.sensitive import PLACEHOLDER, Sensitive

VALUE = "hunter2-hunter2"


@dataclass(frozen=True)
class Holder:
    password: Sensitive


@pytest.fixture
def value() -> Sensitive:
    return Sensitive.of(VALUE)


def test_whoever_asks_gets_it(value: Sensitive) -> None:
    assert (value.reveal(), value.reveal_text(), len(value)) == (VALUE.encode(), VALUE, len(VALUE))


def test_two_of_the_same_value_are_equal(value: Sensitive) -> None:
    assert value == Sensitive.of(VALUE) != Sensitive.of("other")
    assert value != VALUE


def test_no_text_made_of_it_shows_it(value: Sensitive) -> None:
    texts = [str(value), repr(value), f"{value}", f"{value!r:>40}", "%s" % value, repr(Holder(value)), repr([value])]  # noqa: UP031 - one of the ways
    assert all(VALUE not in text for text in texts)
    assert str(value) == PLACEHOLDER


def test_nothing_encodes_it(value: Sensitive) -> None:
    for encode in (json.dumps, msgspec.json.encode, msgspec.msgpack.encode, pickle.dumps, copy.deepcopy, bytes):
        with pytest.raises((TypeError, msgspec.ValidationError)):
            encode(value)  # type: ignore[operator]
    with pytest.raises(TypeError):
        asdict(Holder(value))
    with pytest.raises(TypeError):
        hash(value)
    with pytest.raises(TypeError):
        vars(value)


def test_a_log_line_does_not_show_it(value: Sensitive, capsys: pytest.CaptureFixture[str]) -> None:
    structlog.wrap_logger(structlog.PrintLogger(), processors=[structlog.processors.KeyValueRenderer()]).info(
        "set", value=value, holder=Holder(value)
    )
    assert VALUE not in capsys.readouterr().out
