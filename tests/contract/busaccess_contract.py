"""What must hold of passes to the bus: who has one hears what is his own, says nothing, and is out when it is worthless."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import pytest

from shellwego.core.errors import InvalidError
from shellwego.core.ids import make_id
from shellwego.core.nkeys import SEED_BYTES, NKey, Role
from shellwego.core.sensitive import Sensitive
from shellwego.ports.bus import Bus, Hint
from shellwego.ports.busaccess import BusAccess, BusPass
from shellwego.wire import subjects

MINE, OTHER = (make_id("node", 1, bytes([n] * 10)) for n in (1, 2))
EDGE = make_id("edg", 1, bytes(10))


def user_key() -> NKey:
    return NKey(Role.USER, Sensitive(secrets.token_bytes(SEED_BYTES)))


class Site(Protocol):
    """A bus with its access, and a door for those who have a pass."""

    @property
    def bus(self) -> Bus:
        """A server's own way to it."""

    @property
    def access(self) -> BusAccess: ...

    async def enter(self, admitted: BusPass, key: NKey) -> Bus:
        """Come in as a listener; returns when it is decided whether he is."""

    def inside(self, bus: Bus) -> bool:
        """Whether this listener is in still."""

    async def now(self) -> float:
        """Of the access's clock, in seconds since the epoch."""

    async def let_pass(self, seconds: float) -> None:
        """Let so much time go by, or most of it."""


class BusAccessContract:
    """Inherit, and give a fixture `site`."""

    deadline_s = 10.0

    async def listener(self, site: Site, listener_id: str = MINE) -> tuple[Bus, NKey]:
        key = user_key()
        return await site.enter(site.access.admit(listener_id, key.public), key), key

    async def take(self, hints: AsyncIterator[Hint]) -> Hint:
        async with asyncio.timeout(self.deadline_s):
            return await anext(hints)

    async def becomes(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(self.deadline_s):
            while not condition():  # noqa: ASYNC110 - it is the driver's to tell, and nothing announces it
                await asyncio.sleep(0.01)

    @pytest.mark.parametrize(("listener_id", "subject"), [(MINE, subjects.assignments(MINE)), (EDGE, subjects.ROUTES)])
    async def test_a_listener_hears_what_is_his(self, site: Site, listener_id: str, subject: str) -> None:
        bus, _ = await self.listener(site, listener_id)
        async with bus.subscribe(subject) as hints:
            await site.bus.publish(subject)
            assert await self.take(hints) == Hint(subject)

    @pytest.mark.parametrize(
        "pattern",
        [
            subjects.assignments(OTHER),
            "node.*.assignments",
            "node.>",
            ">",
            "*.*.*",
            subjects.ROUTES,
            subjects.EVENTS,
            subjects.ALL_APPS,
        ],
    )
    async def test_he_hears_nothing_else(self, site: Site, pattern: str) -> None:
        bus, _ = await self.listener(site)
        async with bus.subscribe(pattern) as others, bus.subscribe(subjects.assignments(MINE)) as own:
            heard = asyncio.ensure_future(anext(others, None))
            for subject in (subjects.assignments(OTHER), subjects.ROUTES, subjects.EVENTS, subjects.app("app_1")):
                await site.bus.publish(subject)
            await site.bus.publish(subjects.assignments(MINE))
            await self.take(own)  # and so what was said before has come to this host, or never will
            await asyncio.wait({heard}, timeout=0.02)
            assert not heard.done()
            heard.cancel()

    async def test_he_says_nothing(self, site: Site) -> None:
        bus, _ = await self.listener(site)
        async with site.bus.subscribe(">") as hints, bus.subscribe(subjects.assignments(MINE)) as own:
            for subject in (subjects.assignments(MINE), subjects.assignments(OTHER), subjects.ROUTES):
                await bus.publish(subject, b"forged")
            await site.bus.publish(subjects.assignments(MINE), b"true")
            await self.take(own)
            assert (await self.take(hints)).payload == b"true"

    async def test_a_pass_without_its_key_lets_nobody_in(self, site: Site) -> None:
        admitted = site.access.admit(MINE, user_key().public)
        assert not site.inside(await site.enter(admitted, user_key()))

    @pytest.mark.parametrize("listener_id", ["", "node_1", "*", ">", f"{MINE}.>", make_id("app", 1, bytes(10))])
    async def test_a_pass_is_for_a_node_or_an_edge(self, site: Site, listener_id: str) -> None:
        with pytest.raises(InvalidError) as refused:
            site.access.admit(listener_id, user_key().public)
        assert refused.value.code == "invalid-listener"

    @pytest.mark.parametrize(
        "key",
        ["", "U", user_key().public[:-1], user_key().public.lower(), "é" * 56, user_key().seed_text.reveal_text()]
        + [NKey(role, Sensitive(bytes(32))).public for role in (Role.ACCOUNT, Role.OPERATOR)],
    )
    async def test_a_pass_is_for_a_user_s_key(self, site: Site, key: str) -> None:
        with pytest.raises(InvalidError) as refused:
            site.access.admit(MINE, key)
        assert refused.value.code == "invalid-nkey"

    async def test_a_pass_ends_with_its_time(self, site: Site) -> None:
        key = user_key()
        admitted = site.access.admit(MINE, key.public, lifetime_s=2)
        assert admitted.expires_at - await site.now() <= 2
        assert admitted.renew_in_s == pytest.approx(2 * 2 / 3)
        bus = await site.enter(admitted, key)
        await site.let_pass(2)
        await self.becomes(lambda: not site.inside(bus))
        renewed = site.access.admit(MINE, key.public)
        assert site.inside(await site.enter(renewed, key))

    async def test_a_revoked_key_is_out_and_stays_out_and_nobody_else_is(self, site: Site) -> None:
        bus, key = await self.listener(site)
        other, _ = await self.listener(site, OTHER)
        again = site.access.admit(MINE, key.public)
        for _ in range(2):  # to repeat it does no harm
            await site.access.revoke({key.public: await site.now()})
        await self.becomes(lambda: not site.inside(bus))
        assert not site.inside(await site.enter(again, key))
        assert site.inside(other)
        fresh, _ = await self.listener(site)
        assert site.inside(fresh)

    async def test_what_was_revoked_before_stays_revoked(self, site: Site) -> None:
        (_, first), (bus, second) = await self.listener(site), await self.listener(site)
        again = site.access.admit(MINE, first.public)
        await site.access.revoke({first.public: await site.now()})
        await site.access.revoke({second.public: await site.now()})
        await self.becomes(lambda: not site.inside(bus))
        assert not site.inside(await site.enter(again, first))

    async def test_a_pass_shows_nowhere(self, site: Site) -> None:
        key = user_key()
        admitted = site.access.admit(MINE, key.public)
        assert admitted.token not in repr(admitted)
        assert key.seed_text.reveal_text() not in repr(key)
