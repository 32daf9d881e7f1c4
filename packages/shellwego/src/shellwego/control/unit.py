"""One use case, one transaction: change, event and audit record commit together; hints leave only after the commit.

A use case is `def name(unit: Unit, …) -> Result`, synchronous and free of outside effects; the store may run it more than
once, so everything it gathers lives in a `Unit` made anew for each run. A hint that is lost costs latency only: every loop
also runs on a timer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from shellwego.core.events import AuditRecord, Event
from shellwego.ports.bus import Bus
from shellwego.ports.clock import Clock
from shellwego.ports.store import Store, Transaction
from shellwego.wire import subjects

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a use case runs, for events and audit."""

    actor: str = "system"
    trace_id: str = ""


@dataclass(slots=True)
class Unit:
    """A transaction with what belongs to it."""

    tx: Transaction
    clock: Clock
    caller: Caller
    hints: list[tuple[str, bytes]] = field(default_factory=list)

    def now(self) -> float:
        """The store's time of this transaction."""
        return self.tx.now()

    def new_id(self, prefix: str) -> str:
        """A fresh id."""
        return self.clock.new_id(prefix)

    def hint(self, subject: str, payload: bytes = b"") -> None:
        """Say "look again" on this subject once the transaction is committed."""
        if (subject, payload) not in self.hints:
            self.hints.append((subject, payload))

    def emit(
        self,
        type_: str,
        resource: str,
        *,
        organization_id: str = "",
        project_id: str = "",
        severity: str = "info",
        data: Mapping[str, str] | None = None,
    ) -> None:
        """Write an event into the outbox; the relay numbers and publishes it after the commit."""
        self.tx.events.insert(
            Event(
                id=self.new_id("evt"),
                time=self.now(),
                organization_id=organization_id,
                project_id=project_id,
                type=type_,
                resource=resource,
                actor=self.caller.actor,
                severity=severity,
                data=data or {},
                trace_id=self.caller.trace_id,
            )
        )
        self.hint(subjects.OUTBOX)

    def audit(
        self,
        action: str,
        resource: str,
        *,
        organization_id: str = "",
        project_id: str = "",
        allowed: bool = True,
        detail: str = "",
    ) -> None:
        """Write who did what, or was refused it; the relay chains the record after the commit."""
        self.tx.audit.insert(
            AuditRecord(
                id=self.new_id("aud"),
                time=self.now(),
                actor=self.caller.actor,
                action=action,
                resource=resource,
                allowed=allowed,
                detail=detail,
                trace_id=self.caller.trace_id,
                organization_id=organization_id,
                project_id=project_id,
            )
        )
        self.hint(subjects.AUDIT)


@dataclass(frozen=True, slots=True)
class Control:
    """What every use case and loop stands on."""

    store: Store
    bus: Bus
    clock: Clock

    async def commit(self, fn: Callable[[Unit], T], caller: Caller = Caller()) -> T:
        """Run a use case durably, then send its hints."""
        hints: list[tuple[str, bytes]] = []

        def run(tx: Transaction) -> T:
            unit = Unit(tx, self.clock, caller)
            result = fn(unit)
            hints[:] = unit.hints
            return result

        result = await self.store.transact(run)
        for subject, payload in hints:
            await self.bus.publish(subject, payload)
        return result

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        """Read on a snapshot."""
        return await self.store.read(fn)
