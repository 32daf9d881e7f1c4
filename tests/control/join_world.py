"""A control plane that hosts join, and certificate requests as good and bad hosts make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from shellwego.control import joins
from shellwego.control.certificates import certificate_request, new_key
from shellwego.control.joins import Joins, JoinWish
from shellwego.control.nodeauthority import NodeAuthorities
from shellwego.control.nodekeys import NodeIdentity
from shellwego.control.sealing import Sealer
from shellwego.control.servers import Servers
from shellwego.control.unit import Control, Unit
from shellwego.core.joins import JoinRequest, JoinToken, MemberKind
from shellwego.core.tenancy import Principal
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.kms import Kms
from shellwego.ports.store import Store

T = TypeVar("T")
OPERATOR = Principal(principal_id="usr_operator", token_id="", scopes=(), grants=())
SERVERS = ("https://one.example:7081",)


@dataclass
class JoinWorld:
    clock: VirtualClock
    control: Control
    sealer: Sealer
    authorities: NodeAuthorities
    servers: Servers
    joins: Joins
    identity: NodeIdentity

    async def token(self, wish: JoinWish | None = None) -> str:
        """The secret of a new join token."""
        secret = joins.join_secret()
        await self.control.commit(lambda unit: joins.create_join_token(unit, OPERATOR, wish or JoinWish(), secret))
        return secret

    async def stored(self, secret: str) -> JoinToken:
        found = await self.control.read(lambda tx: joins.find_token(tx, secret))
        assert found is not None
        return found

    async def commit(self, fn: Callable[[Unit], T]) -> T:
        return await self.control.commit(fn)


def make_join_world(store: Store | None = None, clock: VirtualClock | None = None, kms: Kms | None = None) -> JoinWorld:
    clock = clock or VirtualClock()
    control = Control(store or MemoryStore(clock), MemoryBus(), clock)
    sealer = Sealer(control, kms or MemoryKms())
    authorities = NodeAuthorities(control, sealer)
    servers = Servers(control, "one", SERVERS)
    joins = Joins(control, authorities, servers)
    return JoinWorld(clock, control, sealer, authorities, servers, joins, NodeIdentity(control))


def join_request(
    secret: str,
    key: EllipticCurvePrivateKey | None = None,
    *,
    kind: MemberKind = MemberKind.NODE,
    hostname: str = "host-one",
    request: bytes | None = None,
) -> JoinRequest:
    made = certificate_request(key or new_key()) if request is None else request
    return JoinRequest(secret=secret, kind=kind, request=made, hostname=hostname, version="1")
