"""Events and audit records, as a reader may see them.

A reader looks from one scope: a project, an organization, or the system. `seq` is given by the relay after the commit, so
an event without one is not out yet; a stream goes on after the last `seq` that the reader saw and misses none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from shellwego.control.marks import PRUNED, mark
from shellwego.control.scopes import SYSTEM, Scope, reach, visible_projects
from shellwego.control.targets import Found, OrganizationTarget, ProjectTarget
from shellwego.control.unit import Control
from shellwego.core.events import Event
from shellwego.core.tenancy import Principal
from shellwego.ports.bus import Hint
from shellwego.ports.clock import Waiter
from shellwego.ports.store import Op, Order, Transaction, Where, eq
from shellwego.wire import subjects

BATCH = 100
LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class ScopeTarget:
    """The scope that a request gives by `organization` or `project`, else the widest in which the caller has a grant."""

    organization: str = ""
    project: str = ""

    def find(self, tx: Transaction, principal: Principal) -> Found[Scope]:
        if self.project:
            found = ProjectTarget(self.project).find(tx, principal)
            return Found(found.scope, found.scope, found.id, found.absent)
        if self.organization:
            organization = OrganizationTarget(self.organization).find(tx, principal)
            return Found(organization.scope, organization.scope, organization.id, organization.absent)
        return self._widest(tx, principal)

    def _widest(self, tx: Transaction, principal: Principal) -> Found[Scope]:
        scopes = set(reach(tx, principal))
        if "" in scopes:
            return Found(SYSTEM, SYSTEM, "system", None)
        organizations = [scope_id for scope_id in scopes if tx.organizations.get(scope_id)]
        if len(organizations) == 1 and len(visible_projects(tx, principal, 100)) > 1:
            return ScopeTarget(organization=organizations[0]).find(tx, principal)
        found = ProjectTarget().find(tx, principal)
        return Found(found.scope, found.scope, found.id, found.absent)


def within_scope(scope: Scope) -> tuple[Where, ...]:
    """Conditions that hold for the events of a scope."""
    if scope.project_id:
        return (eq("project_id", scope.project_id),)
    return (eq("organization_id", scope.organization_id),) if scope.organization_id else ()


def published() -> Where:
    """Only events that are out."""
    return Where("seq", Op.GT, 0)


def last_seq(tx: Transaction) -> int:
    """The number of the newest event that is out."""
    newest = tx.events.select(published(), order=Order("seq", descending=True), limit=1)
    return newest[0].seq if newest else 0


def events_after(tx: Transaction, scope: Scope, seq: int, limit: int = BATCH) -> list[Event]:
    """The next events of the scope after this number, oldest first."""
    beyond = Where("seq", Op.GT, max(seq, 0))
    return tx.events.select(*within_scope(scope), beyond, order=Order("seq"), limit=limit)


def resumed_after(tx: Transaction, scope: Scope, seq: int) -> list[Event]:
    """As `events_after`, for a reader who counts on missing none: where some after his number are not kept any more, a
    notice comes first that stands for them, and has the number of the last."""
    gone = mark(tx, PRUNED)
    if seq >= gone:
        return events_after(tx, scope, seq)
    notice = Event(
        id="",
        seq=gone,
        time=tx.now(),
        organization_id=scope.organization_id,
        project_id=scope.project_id,
        type="events.pruned",
        resource="events",
        severity="warning",
        data={"first": str(seq + 1), "last": str(gone)},
    )
    return [notice, *events_after(tx, scope, gone)]


async def changes(control: Control, subject: str, look_again_s: float = LOOK_AGAIN_S) -> AsyncGenerator[None]:
    """Tick at once, after every hint, and on a timer: whoever waits for something looks at each tick."""
    async with control.bus.subscribe(subject) as hints:
        listener = aiter(hints)
        async with contextlib.aclosing(Waiter(control.clock, lambda: _next_hint(listener))) as waiter:
            while True:
                yield
                await waiter.wait(look_again_s)


async def _next_hint(listener: AsyncIterator[Hint]) -> None:
    """Return at the next hint; never once the bus is closed, from when on the timer alone decides."""
    if await anext(listener, None) is None:
        await asyncio.get_running_loop().create_future()


async def follow(control: Control, read: Callable[[int], Awaitable[list[Event]]], seq: int) -> AsyncGenerator[Event]:
    """All events after `seq`, as they come out, in order, each once. `read` gives the next batch after a number."""
    async with contextlib.aclosing(changes(control, subjects.EVENTS)) as ticks:
        async for _ in ticks:
            while batch := await read(seq):
                for event in batch:
                    yield event
                    seq = event.seq
