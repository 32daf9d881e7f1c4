"""Writes that may be asked twice: the answer is kept in the transaction of the change, under the caller's key.

A client that lost the answer asks again with the same key and gets the first answer, without the change happening twice.
The same key with another request is a mistake of the client and is refused.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError
from shellwego.core.events import IdempotencyRecord
from shellwego.ports.store import Op, Order, Transaction, Where

KEPT_S = 24 * 3600.0
_SWEEP = 16


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """`id` hashes user and key, so that two users never meet; `request_hash` method, path, query and body."""

    id: str
    request_hash: str


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: str
    etag: str = ""


def make_key(principal_id: str, key: str, *request: bytes, sensitive: bool = False) -> IdempotencyKey:
    """The key of a request, given all that must be the same when it is asked again.

    Where the request is `sensitive` its hash is keyed by the client's key, which is not stored: whoever reads the store
    could else try guesses of a short secret on the hash.
    """
    owner = hashlib.sha256(f"{principal_id}\n{key}".encode()).hexdigest()
    digest = hmac.new(key.encode(), digestmod=hashlib.sha256) if sensitive else hashlib.sha256()
    for part in request:
        digest.update(len(part).to_bytes(8, "big") + part)
    return IdempotencyKey(owner, digest.hexdigest())


def recall(tx: Transaction, key: IdempotencyKey) -> Answer | None:
    """The answer given before, if any.

    Raises:
        ConflictError: the key was used for another request.
    """
    record = tx.idempotency.get(key.id)
    if record is None or record.created_at < tx.now() - KEPT_S:
        return None
    if record.request_hash != key.request_hash:
        raise ConflictError(
            "idempotency-key-reused",
            "this Idempotency-Key was used for another request in the last 24 hours",
            resolution="Use a new key for a new request.",
        )
    etag, _, body = record.body.partition("\n")
    return Answer(record.status, body, etag)


def remember(unit: Unit, key: IdempotencyKey, answer: Answer) -> None:
    """Keep the answer, and forget some that are past their time."""
    expired = Where("created_at", Op.LT, unit.now() - KEPT_S)
    for old in unit.tx.idempotency.select(expired, order=Order("created_at"), limit=_SWEEP):
        unit.tx.idempotency.delete(old.id)
    if unit.tx.idempotency.get(key.id) is not None:
        unit.tx.idempotency.delete(key.id)
    unit.tx.idempotency.insert(
        IdempotencyRecord(
            id=key.id,
            request_hash=key.request_hash,
            status=answer.status,
            body=f"{answer.etag}\n{answer.body}",
            created_at=unit.now(),
        )
    )
