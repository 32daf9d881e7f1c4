"""DNS messages as bytes: questions read, answers written.

A name is kept as it travels: labels with their lengths and the empty label at the end, in lower case, so that it is a key
as it is. A question holds exactly one name, which nobody has reason to compress; names in answers of others may be
compressed (`expanded`).
Source: RFC 1035 (4.1), RFC 2181, RFC 2782 (SRV), RFC 6891 (EDNS0).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from plasmavmc.host.operations import QUESTION_BYTES

A, NS, CNAME, SOA, PTR, TXT, AAAA, SRV, DNAME, OPT, RRSIG = 1, 2, 5, 6, 12, 16, 28, 33, 39, 41, 46
IXFR, AXFR, ANY = 251, 252, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16

QR, AA, TC, RD, RA, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
DO = 0x8000
"""Of the flags in an OPT record."""
HEADER = 12
MAX_NAME = 255
MAX_LABEL = 63
MAX_MESSAGE = 65_535
PLAIN_UDP = 512
PAYLOAD = QUESTION_BYTES
"""Bytes of UDP that we send and take at most."""
_HEADER = struct.Struct("!6H")
_TYPE_AND_CLASS = struct.Struct("!2H")
_RECORD = struct.Struct("!2HIH")


class MalformedError(Exception):
    """Bytes that are no DNS message, or none that we take."""


@dataclass(frozen=True, slots=True)
class Query:
    """A question, as it came."""

    id: int
    flags: int
    name: bytes
    type: int
    klass: int
    question: bytes
    """Its section in the message, in the asker's letters."""
    edns: int = -1
    """Version of EDNS that it speaks; -1: none."""
    payload: int = PLAIN_UDP
    dnssec: bool = False
    """The asker wants signatures."""

    @property
    def opcode(self) -> int:
        return self.flags >> 11 & 0xF


@dataclass(frozen=True, slots=True)
class Record:
    """One record of an answer; an empty owner is the name that was asked for."""

    type: int
    ttl: int
    data: bytes
    owner: bytes = b""


@dataclass(frozen=True, slots=True)
class Section:
    """Records as they travel, and how many."""

    count: int = 0
    data: bytes = b""


NO_RECORDS = Section()


def name_of(text: str) -> bytes:
    """A name from text such as `web.internal`.

    Raises:
        MalformedError: a label is empty or too long, the whole too long, or not ASCII.
    """
    try:
        labels = text.lower().rstrip(".").encode("ascii").split(b".") if text.strip(".") else []
    except UnicodeEncodeError as error:
        raise MalformedError(f"{text!r:.80} is not ASCII") from error
    if any(not 0 < len(label) <= MAX_LABEL for label in labels):
        raise MalformedError(f"{text!r:.80} has a label that is empty or longer than {MAX_LABEL} characters")
    wire = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(wire) > MAX_NAME:
        raise MalformedError(f"{text!r:.80} is longer than a name can be")
    return wire


def labels_of(name: bytes) -> list[bytes]:
    """The labels of a name, without the empty one at its end."""
    found, at = [], 0
    while name[at]:
        found.append(name[at + 1 : at + 1 + name[at]])
        at += 1 + name[at]
    return found


def parent_of(name: bytes) -> bytes:
    """The name without its first label; of the root itself, the root."""
    return name[1 + name[0] :] or name


def is_within(name: bytes, zone: bytes) -> bool:
    """Whether a name is a zone's apex or below it."""
    while len(name) > len(zone):
        name = parent_of(name)
    return name == zone


def parse_query(data: bytes) -> Query:
    """Read a question.

    Raises:
        MalformedError: it is no question, or has more or other parts than one has.
    """
    id_, flags, questions, answers, authority, additional = _header(data)
    if flags & QR:
        raise MalformedError("an answer")
    if questions != 1 or answers or authority or additional > 1:
        raise MalformedError("sections that no question has")
    end = _end_of_plain_name(data, HEADER)
    if end + 4 > len(data):
        raise MalformedError("a question that ends too early")
    type_, klass = _TYPE_AND_CLASS.unpack_from(data, end)
    end += 4
    query = Query(id_, flags, data[HEADER : end - 4].lower(), type_, klass, data[HEADER:end])
    if additional:
        return _with_edns(query, data, end)
    if end != len(data):
        raise MalformedError("bytes behind the question")
    return query


def _with_edns(query: Query, data: bytes, at: int) -> Query:
    if at + 11 > len(data) or data[at]:
        raise MalformedError("an additional record that is no OPT")
    type_, payload, extended, length = _RECORD.unpack_from(data, at + 1)
    if type_ != OPT or at + 11 + length != len(data):
        raise MalformedError("an additional record that is no OPT, or does not end where the message does")
    return Query(
        query.id,
        query.flags,
        query.name,
        query.type,
        query.klass,
        query.question,
        edns=extended >> 16 & 0xFF,
        payload=min(max(payload, PLAIN_UDP), PAYLOAD),
        dnssec=bool(extended & DO),
    )


def _header(data: bytes) -> tuple[int, int, int, int, int, int]:
    if not HEADER <= len(data) <= MAX_MESSAGE:
        raise MalformedError("no header")
    id_, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
    return id_, flags, questions, answers, authority, additional


def is_cut(data: bytes) -> bool:
    """Whether there is more to be had by TCP.

    Raises:
        MalformedError: it has no header.
    """
    return bool(_header(data)[1] & TC)


def header_of(data: bytes) -> tuple[int, int, int, int, int, int]:
    """Id, flags, and the counts of the four sections.

    Raises:
        MalformedError: it has no header.
    """
    return _header(data)


def _end_of_plain_name(data: bytes, at: int) -> int:
    start = at
    while True:
        if at >= len(data):
            raise MalformedError("a name that ends too early")
        length = data[at]
        at += 1 + length
        if not length:
            break
        if length > MAX_LABEL:
            raise MalformedError("a label that is too long, or compressed")
    if at - start > MAX_NAME:
        raise MalformedError("a name that is too long")
    return at


def expanded(data: bytes, at: int) -> tuple[bytes, int]:
    """A name that may be compressed, and where what follows it begins. Each pointer leads further back than all before it,
    so there is an end.

    Raises:
        MalformedError: it is none.
    """
    labels: list[bytes] = []
    size, end, limit = 1, -1, at
    while True:
        if at >= len(data):
            raise MalformedError("a name that ends too early")
        length = data[at]
        if length >= 0xC0:
            if at + 2 > len(data):
                raise MalformedError("a pointer that ends too early")
            end = end if end >= 0 else at + 2
            at = (length & 0x3F) << 8 | data[at + 1]
            if not HEADER <= at < limit:
                raise MalformedError("a pointer that does not lead back")
            limit = at
            continue
        if length > MAX_LABEL:
            raise MalformedError("a label of an unknown kind")
        if not length:
            return b"".join(labels).lower() + b"\0", end if end >= 0 else at + 1
        size += 1 + length
        if size > MAX_NAME or at + 1 + length > len(data):
            raise MalformedError("a name that is too long")
        labels.append(data[at : at + 1 + length])
        at += 1 + length


def encode(
    query: Query,
    rcode: int,
    answers: Section = NO_RECORDS,
    authority: Section = NO_RECORDS,
    additional: Section = NO_RECORDS,
    *,
    authoritative: bool = False,
    limit: int = MAX_MESSAGE,
) -> bytes:
    """An answer of our own. One that is longer than the limit is cut to nothing but the word that it is (TC); additional
    records are left out first."""
    flags = QR | (query.flags & (RD | CD)) | RA | (AA if authoritative else 0) | rcode & 0xF
    tail = opt_record(rcode >> 4, dnssec=query.dnssec) if query.edns >= 0 else b""
    body, extra = answers.data + authority.data, additional.data
    counts = [answers.count, authority.count, additional.count]
    if HEADER + len(query.question) + len(body) + len(extra) + len(tail) > limit:
        extra, counts[2] = b"", 0
    if HEADER + len(query.question) + len(body) + len(tail) > limit:
        body, counts, flags = b"", [0, 0, 0], flags | TC
    head = _HEADER.pack(query.id, flags, 1, counts[0], counts[1], counts[2] + bool(tail))
    return head + query.question + body + extra + tail


def encode_bare(data: bytes, rcode: int) -> bytes:
    """The answer to what cannot be read but for its header."""
    id_, flags, *_ = _header(data)
    return _HEADER.pack(id_, QR | flags & (0x7800 | RD) | RA | rcode, 0, 0, 0, 0)


def encode_query(id_: int, question: bytes, flags: int, *, edns: bool, dnssec: bool) -> bytes:
    """A question of ours."""
    head = _HEADER.pack(id_, flags, 1, 0, 0, int(edns))
    return head + question + (opt_record(0, dnssec=dnssec) if edns else b"")


def opt_record(extended_rcode: int, *, dnssec: bool) -> bytes:
    """What tells that we speak EDNS, and how much we take."""
    return b"\0" + _RECORD.pack(OPT, PAYLOAD, extended_rcode << 24 | (DO if dnssec else 0), 0)


def pack_header(id_: int, flags: int, answers: int, authority: int, additional: int) -> bytes:
    """The header of a message with one question."""
    return _HEADER.pack(id_, flags, 1, answers, authority, additional)


def section(records: Sequence[Record]) -> Section:
    """Records of one section of an answer."""
    told = (
        (record.owner or b"\xc0\x0c") + _RECORD.pack(record.type, IN, record.ttl, len(record.data)) + record.data
        for record in records
    )
    return Section(len(records), b"".join(told))


def read_record(data: bytes, at: int) -> tuple[bytes, int, int, int, int]:
    """One record of a message: owner, type, where its TTL and its data are, and where the next begins.

    Raises:
        MalformedError: it is none.
    """
    owner, at = expanded(data, at)
    if at + 10 > len(data):
        raise MalformedError("a record that ends too early")
    type_, _, _, length = _RECORD.unpack_from(data, at)
    if at + 10 + length > len(data):
        raise MalformedError("a record that is longer than its message")
    return owner, type_, at + 4, at + 10, at + 10 + length


def address_data(address: IPv4Address | IPv6Address) -> tuple[int, bytes]:
    """Type and data of an address record."""
    return (A if address.version == 4 else AAAA), address.packed


def text_data(text: str) -> bytes:
    """Data of a TXT record: pieces of at most 255 bytes."""
    raw = text.encode()
    pieces = [raw[at : at + 255] for at in range(0, len(raw), 255)] or [b""]
    return b"".join(bytes((len(piece),)) + piece for piece in pieces)


def service_data(target: bytes, port: int) -> bytes:
    """Data of an SRV record; all are equal."""
    return struct.pack("!3H", 0, 10, port) + target


def start_of_authority(apex: bytes, mailbox: bytes, negative_ttl: int) -> bytes:
    """Data of an SOA record of a zone that nobody transfers."""
    return apex + mailbox + struct.pack("!5I", 1, 3600, 600, 86_400, negative_ttl)
