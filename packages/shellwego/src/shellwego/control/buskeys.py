"""Passes to the bus for nodes and edges: who gets one, and whom the bus is to shut out.

A key is stored before its pass is handed out, so there is none that could not be revoked. What was signed is void from the
moment in which the node's own key is retired, or the node is removed; `loops.buskeys` tells the bus.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from shellwego.control.unit import Caller, Control, Unit
from shellwego.core.buskeys import MOST_HELD, MOST_NOTED, BusKey, statement
from shellwego.core.errors import ConflictError, FieldError, ForbiddenError, InvalidError, ThrottledError
from shellwego.core.nkeys import Role, check_public, verify
from shellwego.ports.busaccess import BusAccess, BusPass
from shellwego.ports.store import Op, Transaction, Where, eq
from shellwego.wire import subjects


class BusPasses:
    """The node port's end. Without access to a bus apart nobody gets a pass, and hints come over the links alone."""

    def __init__(self, control: Control, access: BusAccess | None) -> None:
        self._control = control
        self._access = access

    async def admit(self, member_id: str, public_key: str, signature: bytes) -> BusPass | None:
        """A pass for this key of a node or edge; None: there is none to be had on this platform.

        Raises:
            InvalidError: it is no user's NKey, or whoever asks does not hold it.
            ConflictError: it is another's, or was revoked.
            ForbiddenError: the node or edge was put out meanwhile.
        """
        if self._access is None:
            return None
        check_public(Role.USER, public_key)
        if not verify(public_key, signature, statement(member_id)):
            words = "the key is not signed for by its holder"
            raise InvalidError("bus-key-not-held", words, errors=(FieldError("signature", "bus-key-not-held", words),))
        found = self._access.admit(member_id, public_key)
        caller = Caller(actor=member_id)
        await self._control.commit(lambda unit: note(unit, member_id, public_key, found.lifetime_s), caller)
        return found


def note(unit: Unit, member_id: str, public_key: str, lifetime_s: float) -> BusKey:
    """Store a key that is about to have a pass, or another one. Of too many keys the oldest are revoked.

    Raises:
        ConflictError: it is known as another's, or was revoked.
        ForbiddenError: its owner has no key any more by which it is let in.
        ThrottledError: it had very many of late.
    """
    now = unit.now()
    if not any(key.holds(now) for key in unit.tx.node_keys.select(eq("member_id", member_id))):
        raise ForbiddenError("node-key-refused", f"{member_id} was put out meanwhile")
    unit.audit("nodes:bus-pass", member_id, detail=public_key)
    known = next(iter(unit.tx.bus_keys.select(eq("public_key", public_key), limit=1)), None)
    if known is not None and (known.member_id != member_id or known.revoked_at):
        words = "this key is another's, or was revoked"
        raise ConflictError("bus-key-known", words, errors=(FieldError("public_key", "bus-key-known", words),))
    if known is not None:
        return unit.tx.bus_keys.update(replace(known, expires_at=now + lifetime_s))
    noted = [key for key in unit.tx.bus_keys.select(eq("member_id", member_id)) if key.expires_at > now]
    if len(noted) >= MOST_NOTED:
        raise ThrottledError(
            "too-many-bus-keys",
            f"{member_id} had {len(noted)} keys for the bus of late",
            resolution="It hears over its links; see why it starts so often.",
            retry_after_s=ceil(min(key.expires_at for key in noted) - now),
        )
    held = sorted(_in_force(unit.tx, member_id), key=lambda key: (key.created_at, key.id))
    for old in held[: max(0, len(held) + 1 - MOST_HELD)]:
        _revoke(unit, old)
    return unit.tx.bus_keys.insert(
        BusKey(
            id=unit.new_id("bky"),
            public_key=public_key,
            member_id=member_id,
            created_at=now,
            expires_at=now + lifetime_s,
        )
    )


def revoke_bus_keys(unit: Unit, member_id: str) -> None:
    """Shut a node or edge out of the bus."""
    for key in _in_force(unit.tx, member_id):
        _revoke(unit, key)


def revoked(tx: Transaction) -> dict[str, float]:
    """Whom the bus is to shut out: public keys, each with the time up to which what was signed for it is void."""
    found = tx.bus_keys.select(Where("revoked_at", Op.GT, 0.0))
    return {key.public_key: key.revoked_at for key in found if key.expires_at > tx.now()}


def forget_ended(unit: Unit, limit: int) -> int:
    """Forget keys whose pass has ended; returns how many there were."""
    found = unit.tx.bus_keys.select(Where("expires_at", Op.LT, unit.now()), limit=limit)
    for key in found:
        unit.tx.bus_keys.delete(key.id)
    return len(found)


def _in_force(tx: Transaction, member_id: str) -> list[BusKey]:
    found = tx.bus_keys.select(eq("member_id", member_id))
    return [key for key in found if not key.revoked_at and key.expires_at > tx.now()]


def _revoke(unit: Unit, key: BusKey) -> None:
    unit.tx.bus_keys.update(replace(key, revoked_at=unit.now()))
    unit.hint(subjects.BUS_KEYS)
