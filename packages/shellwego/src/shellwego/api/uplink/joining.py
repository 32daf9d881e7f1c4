"""Methods of the node port by which a host becomes known, and stays so."""

from __future__ import annotations

from collections.abc import Mapping

from shellwego.api.uplink.methods import AnyServed, Served, ServedToStrangers
from shellwego.control.joins import Joins
from shellwego.core.joins import CertificateAnswer, JoinRequest
from shellwego.core.nodecallers import Caller
from shellwego.core.plans import Rate
from shellwego.wire.uplink import Method, RenewCall

_MAX_BODY = 16 * 1024
_RENEWALS = Rate(per_minute=12, burst=30)


def join_methods(joins: Joins) -> Mapping[str, AnyServed]:
    """To be joined, without a certificate; to be renewed, with one."""

    async def renew(caller: Caller, asked: RenewCall) -> CertificateAnswer:
        return await joins.renew(caller.id, asked.request)

    return {
        Method.JOIN: ServedToStrangers(JoinRequest, joins.join, _MAX_BODY),
        Method.RENEW: Served(RenewCall, renew, _MAX_BODY, _RENEWALS),
    }
