"""What another resolver answered: whether it answers our question, and what of it is kept.

Theory. Only the answer section is believed, and of it only what belongs to the question: records of the name that was asked
for, or of one that its aliases lead to. Nothing is ever looked up by a name that came along. What is kept are the bytes
behind the question, which has the same length for everybody who asks it, so that compressed names in them stay right;
with them stand the places of all TTLs, which fall while it is kept.
Source: RFC 2181 (5.4.1), RFC 2308 (negative answers), RFC 5452 (what to compare).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from plasmavmc.network.dns import wire
from plasmavmc.network.dns.wire import MalformedError, Query

MAX_TTL_S = 3600
MAX_NEGATIVE_TTL_S = 900
MAX_RECORDS = 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that can be given to all who ask the same."""

    rcode: int
    counts: tuple[int, int]
    """Of answer and authority."""
    body: bytes
    """What follows the question."""
    ttls: tuple[int, ...]
    """Where they are in it."""
    lifetime_s: int
    """0: it is given once."""

    def to(self, query: Query, age_s: int, limit: int) -> bytes:
        """The message for who asks now."""
        body = bytearray(self.body)
        for at in self.ttls:
            left = min(max(struct.unpack_from("!I", body, at)[0] - age_s, 0), MAX_TTL_S)
            struct.pack_into("!I", body, at, left)
        tail = wire.opt_record(0, dnssec=query.dnssec) if query.edns >= 0 else b""
        flags = wire.QR | query.flags & (wire.RD | wire.CD) | wire.RA | self.rcode
        counts = self.counts
        if wire.HEADER + len(query.question) + len(body) + len(tail) > limit:
            body, counts, flags = bytearray(), (0, 0), flags | wire.TC
        head = wire.pack_header(query.id, flags, *counts, int(bool(tail)))
        return head + query.question + body + tail


def answers(data: bytes, id_: int, question: bytes) -> bool:
    """Whether a message says that it answers this question; the letters' case must be the same.

    Raises:
        MalformedError: it is no message.
    """
    told, flags, questions, *_ = wire.header_of(data)
    section = data[wire.HEADER : wire.HEADER + len(question)]
    return told == id_ and bool(flags & wire.QR) and not flags & 0x7800 and questions == 1 and section == question


def rcode_of(data: bytes) -> int:
    return wire.header_of(data)[1] & 0xF


def read(data: bytes, query: Query) -> Reply:
    """Take what is of use of a message that answers the question.

    Raises:
        MalformedError: it cannot be read, or holds records that nobody asked for.
    """
    _, flags, _, answer_count, authority_count, _ = wire.header_of(data)
    rcode = flags & 0xF
    if answer_count + authority_count > MAX_RECORDS:
        raise MalformedError("too many records")
    start = at = wire.HEADER + len(query.question)
    chain, ttls, shortest, found = {query.name}, [], MAX_TTL_S, False
    for _ in range(answer_count):
        owner, type_, ttl_at, data_at, at = wire.read_record(data, at)
        if not _belongs(owner, type_, chain):
            raise MalformedError("a record that nobody asked for")
        if type_ == wire.CNAME:
            chain.add(wire.expanded(data, data_at)[0])
        found = found or type_ == query.type
        ttls.append(ttl_at - start)
        shortest = min(shortest, _ttl(data, ttl_at))
    if rcode == wire.NOERROR and found and not query.dnssec:
        return Reply(rcode, (answer_count, 0), data[start:at], tuple(ttls), shortest)
    negative = 0
    for _ in range(authority_count):
        owner, type_, ttl_at, data_at, at = wire.read_record(data, at)
        ttls.append(ttl_at - start)
        shortest = min(shortest, _ttl(data, ttl_at))
        if type_ == wire.SOA and at - data_at >= 20 and any(wire.is_within(name, owner) for name in chain):
            negative = min(_ttl(data, ttl_at), _ttl(data, at - 4), MAX_NEGATIVE_TTL_S)
    lifetime = shortest if rcode == wire.NOERROR and found else min(shortest, negative)
    if rcode not in (wire.NOERROR, wire.NXDOMAIN):
        lifetime = 0
    return Reply(rcode, (answer_count, authority_count), data[start:at], tuple(ttls), lifetime)


def _belongs(owner: bytes, type_: int, chain: set[bytes]) -> bool:
    if type_ == wire.DNAME:
        return any(wire.is_within(name, owner) for name in chain)
    return owner in chain or (type_ == wire.RRSIG and any(wire.is_within(name, owner) for name in chain))


def _ttl(data: bytes, at: int) -> int:
    """RFC 2181 (8): one with the highest bit is none."""
    ttl: int = struct.unpack_from("!I", data, at)[0]
    return 0 if ttl >= 1 << 31 else ttl
