"""DNS messages as bytes, whatever somebody sends."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.network.dns import wire
from plasmavmc.network.dns.resolver import Resolver, ToForward
from plasmavmc.network.dns.wire import MalformedError
from tests.engine.dns_messages import edns, question, told_resolver, with_edns

ASKER = "10.64.0.2"


def labels(text: str) -> bytes:
    return wire.name_of(text)


def test_a_question_is_read_with_its_name_in_lower_case() -> None:
    query = wire.parse_query(question("Web.INTERNAL", wire.AAAA, id_=7))
    assert (query.id, query.name, query.type, query.klass) == (7, labels("web.internal"), wire.AAAA, wire.IN)
    assert query.question.startswith(b"\x03Web\x08INTERNAL\x00")
    assert query.edns == -1


def test_edns_tells_how_much_the_asker_takes_and_we_send_no_more_than_passes_every_way() -> None:
    assert wire.parse_query(with_edns(question("a.internal"), 4096)).payload == wire.PAYLOAD
    assert wire.parse_query(with_edns(question("a.internal"), 100)).payload == wire.PLAIN_UDP
    assert wire.parse_query(with_edns(question("a.internal"), 1000, dnssec=True)).dnssec


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"short",
        question("a.internal")[:-1],
        question("a.internal") + b"x",
        question("a.internal", flags=wire.QR),
        question("a.internal", count=0),
        question("a.internal", count=2),
        struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c" + struct.pack("!2H", 1, 1),
        struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x40" + b"a" * 64 + b"\0" + struct.pack("!2H", 1, 1),
        struct.pack("!6H", 1, 0, 1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 4 + b"\0" + struct.pack("!2H", 1, 1),
        with_edns(question("a.internal"))[:-1],
        with_edns(question("a.internal"))[:-11] + b"\x01x" + edns(1232)[1:],
    ],
)
def test_what_is_no_question_is_refused(message: bytes) -> None:
    with pytest.raises(MalformedError):
        wire.parse_query(message)


def test_a_name_may_have_255_bytes_and_no_more() -> None:
    longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert len(wire.name_of(longest)) == wire.MAX_NAME
    assert wire.parse_query(question(longest)).name == wire.name_of(longest)
    with pytest.raises(MalformedError):
        wire.name_of(longest + "e")
    with pytest.raises(MalformedError):
        wire.name_of("a" * 64)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc0\x0c",  # itself
        b"\x01a\xc0\x0c",  # round and round
        b"\xc0\x0e\xc0\x0c",  # forth, then back
        b"\xc0",
        b"\xc0\x04",  # into the header
        b"\x80a\x00",
        b"\x05ab",
    ],
)
def test_a_compressed_name_that_does_not_end_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        wire.expanded(bytes(wire.HEADER) + data, wire.HEADER)


def test_a_compressed_name_leads_back() -> None:
    data = bytes(wire.HEADER) + labels("Web.internal") + b"\x03api\xc0\x10"
    name, end = wire.expanded(data, wire.HEADER + len(labels("web.internal")))
    assert (name, end) == (labels("api.internal"), len(data))


@given(st.binary(max_size=600))
def test_whatever_is_sent_gets_an_answer_that_fits_it_or_none(data: bytes) -> None:
    answer = told_resolver().hear(data, ASKER, udp=True)
    if isinstance(answer, bytes):
        assert answer[:2] == data[:2]
        assert answer[2] & 0x80
        assert len(answer) <= wire.PAYLOAD


@given(st.binary(max_size=60), st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=30))
def test_a_question_that_is_nearly_right_is_never_more_than_answered(
    name: bytes, type_: int, flags: int, behind: bytes
) -> None:
    data = struct.pack("!6H", 1, flags & ~wire.QR, 1, 0, 0, 1 if behind else 0) + name + b"\0"
    answer = told_resolver().hear(data + struct.pack("!2H", type_, 1) + behind, ASKER, udp=True)
    assert isinstance(answer, bytes | ToForward)


@given(st.binary(max_size=300), st.integers(0, 320))
def test_any_bytes_as_a_name_end_somewhere_or_are_refused(data: bytes, at: int) -> None:
    try:
        name, end = wire.expanded(data, at)
    except MalformedError:
        return
    assert len(name) <= wire.MAX_NAME
    assert at < end <= len(data)


def test_an_answer_is_never_answered() -> None:
    assert Resolver().hear(question("a.internal", flags=wire.QR), ASKER, udp=True) is None
