"""An authority over nodes is exchanged: who counts as moved to the new one, and who keeps the old one from being retired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shellwego.api.uplink.callers import Callers
from shellwego.control import nodeauthority
from shellwego.control.certificates import certificate_request, new_key
from shellwego.control.nodekeys import NodeIdentity
from shellwego.control.unit import Control
from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.core.joins import NodeAuthority
from shellwego.ports.store import Store, Transaction
from shellwego.wire.tls import Peer, peer_of
from tests.control.join_world import JoinWorld, join_request, make_join_world

T = TypeVar("T")


@pytest.fixture
def world() -> JoinWorld:
    return make_join_world()


@dataclass
class FullStore:
    """One whose disk is full."""

    store: Store

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        raise UnavailableError("store-unavailable", "the disk is full")

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        return await self.store.read(fn)

    async def close(self) -> None:
        await self.store.close()


def peer(certificate: str) -> Peer:
    return peer_of(x509.load_pem_x509_certificate(certificate.encode()).public_bytes(Encoding.DER))


async def called(world: JoinWorld, certificate: str) -> str:
    """Who a server takes him for that calls it with this certificate."""
    async with Callers(world.identity.identify, world.clock).call(peer(certificate)) as caller:
        return caller.id


async def exchange(world: JoinWorld) -> NodeAuthority:
    """Make another authority; returns the one before."""
    before = await world.authorities.shown()
    await world.clock.advance(1)
    fresh = await world.authorities.prepare()
    await world.commit(lambda unit: nodeauthority.add(unit, fresh))
    return before


async def under(world: JoinWorld, authority: NodeAuthority) -> int:
    return await world.control.read(lambda tx: nodeauthority.keys_under(tx, authority.id))


async def test_a_node_whose_new_certificate_got_lost_keeps_its_authority_from_being_retired(world: JoinWorld) -> None:
    key = new_key()
    member = await world.joins.join(join_request(await world.token(), key))
    before = await exchange(world)
    renewed = await world.joins.renew(member.id, certificate_request(key))
    await called(world, member.granted.certificate)
    with pytest.raises(ConflictError, match="1 nodes or edges"):
        await world.commit(lambda unit: nodeauthority.retire(unit, before))
    await called(world, renewed.certificate)
    await world.commit(lambda unit: nodeauthority.retire(unit, before))


async def test_a_node_that_joins_again_by_its_token_counts_by_what_it_shows(world: JoinWorld) -> None:
    secret, key = await world.token(), new_key()
    await world.joins.join(join_request(secret, key))
    before = await exchange(world)
    again = await world.joins.join(join_request(secret, key))
    assert await under(world, before) == 1
    await called(world, again.granted.certificate)
    assert await under(world, before) == 0


async def test_a_host_that_lost_its_new_certificate_counts_for_the_old_authority_again(world: JoinWorld) -> None:
    key = new_key()
    member = await world.joins.join(join_request(await world.token(), key))
    before = await exchange(world)
    renewed = await world.joins.renew(member.id, certificate_request(key))
    await called(world, renewed.certificate)
    assert await under(world, before) == 0
    await called(world, member.granted.certificate)
    assert await under(world, before) == 1


async def test_a_link_that_was_opened_with_the_old_certificate_says_nothing_of_what_its_node_shows_now(
    world: JoinWorld,
) -> None:
    key = new_key()
    member = await world.joins.join(join_request(await world.token(), key))
    before = await exchange(world)
    renewed = await world.joins.renew(member.id, certificate_request(key))
    await called(world, renewed.certificate)
    await world.clock.advance(1)
    await Callers(world.identity.identify, world.clock).caller(peer(member.granted.certificate))
    assert await under(world, before) == 0


async def test_what_is_shown_is_stored_when_it_is_news_and_a_full_disk_shuts_nobody_out(world: JoinWorld) -> None:
    key = new_key()
    member = await world.joins.join(join_request(await world.token(), key))
    await exchange(world)
    renewed = await world.joins.renew(member.id, certificate_request(key))
    await called(world, renewed.certificate)
    (row,) = await world.control.read(lambda tx: tx.node_keys.select())
    for _ in range(3):
        await world.clock.advance(1)
        await called(world, renewed.certificate)
    assert await world.control.read(lambda tx: tx.node_keys.select()) == [row]
    full = NodeIdentity(Control(FullStore(world.control.store), world.control.bus, world.clock))
    assert await called(replace(world, identity=full), member.granted.certificate) == member.id
