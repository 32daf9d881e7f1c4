"""Access to a bus of this process. For tests and simulation: its passes are real ones that only this object honours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shellwego.core.nkeys import NKey, Role, check_public
from shellwego.ports.bus import Bus, Hint
from shellwego.ports.busaccess import PASS_S, BusPass
from shellwego.ports.clock import Clock
from shellwego.wire.subjects import audible


@dataclass(frozen=True, slots=True)
class _Admission:
    public_key: str
    patterns: tuple[str, ...]
    signed_at: float
    expires_at: float


@dataclass(slots=True)
class MemoryBusAccess:
    """See `ports.busaccess.BusAccess`. `enter` is the door of the bus for those who have a pass."""

    bus: Bus
    clock: Clock
    _admissions: dict[str, _Admission] = field(default_factory=dict)
    _revoked: dict[str, float] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def admit(self, listener_id: str, public_key: str, lifetime_s: float = PASS_S) -> BusPass:
        check_public(Role.USER, public_key)
        now = self.clock.now()
        admission = _Admission(public_key, audible(listener_id), now, now + lifetime_s)
        token = f"pass-{len(self._admissions)}"
        self._admissions[token] = admission
        return BusPass(token=token, urls=(), expires_at=admission.expires_at, lifetime_s=lifetime_s)

    async def revoke(self, keys: Mapping[str, float]) -> None:
        self._revoked |= {key: max(until, self._revoked.get(key, 0.0)) for key, until in keys.items()}
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def close(self) -> None:
        pass

    def enter(self, admitted: BusPass, key: NKey) -> MemoryDoor:
        """The bus as the holder of a pass has it; with one that is not of this key, it is silent."""
        admission = self._admissions[admitted.token]
        if admission.public_key != key.public:
            admission = _Admission(key.public, (), 0.0, 0.0)
        return MemoryDoor(self, admission)

    def _holds(self, admission: _Admission) -> bool:
        revoked = self._revoked.get(admission.public_key)
        return self.clock.now() < admission.expires_at and (revoked is None or admission.signed_at > revoked)

    async def _worthless(self, admission: _Admission) -> None:
        """Wait until a pass is worth nothing any more."""
        while self._holds(admission):
            end = asyncio.ensure_future(self.clock.sleep(admission.expires_at - self.clock.now()))
            change = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait({end, change}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                end.cancel()
                change.cancel()


@dataclass(slots=True)
class MemoryDoor:
    """One listener's bus: what he may not hear is silent, and what he says nobody hears."""

    access: MemoryBusAccess
    admission: _Admission

    @property
    def open(self) -> bool:
        """Whether the pass holds still."""
        return self.access._holds(self.admission)

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        pass

    @asynccontextmanager
    async def subscribe(self, pattern: str) -> AsyncIterator[AsyncIterator[Hint]]:
        async with self.access.bus.subscribe(pattern) as hints:
            yield self._audible(pattern, hints)

    async def _audible(self, pattern: str, hints: AsyncIterator[Hint]) -> AsyncIterator[Hint]:
        """What of a pattern the holder may hear, while the pass holds."""
        over = asyncio.ensure_future(self.access._worthless(self.admission))
        try:
            while True:
                hint = asyncio.ensure_future(_next(hints))
                await asyncio.wait({hint, over}, return_when=asyncio.FIRST_COMPLETED)
                if over.done() or (found := hint.result()) is None:
                    hint.cancel()
                    return
                if self._may_hear(pattern):
                    yield found
        finally:
            over.cancel()

    def _may_hear(self, pattern: str) -> bool:
        """Whether the pattern asks for no more than one that is allowed; only a last word `>` stands for several."""
        for allowed in self.admission.patterns:
            head = allowed.removesuffix(">")
            if pattern == allowed or (head != allowed and pattern.startswith(head) and len(pattern) > len(head)):
                return True
        return False

    async def close(self) -> None:
        pass


async def _next(listener: AsyncIterator[Hint]) -> Hint | None:
    return await anext(listener, None)
