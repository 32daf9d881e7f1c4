"""Methods of the node port by which a host becomes known, and stays so."""

from __future__ import annotations

from collections.abc import Mapping

from shellwego.api.uplink.methods import AnyServed, Served, ServedToStrangers
from shellwego.control.buskeys import BusPasses
from shellwego.control.joins import Joins
from shellwego.control.servers import Servers
from shellwego.core.joins import CertificateAnswer, JoinRequest
from shellwego.core.nodecallers import Caller
from shellwego.core.plans import Rate
from shellwego.wire.uplink import (
    BusPassAnswer,
    BusPassCall,
    Method,
    RenewCall,
    ServersAnswer,
    ServersCall,
)

_MAX_BODY = 16 * 1024
_RENEWALS = Rate(per_minute=12, burst=30)


def join_methods(joins: Joins, servers: Servers, passes: BusPasses) -> Mapping[str, AnyServed]:
    """To be joined, without a certificate; with one, to be renewed, to be told of servers, and to be let onto the bus."""

    async def renew(caller: Caller, asked: RenewCall) -> CertificateAnswer:
        return await joins.renew(caller.id, asked.request)

    async def told(_caller: Caller, _asked: ServersCall) -> ServersAnswer:
        return ServersAnswer(urls=await servers.told())

    async def admit(caller: Caller, asked: BusPassCall) -> BusPassAnswer:
        return BusPassAnswer(bus_pass=await passes.admit(caller.id, asked.public_key, asked.signature))

    return {
        Method.JOIN: ServedToStrangers(JoinRequest, joins.join, _MAX_BODY),
        Method.RENEW: Served(RenewCall, renew, _MAX_BODY, _RENEWALS),
        Method.SERVERS: Served(ServersCall, told, _MAX_BODY),
        Method.BUS_PASS: Served(BusPassCall, admit, _MAX_BODY, _RENEWALS),
    }
