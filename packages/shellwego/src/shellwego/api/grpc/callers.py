"""Who calls, and what they may: the platform's tokens and grants behind the port that the services' gate asks.

Theory. Tokens come as `authorization: Bearer …` and count against the plan's rate, as on the REST API. The gate asks
`TokenAuthorizer` first, so that it knows what an error may tell; each method then works through an `Access` made for the
same action, which decides again within its transaction and audits. Streams outlive a moment, so `while_valid` ends them
once their token, or the grant behind it, does not hold any more.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar

from plasmavmc.errors import CapacityError
from plasmavmc.rpc.access import EVERYTHING, Action, Decision, Principal, Reach, Request
from plasmavmc.rpc.bearer import bearer_token
from plasmavmc.rpc.gate import Context, current_call
from plasmavmc.types import Scope as EngineScope
from shellwego.api.grpc.errors import told, translated
from shellwego.api.grpc.permissions import PERMISSIONS
from shellwego.api.grpc.scopes import APP_ID_LABEL, APP_LABEL, scope_in, scope_out
from shellwego.api.ratelimit import RateLimiter
from shellwego.control import rights
from shellwego.control.authentication import Authenticator, refused
from shellwego.control.authorization import Access, Question, judge, realm
from shellwego.control.roles import roles_of
from shellwego.control.scopes import visible_projects
from shellwego.control.targets import Target
from shellwego.control.unit import Caller, Control
from shellwego.core import tenancy
from shellwego.ports.store import Transaction, eq

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TokenHolder(Principal):
    """A caller of the platform. `held` is what its token and grants give."""

    held: tenancy.Principal = field(kw_only=True)
    caller: Caller = field(kw_only=True)


class Callers:
    """Makes callers known, and gives each call its `Access`."""

    def __init__(self, control: Control, limiter: RateLimiter) -> None:
        self._control = control
        self._limiter = limiter
        self._authenticator = Authenticator(control)
        self.stopping = asyncio.Event()
        """Set when the server is to stop: streams end, so that clients come again later."""

    async def identify(self, context: Context) -> Principal:
        """See `plasmavmc.rpc.gate.Identify`; also raises `CapacityError` where the token's rate is used up."""
        with translated():
            session = await self._authenticator.session(bearer_token(context) or "")
            held = session.principal
            projects = await self._control.read(lambda tx: visible_projects(tx, held, limit=2))
        verdict = self._limiter.judge(session.principal.token_id, session.plan, self._control.clock.monotonic())
        if verdict is not None and not verdict.allowed:
            words = "the token has used up its requests for now"
            raise CapacityError("rate-limited", words, resolution=f"Try again in {verdict.retry_after_s} s.")
        home = EngineScope(projects[0].organization_id, projects[0].id) if len(projects) == 1 else None
        caller = Caller(actor=held.principal_id, trace_id=secrets.token_hex(16))
        return TokenHolder(held.principal_id, home, held=held, caller=caller)

    def access(self) -> Access:
        """What the call that is being served may do."""
        call = current_call()
        holder = _holder(call.principal)
        return Access(self._control, holder.held, PERMISSIONS[call.action], holder.caller)

    async def renew(self, access: Access) -> None:
        """Have the access be of what its caller may now.

        Raises:
            UnauthenticatedError: his token was revoked or has expired.
        """
        with translated():
            await rights.renew(self._authenticator, access)

    async def while_valid(self, items: AsyncGenerator[T], target: Target[R] | None = None) -> AsyncGenerator[T]:
        """The items, as long as the caller's token holds, he may do this to the target, and the server goes on.

        Raises:
            UnauthenticatedError: it was revoked or has expired.
            ForbiddenError, NotFoundError: the caller lost the right to it.
            UnavailableError: the server stops.
        """
        watch = asyncio.create_task(self._until_refused(target), name="right")
        try:
            async with aclosing(items):
                while True:
                    item = asyncio.ensure_future(anext(items))
                    try:
                        await asyncio.wait({item, watch}, return_when=asyncio.FIRST_COMPLETED)
                        if not item.done():
                            watch.result()
                        yield await item
                    except StopAsyncIteration:
                        return
                    finally:
                        item.cancel()
                        await asyncio.wait({item})
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _until_refused(self, target: Target[R] | None) -> None:
        with translated():
            await rights.until_refused(self._authenticator, self.access(), target, self.stopping)


class TokenAuthorizer:
    """See `plasmavmc.rpc.access.Authorizer`."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def authorize_all(self, principal: Principal, requests: Sequence[Request]) -> tuple[Decision, ...]:
        holder = _holder(principal)
        questions = [
            Question(PERMISSIONS[each.action], scope_in(each.scope), each.resource, each.labels.get(APP_LABEL, ""))
            for each in requests
        ]
        with translated():
            decisions = await judge(self._control, holder.held, holder.caller, questions)
        return tuple(Decision(decision.allowed, decision.reason) for decision in decisions)

    async def reach(self, principal: Principal, action: Action) -> Reach:
        """Grants are read anew: a watch hears only of what its caller may still see."""
        holder = _holder(principal)

        def look(tx: Transaction) -> Reach:
            grants = tuple(tx.grants.select(eq("principal_id", holder.held.principal_id)))
            now = replace(holder.held, grants=grants, roles=roles_of(tx, grants))
            held = realm(tx, now, PERMISSIONS[action])
            if held.everything:
                return EVERYTHING
            return Reach(
                orgs=held.organizations,
                projects=frozenset(scope_out(scope) for scope in held.projects),
                labelled=frozenset((scope_out(scope), APP_ID_LABEL, scope.app_id) for scope in held.apps),
            )

        with translated():
            return await self._control.read(look)


def _holder(principal: Principal) -> TokenHolder:
    if not isinstance(principal, TokenHolder):
        raise told(refused())
    return principal
