"""The one choke point: nothing behind the API is read or written but through an `Access`.

An access carries one permission, declared by the operation. It finds the target, decides, and runs the work in one
transaction, so that what was judged is what is changed. Deny by default; what the caller may not even see looks absent.
Allowed writes are audited with the change; refusals in a transaction of their own, because the first one is undone.

`judge` and `realm` answer a rim that asks before it knows what it will touch (gRPC: its gate decides what an error looks
like). What is then done goes through an `Access` all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from shellwego.control.idempotency import Answer, IdempotencyKey, recall, remember
from shellwego.control.scopes import SYSTEM, Scope, app_scope, scope_at
from shellwego.control.targets import Found, RefusedError, Target
from shellwego.control.unit import Caller, Control, Unit
from shellwego.core import iam
from shellwego.core.errors import ForbiddenError, ShellWeGoError
from shellwego.core.ids import is_id
from shellwego.core.tenancy import Principal
from shellwego.ports.store import Transaction, eq

R = TypeVar("R")
T = TypeVar("T")


@dataclass(slots=True)
class Access:
    """What one request of one principal may do, with the operation's one permission."""

    control: Control
    principal: Principal
    permission: str
    caller: Caller
    key: IdempotencyKey | None = None
    decided: bool = field(default=False, init=False)
    """Whether it was asked at all; an operation that never asks is a fault, and the rim answers so."""
    _judged: tuple[str, Scope] = field(default=("", SYSTEM), init=False)
    """What was found last and where, for the audit record of a use case that refuses."""

    @property
    def scope(self) -> Scope:
        """Where that lies which was found last; before that, and where it is the caller's own: the system."""
        return self._judged[1]

    async def read(self, target: Target[R], fn: Callable[[Transaction, R], T]) -> T:
        """Read about the target on one snapshot; raises what `Target.find` and `authorize` raise."""

        def run(tx: Transaction) -> T:
            return fn(tx, self._admit(tx, target).resource)

        return await self._audited(lambda: self.control.read(run))

    async def write(self, target: Target[R], fn: Callable[[Unit, R], T]) -> T:
        """Change the target in one transaction with its audit record; raises as `read`."""

        def run(unit: Unit) -> T:
            found = self._admit(unit.tx, target)
            _audit(unit, self.permission, found.id, found.scope)
            return fn(unit, found.resource)

        return await self._audited(lambda: self.control.commit(run, self.caller))

    async def write_once(self, target: Target[R], fn: Callable[[Unit, R], Answer]) -> Answer:
        """As `write`, for an answer that is given again when the request comes again with its key."""
        key = self.key
        if key is None:
            return await self.write(target, fn)

        def run(unit: Unit) -> Answer:
            known = recall(unit.tx, key)
            if known is not None:
                self.decided = True
                return known
            found = self._admit(unit.tx, target)
            _audit(unit, self.permission, found.id, found.scope)
            answer = fn(unit, found.resource)
            remember(unit, key, answer)
            return answer

        return await self._audited(lambda: self.control.commit(run, self.caller))

    async def recalled(self) -> Answer | None:
        """The answer that was given to this request before, for operations that ask the outside first."""
        key = self.key
        known = None if key is None else await self.control.read(lambda tx: recall(tx, key))
        self.decided = self.decided or known is not None
        return known

    async def own(self, fn: Callable[[Unit], T]) -> T:
        """Work on what belongs to the caller himself: only his token's scopes can forbid it."""
        await self._admit_own()
        return await self.control.commit(fn, self.caller)

    async def account(self) -> None:
        """Admit work on the account itself (its password, its second factor): of users alone, and never with a token that
        is narrowed to resources. Such work asks the outside, so it commits by itself."""
        if self.principal.resources or not is_id("usr", self.principal.principal_id):
            await self._refuse_own()
        await self._admit_own()

    async def itself(self, fn: Callable[[Unit], T]) -> T:
        """Work on the asking token alone, which any token may: it may end itself."""
        self.decided = True
        return await self.control.commit(fn, self.caller)

    async def _admit_own(self) -> None:
        self.decided = True
        if not iam.scoped_for(self.principal, self.permission):
            await self._refuse_own()

    async def _refuse_own(self) -> NoReturn:
        self.decided = True
        await self._record_refusal(self.principal.principal_id, SYSTEM)
        raise self._forbidden(self.permission)

    async def own_once(self, fn: Callable[[Unit], Answer]) -> Answer:
        """As `own`, for a write whose answer is given again when the request comes again with its key."""
        key = self.key
        if key is None:
            return await self.own(fn)

        def run(unit: Unit) -> Answer:
            known = recall(unit.tx, key)
            if known is not None:
                return known
            answer = fn(unit)
            remember(unit, key, answer)
            return answer

        return await self.own(run)

    def require(self, tx: Transaction, target: Target[R], permission: str) -> R:
        """Within a read or write of one thing, another thing on which the caller must hold another permission: where he does
        not, he is told what he would be told had he asked for that alone."""
        found = target.find(tx, self.principal)
        if not self.allows(found.scope, permission):
            raise RefusedError(self._refusal(found, permission), found.id, found.scope)
        return found.resource

    def allows(self, scope: Scope, permission: str = "") -> bool:
        """Whether the caller holds the operation's permission, or the given one, in a scope."""
        return iam.allowed(self.principal, permission or self.permission, scope.chain)

    def _admit(self, tx: Transaction, target: Target[R]) -> Found[R]:
        self.decided = True
        found = target.find(tx, self.principal)
        self._judged = found.id, found.scope
        if not self.allows(found.scope):
            raise RefusedError(self._refusal(found, self.permission), found.id, found.scope)
        return found

    def _refusal(self, found: Found[R], permission: str) -> ShellWeGoError:
        itself = {found.scope.project_id: "projects:read", found.scope.organization_id: "organizations:read"}
        seen = (iam.read_permission(permission), itself.get(found.id, ""))
        visible = any(self.allows(found.scope, each) for each in seen)
        return self._forbidden(permission) if visible or found.absent is None else found.absent

    def _forbidden(self, permission: str) -> ForbiddenError:
        return ForbiddenError(
            "forbidden",
            f"the token does not hold the permission {permission} here",
            resolution="Use a token of somebody who does, or ask an owner for a role that has it.",
        )

    async def _audited(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        except RefusedError as refused:
            await self._record_refusal(refused.resource, refused.scope)
            raise refused.outward from None
        except ForbiddenError:
            await self._record_refusal(*self._judged)
            raise

    async def _record_refusal(self, resource: str, scope: Scope) -> None:
        await self.control.commit(
            lambda unit: _audit(unit, self.permission, resource, scope, allowed=False), self.caller
        )


def _audit(unit: Unit, permission: str, resource: str, scope: Scope, *, allowed: bool = True) -> None:
    unit.audit(
        permission,
        resource,
        organization_id=scope.organization_id,
        project_id=scope.project_id,
        allowed=allowed,
    )


@dataclass(frozen=True, slots=True)
class Question:
    """May the caller do this, to a resource in this scope, of which the app may be known by id or name?"""

    permission: str
    scope: Scope
    resource: str = ""
    app: str = ""


async def judge(
    control: Control, principal: Principal, caller: Caller, questions: Sequence[Question]
) -> tuple[iam.Decision, ...]:
    """Decide several questions at once, the operation's own last; what is refused of them is audited once. What lies in an
    app is judged there."""
    scopes = await control.read(lambda tx: [_narrowed(tx, each) for each in questions])
    asked = zip(questions, scopes, strict=True)
    decisions = tuple(iam.decide(principal, each.permission, scope.chain) for each, scope in asked)
    refused = [each for each, decision in zip(questions, decisions, strict=True) if not decision.allowed]
    if refused:
        last = refused[-1]
        await control.commit(
            lambda unit: _audit(unit, last.permission, last.resource, last.scope, allowed=False), caller
        )
    return decisions


def _narrowed(tx: Transaction, question: Question) -> Scope:
    """The app of an instance, or the one that is named; else the scope of the question, which the caller gave: nothing that
    lies elsewhere takes its place."""
    scope, ref = question.scope, question.app
    instance = tx.instances.get(question.resource) if is_id("ins", question.resource) else None
    if instance is not None:
        app = tx.apps.get(instance.app_id)
    elif is_id("app", ref):
        app = tx.apps.get(ref)
    else:
        named = tx.apps.select(eq("project_id", scope.project_id), eq("name", ref), limit=1) if ref else []
        app = named[0] if named else None
    if app is None or app.project_id != scope.project_id:
        return scope
    found = app_scope(tx, app)
    return found if found.organization_id == scope.organization_id else scope


@dataclass(frozen=True, slots=True)
class Realm:
    """All scopes in which a permission is held."""

    everything: bool = False
    organizations: frozenset[str] = frozenset()
    projects: frozenset[Scope] = frozenset()
    apps: frozenset[Scope] = frozenset()


def realm(tx: Transaction, principal: Principal, permission: str) -> Realm:
    """Where the caller holds a permission: what `iam.decide` says of it in each scope, as data for lists."""
    named = {*principal.resources, *(grant.scope_id for grant in principal.grants)}
    scopes = [scope for scope_id in named if (scope := scope_at(tx, scope_id))]
    held = [scope for scope in scopes if iam.allowed(principal, permission, scope.chain)]
    return Realm(
        everything=SYSTEM in held,
        organizations=frozenset(scope.id for scope in held if is_id("org", scope.id)),
        projects=frozenset(scope for scope in held if is_id("prj", scope.id)),
        apps=frozenset(scope for scope in held if scope.app_id),
    )
