"""The contract of access to the bus on the memory driver, and a wrong driver that it rejects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from shellwego.core.nkeys import NKey
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.busaccess.memory import MemoryBusAccess, MemoryDoor
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.ports.bus import Bus
from shellwego.ports.busaccess import PASS_S, BusPass
from tests.contract.busaccess_contract import BusAccessContract, Site


@dataclass(slots=True)
class MemorySite:
    clock: VirtualClock = field(default_factory=VirtualClock)
    bus: MemoryBus = field(default_factory=MemoryBus)
    access: MemoryBusAccess = field(init=False)

    def __post_init__(self) -> None:
        self.access = MemoryBusAccess(self.bus, self.clock)

    async def enter(self, admitted: BusPass, key: NKey) -> Bus:
        return self.access.enter(admitted, key)

    def inside(self, bus: Bus) -> bool:
        assert isinstance(bus, MemoryDoor)
        return bus.open

    async def now(self) -> float:
        return self.clock.now()

    async def let_pass(self, seconds: float) -> None:
        await self.clock.advance(seconds)


class TestMemoryBusAccess(BusAccessContract):
    @pytest.fixture
    def site(self) -> Site:
        return MemorySite()

    async def test_who_is_put_out_hears_the_end(self, site: Site) -> None:
        bus, key = await self.listener(site)
        async with bus.subscribe("routes") as hints:
            await site.access.revoke({key.public: await site.now()})
            with pytest.raises(StopAsyncIteration):
                await self.take(hints)


class Forgetful(MemoryBusAccess):
    """Wrong: what was revoked before is forgotten."""

    async def revoke(self, keys: Mapping[str, float]) -> None:
        self._revoked.clear()
        await MemoryBusAccess.revoke(self, keys)


class Careless(MemoryBusAccess):
    """Wrong: everybody is admitted to everything, and for ever."""

    def admit(self, listener_id: str, public_key: str, lifetime_s: float = PASS_S) -> BusPass:
        admitted = MemoryBusAccess.admit(self, listener_id, public_key, 1e9)
        self._admissions[admitted.token] = replace(self._admissions[admitted.token], patterns=(">",))
        return admitted


class TestTheContractRejectsAWrongAccess:
    async def test_that_forgets_who_was_revoked(self) -> None:
        site = MemorySite()
        site.access = Forgetful(site.bus, site.clock)
        with pytest.raises(AssertionError):
            await BusAccessContract().test_what_was_revoked_before_stays_revoked(site)

    async def test_that_lets_hear_too_much(self) -> None:
        site = MemorySite()
        site.access = Careless(site.bus, site.clock)
        with pytest.raises(AssertionError):
            await BusAccessContract().test_he_hears_nothing_else(site, ">")

    async def test_whose_passes_do_not_end(self) -> None:
        site = MemorySite()
        site.access = Careless(site.bus, site.clock)
        with pytest.raises(AssertionError):
            await BusAccessContract().test_a_pass_ends_with_its_time(site)
