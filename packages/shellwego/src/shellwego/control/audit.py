"""Audit records: their chaining after the commit, and the proof that the chain holds.

A record commits with the change that it tells of, or with nothing else where it tells of a refusal; so none is lost. It is
chained in a transaction of its own, so that changes that commit at the same time never wait for one another: the relay
takes what has no position, in the order of birth, and gives it the next number of its chain from a counter of the store.
Two relays meet at that counter and one of them looks again, so a number is given once and there is no hole. Between commit
and chaining (milliseconds; a crash leaves it to the next start) a record stands outside of the chain: it can still be
taken away unseen, by who can write the database. `pending` tells how many there are; what is chained stays as it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from shellwego.control.authorization import Access
from shellwego.control.events import ScopeTarget, within_scope
from shellwego.control.marks import mark
from shellwego.control.numbering import PORTION, Numbers, give
from shellwego.control.scopes import Scope
from shellwego.control.unit import Unit
from shellwego.core.audit import (
    BEFORE_FIRST,
    MOST_RECORDS,
    Break,
    Fault,
    break_at,
    chain_of,
    chained,
    end_break,
    position,
    split_position,
)
from shellwego.core.errors import InvalidError
from shellwego.core.events import AuditRecord
from shellwego.ports.store import Op, Order, Scalar, Transaction, Where, eq

BATCH = 500
MOST_HEADS = 100
_COUNTER = "audit/"
_PENDING = eq("position", "")
_CHAINED = Where("position", Op.GT, "")


@dataclass(frozen=True, slots=True)
class Anchor:
    """A head that was written down earlier: the record at this position had this hash."""

    position: str
    hash: str


@dataclass(frozen=True, slots=True)
class Verification:
    checked: int
    pending: int
    heads: tuple[Anchor, ...]
    """The newest record of each chain, at most `MOST_HEADS`; kept elsewhere, each is an anchor for a later check."""
    broken: Break | None


@dataclass(slots=True)
class _Walk:
    """A chain, or all of them one after another, as far as they were checked."""

    expected: dict[str, str]
    """Chain → position that was last given when the walk began."""
    anchor: Anchor | None
    last: AuditRecord | None = None
    checked: int = 0
    heads: list[Anchor] | None = None
    broken: Break | None = None

    def take(self, records: list[AuditRecord]) -> None:
        for record in records:
            before = self.last
            if before is not None and split_position(before.position)[0] != split_position(record.position)[0]:
                self.end_chain()
                before = None
            self.broken = self.broken or break_at(before, record) or self._anchor_break(record)
            if self.broken is not None:
                return
            self.checked += 1
            self.last = record

    def end_chain(self) -> None:
        """The chain of the last record has no further one."""
        if self.last is None:
            return
        expected = self.expected.pop(split_position(self.last.position)[0], "")
        self.broken = self.broken or (end_break(self.last.position, expected) if expected else None)
        self.heads = [*(self.heads or ()), Anchor(self.last.position, self.last.hash)]
        self.last = None

    def end(self) -> None:
        """There is nothing more: chains that were never met are gone as a whole."""
        self.end_chain()
        for chain, expected in sorted(self.expected.items()):
            self.broken = self.broken or end_break(position(chain, 0), expected)
        if self.broken is None and self.anchor is not None:
            self.broken = Break(self.anchor.position, Fault.REMOVED, "the record of the anchor is not there")

    def _anchor_break(self, record: AuditRecord) -> Break | None:
        anchor = self.anchor
        if anchor is None or record.position != anchor.position:
            return None
        self.anchor = None
        if record.hash == anchor.hash:
            return None
        return Break(record.position, Fault.CHANGED, "it is not the record of the anchor", record.id)


def next_records(tx: Transaction) -> Numbers[AuditRecord]:
    """The next records with their places in their chains."""
    pending = tx.audit.select(_PENDING, limit=PORTION)
    seen = {_COUNTER + chain: mark(tx, _COUNTER + chain) for chain in {chain_of(record) for record in pending}}
    values, hashes, rows = dict(seen), dict[str, str](), []
    for record in pending:
        chain = chain_of(record)
        number = values[_COUNTER + chain] = values[_COUNTER + chain] + 1
        previous = hashes.get(chain) or _hash_at(tx, chain, number - 1)
        rows.append(chained(record, number, previous))
        hashes[chain] = rows[-1].hash
    return Numbers(seen, values, tuple(rows))


def chain_records(unit: Unit, numbers: Numbers[AuditRecord]) -> bool:
    """Put the records into their chains; False, and nothing is stored, where another relay chained some meanwhile."""
    return give(unit.tx, numbers, unit.tx.audit)


def _hash_at(tx: Transaction, chain: str, number: int) -> str:
    found = tx.audit.select(eq("position", position(chain, number)), limit=1) if number else []
    return found[0].hash if found else BEFORE_FIRST


def parse_anchor(text: str) -> Anchor | None:
    """`chain/number:hash`, as a verification shows a head; empty: none.

    Raises:
        InvalidError: it is neither.
    """
    if not text:
        return None
    place, _, digest = text.rpartition(":")
    chain, number = split_position(place)
    if not (chain and number and len(digest) == len(BEFORE_FIRST)):
        raise InvalidError("bad-anchor", "an anchor is a head of an earlier verification, as chain/number:hash")
    return Anchor(place, digest)


async def verify(access: Access, target: ScopeTarget, anchor: Anchor | None) -> Verification:
    """Walk the chain that holds the scope's records, its organization's, or all chains for the platform as a whole.

    Raises:
        InvalidError: the anchor is of a chain that is not walked.
    """
    walk, pending = await access.read(target, lambda tx, scope: _begin(tx, scope, anchor))
    async with aclosing(_batches(access, target, _whole_chain)) as batches:
        async for records in batches:
            walk.take(records)
            if walk.broken is not None:
                break
    if walk.broken is None:
        walk.end()
    return Verification(walk.checked, pending, tuple(walk.heads or ())[:MOST_HEADS], walk.broken)


def _begin(tx: Transaction, scope: Scope, anchor: Anchor | None) -> tuple[_Walk, int]:
    """What is expected, asked before the walk: what is chained meanwhile is found beyond it, and does no harm."""
    chain = scope.organization_id
    counters = tx.counters.select() if not chain else [found] if (found := tx.counters.get(_COUNTER + chain)) else []
    expected = {
        name: position(name, counter.value)
        for counter in counters
        if (name := counter.id.removeprefix(_COUNTER)) != counter.id
    }
    if anchor and chain and split_position(anchor.position)[0] != chain:
        raise InvalidError("foreign-anchor", "the anchor is of another chain than the one that is asked for")
    conditions = (eq("organization_id", chain),) if chain else ()
    return _Walk(expected, anchor), tx.audit.count(_PENDING, *conditions)


def _whole_chain(scope: Scope) -> tuple[Where, ...]:
    """The chain in which the scope's records stand, those of its organization's other projects included."""
    chain = scope.organization_id
    if not chain:
        return (_CHAINED,)
    first, last = position(chain, 1), position(chain, MOST_RECORDS)
    return (Where("position", Op.GTE, first), Where("position", Op.LTE, last))


async def export(
    access: Access, target: ScopeTarget, conditions: tuple[Where, ...]
) -> AsyncGenerator[list[AuditRecord]]:
    """All chained records of a scope in batches, in the order of their chains."""
    async with aclosing(
        _batches(access, target, lambda scope: (_CHAINED, *within_scope(scope), *conditions))
    ) as batches:
        async for records in batches:
            yield records


async def _batches(
    access: Access, target: ScopeTarget, conditions: Callable[[Scope], tuple[Where, ...]]
) -> AsyncGenerator[list[AuditRecord]]:
    """Each batch is asked for anew, with whatever the caller may by then."""
    after: tuple[Scalar, str] | None = None

    def look(tx: Transaction, scope: Scope) -> list[AuditRecord]:
        return tx.audit.select(*conditions(scope), order=Order("position"), limit=BATCH, after=after)

    while records := await access.read(target, look):
        yield records
        after = (records[-1].position, records[-1].id)
