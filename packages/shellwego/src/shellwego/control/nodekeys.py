"""The keys that nodes and edges are known by: who speaks with one, and how a door is closed.

A look-up is kept for half a second, because every call of every node asks; a key that is retired, or whose node is removed,
is let in no longer than that. The keys of a node that was removed stay until their certificates end, retired: so it can be
told that it was put out, and ends what it runs.

An authority may go once no node or edge shows a certificate of it any more. That one was signed says nothing: the answer may
be lost, or its host may die before it has written it. So what is counted is the certificate that a host called with last.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass, replace

from shellwego.control.buskeys import revoke_bus_keys
from shellwego.control.edges import forget_edge
from shellwego.control.joins import find_key, refused_key
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import ForbiddenError, UnavailableError
from shellwego.core.joins import MemberKind, NodeKey
from shellwego.core.nodecallers import SHUT_OUT, Caller, EdgeCaller, NodeCaller
from shellwego.ports.store import Op, Transaction, Where, eq

_KEPT_S = 0.5
_KEPT = 16_384


@dataclass(frozen=True, slots=True)
class _Known:
    at: float
    caller: Caller
    authority_id: str
    """Of whom a certificate was shown."""

    def answers(self, authority_id: str, now: float) -> bool:
        return now - self.at < _KEPT_S and authority_id in ("", self.authority_id)


class NodeIdentity:
    """From the key of a connection to who speaks."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def identify(self, fingerprint: str, authority_id: str = "") -> Caller:
        """Who holds this key (SHA-256 of its SubjectPublicKeyInfo, in hex). `authority_id`: of whom it shows a certificate
        now, which is stored where it is news; empty: that is not known.

        Raises:
            ForbiddenError: it is retired (`SHUT_OUT`); or it is unknown or expired, or its node is gone, and which of these
                is not told.
        """
        now = self._control.clock.monotonic()
        known = self._known.get(fingerprint)
        if known is not None and known.answers(authority_id, now):
            return known.caller
        self._known.pop(fingerprint, None)
        key, caller = await self._control.read(lambda tx: look_up(tx, fingerprint))
        if authority_id not in ("", key.authority_id):
            with contextlib.suppress(UnavailableError):  # a full disk shuts nobody out; a later call says it again
                await self._control.commit(lambda unit: note_shown(unit, fingerprint, authority_id))
        self._known[fingerprint] = _Known(now, caller, authority_id or key.authority_id)
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return caller


def look_up(tx: Transaction, fingerprint: str) -> tuple[NodeKey, Caller]:
    """A key, and who holds it; raises as `NodeIdentity.identify`."""
    key = find_key(tx, fingerprint)
    if key is not None and key.retired_at is not None:
        raise ForbiddenError(
            SHUT_OUT,
            f"{key.member_id} was put out by an operator: its key is retired",
            resolution="What ran there is stopped. To use the host again: swg nodes join-token, then swg nodes join.",
        )
    if key is None or not key.holds(tx.now()):
        raise refused_key()
    if key.kind is MemberKind.EDGE:
        edge = tx.edges.get(key.member_id)
        if edge is not None:
            return key, EdgeCaller(edge_id=edge.id, name=edge.name)
    else:
        node = tx.nodes.get(key.member_id)
        if node is not None:
            return key, NodeCaller(node_id=node.id, name=node.name)
    raise refused_key()


def note_shown(unit: Unit, fingerprint: str, authority_id: str) -> None:
    """Count a key under the authority of the certificate that was shown with it, be that newer or older than the one before:
    a host that lost what it had written shows an old one."""
    key = find_key(unit.tx, fingerprint)
    authority = unit.tx.node_authorities.get(authority_id)
    if key is not None and authority is not None and key.authority_id != authority.id:
        unit.tx.node_keys.update(replace(key, authority_id=authority.id))


def keys_of(tx: Transaction, member_id: str) -> list[NodeKey]:
    """All keys of a node or edge, the newest first."""
    found = tx.node_keys.select(eq("member_id", member_id))
    return sorted(found, key=lambda key: (key.created_at, key.id), reverse=True)


def retire_key(unit: Unit, key: NodeKey) -> NodeKey:
    """Let nobody in by a key any more, nor onto the bus; once more changes nothing.

    An edge without a key is forgotten, so that no deploy waits for it and its name is free. A node is not: what ran on it
    has to be judged lost first.
    """
    if key.retired_at is not None:
        return key
    unit.emit("node_key.retired", key.id, severity="warning", data={"member": key.member_id})
    revoke_bus_keys(unit, key.member_id)
    retired = unit.tx.node_keys.update(replace(key, retired_at=unit.now()))
    if key.kind is MemberKind.EDGE and all(each.retired_at is not None for each in keys_of(unit.tx, key.member_id)):
        forget_edge(unit, key.member_id)
    return retired


def retire_keys(unit: Unit, member_id: str) -> None:
    """Let a node or edge in no more that is removed, here or on the bus. Retired keys whose certificate has ended are
    forgotten."""
    for key in keys_of(unit.tx, member_id):
        if key.retired_at is None:
            unit.tx.node_keys.update(replace(key, retired_at=unit.now()))
    revoke_bus_keys(unit, member_id)
    for key in unit.tx.node_keys.select(Where("expires_at", Op.LT, unit.now())):
        if key.retired_at is not None:
            unit.tx.node_keys.delete(key.id)
