"""Who speaks on the node port: the node or edge whose key it is. An address says nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCaller:
    """A node."""

    node_id: str
    name: str
    """As it joined."""

    @property
    def id(self) -> str:
        return self.node_id


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeCaller:
    """An edge that runs apart."""

    edge_id: str
    name: str
    """As it joined."""

    @property
    def id(self) -> str:
        return self.edge_id


Caller = NodeCaller | EdgeCaller

SHUT_OUT = "node-shut-out"
"""The code by which a node or edge is told that an operator put it out: its key was retired, or it was removed. A key that
is merely not known has another one: who forgot it, a database of yesterday for one, has not decided anything."""

Identify = Callable[[str, str], Awaitable[Caller]]
"""Whose public key this is, by the SHA-256 of its SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7) in hex. Second, the id of
the authority whose certificate was shown with it now, which is taken note of; empty where nothing was shown anew.

Raises `ForbiddenError` where no key of this platform has it, or that key is retired (`SHUT_OUT`); `UnavailableError` where
that cannot be known now. It is asked at each call, and every 0.4 s for each link that is open; so it may believe an answer
for half a second, and a key still retires within one."""
