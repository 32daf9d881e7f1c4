"""Passes to the bus: who gets one, and who is shut out when."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from shellwego.control import joins, nodeadmin, nodekeys
from shellwego.control.buskeys import BusPasses
from shellwego.control.certificates import key_fingerprint, new_key
from shellwego.control.loops.buskeys import BATCH, LOOK_AGAIN_S, TELL_AGAIN_S, Shutter
from shellwego.control.unit import Unit
from shellwego.core.buskeys import MOST_HELD, MOST_NOTED, BusKey, statement
from shellwego.core.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    ShellWeGoError,
    ThrottledError,
    UnavailableError,
)
from shellwego.core.nkeys import NKey
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.busaccess.memory import MemoryBusAccess
from shellwego.ports.busaccess import PASS_S, BusPass
from tests.contract.busaccess_contract import user_key
from tests.control.join_world import JoinWorld, join_request, make_join_world


@dataclass
class Bus:
    """A bus with its access, which may not answer."""

    access: MemoryBusAccess
    told: list[Mapping[str, float]] = field(default_factory=list)
    away: bool = False

    def admit(self, listener_id: str, public_key: str, lifetime_s: float = PASS_S) -> BusPass:
        return self.access.admit(listener_id, public_key, lifetime_s)

    async def revoke(self, keys: Mapping[str, float]) -> None:
        if self.away:
            raise UnavailableError("bus-unavailable", "no")
        self.told.append(keys)
        await self.access.revoke(keys)

    async def close(self) -> None:
        pass


@dataclass
class Platform:
    """A platform that lets nodes onto its bus, with a node."""

    world: JoinWorld
    bus: Bus
    node_id: str
    fingerprint: str

    @property
    def passes(self) -> BusPasses:
        return BusPasses(self.world.control, self.bus)

    async def admit(self, key: NKey, *, member_id: str = "", by: NKey | None = None) -> BusPass:
        member_id = member_id or self.node_id
        found = await self.passes.admit(member_id, key.public, (by or key).sign(statement(member_id)))
        assert found is not None
        return found

    async def revoke(self) -> None:
        def retire(unit: Unit) -> None:
            key = joins.find_key(unit.tx, self.fingerprint)
            assert key is not None
            nodekeys.retire_key(unit, key)

        await self.world.commit(retire)

    async def remove(self) -> None:
        def remove(unit: Unit) -> None:
            node = unit.tx.nodes.get(self.node_id)
            assert node is not None
            nodeadmin.remove_node(unit, node)

        await self.world.commit(remove)

    async def keys(self) -> dict[str, BusKey]:
        return {key.public_key: key for key in await self.world.control.read(lambda tx: tx.bus_keys.select())}


@pytest.fixture
async def platform() -> Platform:
    world, key = make_join_world(), new_key()
    member = await world.joins.join(join_request(await world.token(), key))
    bus = Bus(MemoryBusAccess(MemoryBus(), world.clock))
    return Platform(world, bus, member.id, key_fingerprint(key.public_key()))


async def refusal(platform: Platform, key: NKey, **how: object) -> ShellWeGoError:
    with pytest.raises(ShellWeGoError) as refused:
        await platform.admit(key, **how)  # type: ignore[arg-type]
    return refused.value


async def test_a_pass_is_for_a_key_that_is_stored_and_its_giving_is_audited(platform: Platform) -> None:
    key = user_key()
    found = await platform.admit(key)
    assert platform.bus.access.enter(found, key).open
    stored = (await platform.keys())[key.public]
    assert (stored.member_id, stored.expires_at) == (platform.node_id, found.expires_at)
    records = await platform.world.control.read(lambda tx: tx.audit.select())
    assert [(r.actor, r.detail) for r in records if r.action == "nodes:bus-pass"] == [(platform.node_id, key.public)]
    assert found.token not in repr(records) + repr(stored)


async def test_without_a_bus_apart_there_are_none(platform: Platform) -> None:
    assert await BusPasses(platform.world.control, None).admit(platform.node_id, "whatever", b"") is None


async def test_only_who_holds_a_key_gets_a_pass_for_it_and_for_himself(platform: Platform) -> None:
    key = user_key()
    assert (await refusal(platform, key, by=user_key())).code == "bus-key-not-held"
    other = await platform.world.joins.join(join_request(await platform.world.token(), hostname="other"))
    with pytest.raises(InvalidError):
        await platform.passes.admit(other.id, key.public, key.sign(statement(platform.node_id)))
    await platform.admit(key)
    assert (await refusal(platform, key, member_id=other.id)).code == "bus-key-known"
    assert set(await platform.keys()) == {key.public}, "nothing of what was refused is stored"


@pytest.mark.parametrize("public", ["", "U", "é" * 56, "A" * 56])
async def test_what_is_no_key_gets_none(platform: Platform, public: str) -> None:
    with pytest.raises(InvalidError) as refused:
        await platform.passes.admit(platform.node_id, public, b"")
    assert refused.value.code == "invalid-nkey"
    assert await platform.keys() == {}


async def test_the_same_key_may_ask_again_until_it_is_revoked(platform: Platform) -> None:
    key = user_key()
    await platform.admit(key)
    await platform.world.clock.advance(100)
    again = await platform.admit(key)
    assert (await platform.keys())[key.public].expires_at == again.expires_at
    await platform.revoke()
    assert isinstance(await refusal(platform, key), ForbiddenError)


async def test_of_very_many_keys_the_oldest_are_revoked(platform: Platform) -> None:
    keys = [user_key() for _ in range(MOST_HELD + 2)]
    for key in keys:
        await platform.admit(key)
        await platform.world.clock.advance(1)
    stored = await platform.keys()
    assert [bool(stored[key.public].revoked_at) for key in keys] == [True, True] + [False] * MOST_HELD
    assert isinstance(await refusal(platform, keys[0]), ConflictError)


async def test_who_asks_for_pass_after_pass_goes_without_and_leaves_room_for_others_to_be_shut_out(
    platform: Platform,
) -> None:
    """All that was revoked is told to the bus in one message, of a bounded size."""
    for _ in range(MOST_NOTED):
        await platform.admit(user_key())
    refused = await refusal(platform, user_key())
    assert isinstance(refused, ThrottledError)
    assert 0 < refused.retry_after_s <= PASS_S
    other = await platform.world.joins.join(join_request(await platform.world.token(), hostname="other"))
    await platform.admit(user_key(), member_id=other.id)
    await platform.world.clock.advance(PASS_S)
    await platform.admit(user_key())


@pytest.mark.parametrize("way", ["revoked", "removed"])
async def test_who_is_put_out_is_shut_out_of_the_bus_within_a_second(platform: Platform, way: str) -> None:
    key, stays = user_key(), user_key()
    other = await platform.world.joins.join(join_request(await platform.world.token(), hostname="other"))
    door = platform.bus.access.enter(await platform.admit(key), key)
    kept = platform.bus.access.enter(await platform.admit(stays, member_id=other.id), stays)
    shutting = asyncio.create_task(Shutter(platform.world.control, platform.bus).run())
    await platform.world.clock.advance(5)
    assert door.open
    await (platform.revoke() if way == "revoked" else platform.remove())
    await platform.world.clock.advance(1)
    assert (door.open, kept.open) == (False, True)
    assert isinstance(await refusal(platform, user_key()), ForbiddenError), "and no other key of his gets in"
    shutting.cancel()
    await asyncio.gather(shutting, return_exceptions=True)


async def test_a_bus_that_is_away_is_told_when_it_is_back_and_all_again_now_and_then(platform: Platform) -> None:
    key = user_key()
    await platform.admit(key)
    platform.bus.away = True
    shutting = asyncio.create_task(Shutter(platform.world.control, platform.bus).run())
    await platform.revoke()
    await platform.world.clock.advance(60)
    assert platform.bus.told == []
    platform.bus.away = False
    await platform.world.clock.advance(2 * LOOK_AGAIN_S)
    assert [set(told) for told in platform.bus.told] == [{key.public}]
    await platform.world.clock.advance(TELL_AGAIN_S)
    assert [set(told) for told in platform.bus.told] == [{key.public}] * 2
    shutting.cancel()
    await asyncio.gather(shutting, return_exceptions=True)


async def test_a_key_is_forgotten_when_its_pass_has_ended(platform: Platform) -> None:
    keys = [user_key() for _ in range(3)]
    for key in keys:
        await platform.admit(key)
    await platform.revoke()
    shutter = Shutter(platform.world.control, platform.bus)
    await shutter.step(0.0)
    assert len(await platform.keys()) == 3 <= BATCH
    await platform.world.clock.advance(PASS_S + 1)
    await shutter.step(PASS_S)
    assert await platform.keys() == {}
    assert len(platform.bus.told) == 1, "what is void anyhow is not told"
