"""The chain of audit records: what makes a record that was changed, removed, slipped in or moved show.

Theory. Each organization has a chain of its own, and the platform one for what belongs to none. A chained record carries
its position (chain and number, without a gap), the hash of the record before it, and its own hash over all of that, so a
copy of one organization's records can be checked without those of others. A hash is no signature: who can write the
database can make a whole chain anew. What he cannot do is to make one that still ends in, or passes through, a hash that
somebody wrote down elsewhere: that is the *anchor*.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from enum import StrEnum

from shellwego.core.events import AuditRecord

PLATFORM = "platform"
"""The chain of records that belong to no organization."""
BEFORE_FIRST = "0" * 64
"""Stands for the hash before a chain's first record, and for that of a record that is gone."""
_DIGITS = 12
MOST_RECORDS = 10**_DIGITS - 1


class Fault(StrEnum):
    CHANGED = "changed"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where a chain does not hold. `record_id` is empty where there is no record to name."""

    position: str
    fault: Fault
    message: str
    record_id: str = ""


def chain_of(record: AuditRecord) -> str:
    return record.organization_id or PLATFORM


def position(chain: str, number: int) -> str:
    """Sorts as text by number within a chain."""
    return f"{chain}/{number:0{_DIGITS}}"


def split_position(text: str) -> tuple[str, int]:
    """Chain and number; the number is 0 where the text is no position."""
    chain, _, digits = text.rpartition("/")
    known = len(digits) == _DIGITS and digits.isascii() and digits.isdecimal()
    return chain, int(digits) if known else 0


def digest(record: AuditRecord) -> str:
    """SHA-256, in hexadecimal, of the JSON array of all fields but the hash itself: in this order, ASCII, no spaces."""
    values = (
        record.position,
        record.previous,
        record.id,
        float(record.time),
        record.organization_id,
        record.project_id,
        record.actor,
        record.action,
        record.resource,
        record.allowed,
        record.detail,
        record.trace_id,
    )
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def chained(record: AuditRecord, number: int, previous: str) -> AuditRecord:
    """The record as the next of its chain, after the one with this hash."""
    placed = replace(record, position=position(chain_of(record), number), previous=previous)
    return replace(placed, hash=digest(placed))


def break_at(before: AuditRecord | None, record: AuditRecord) -> Break | None:
    """Where the chain breaks between a sound record and the one that is found after it; `before` is None at the start."""
    chain, number = split_position(record.position)
    expected = 1 if before is None else split_position(before.position)[1] + 1
    if digest(record) != record.hash or chain != chain_of(record) or number == 0:
        return Break(record.position, Fault.CHANGED, "its content does not fit its hash", record.id)
    if number < expected:
        return Break(record.position, Fault.INSERTED, "there is another record at its place", record.id)
    if number > expected:
        gone = f"{number - expected} are missing before number {number}"
        return Break(position(chain, expected), Fault.REMOVED, gone)
    if record.previous != (BEFORE_FIRST if before is None else before.hash):
        words = "it does not follow the record before it: one of the two was exchanged or moved"
        return Break(record.position, Fault.REORDERED, words, record.id)
    return None


def end_break(last: str, expected: str) -> Break | None:
    """Whether records are gone from the end of a chain: `last` is the last position found, `expected` the last given."""
    chain, number = split_position(expected)
    found = split_position(last)[1]
    if found >= number:
        return None
    return Break(position(chain, found + 1), Fault.REMOVED, f"the last {number - found} of the chain are missing")
