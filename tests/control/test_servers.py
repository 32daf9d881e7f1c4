"""What servers say of themselves, and what they tell."""

from __future__ import annotations

from shellwego.control.servers import KNOWN_S, Servers
from shellwego.core.servers import KEPT_S, SAY_S
from tests.control.join_world import JoinWorld, join_request, make_join_world

ONE, TWO = "https://one.example:7081", "https://two.example:7081"


def another(world: JoinWorld, *urls: str) -> Servers:
    return Servers(world.control, "two", urls)


async def test_any_server_tells_of_one_that_came() -> None:
    world = make_join_world()
    await world.servers.say()
    assert await world.servers.told() == (ONE,)
    await another(world, TWO).say()
    await world.clock.advance(KNOWN_S)
    assert await world.servers.told() == (ONE, TWO)
    member = await world.joins.join(join_request(await world.token()))
    assert member.granted.servers == (ONE, TWO)


async def test_one_that_went_is_told_no_more_after_a_while() -> None:
    world = make_join_world()
    await another(world, TWO).say()
    await world.servers.say()
    await world.clock.advance(KEPT_S - SAY_S)
    await world.servers.say()
    assert await world.servers.told() == (ONE, TWO)
    await world.clock.advance(SAY_S)
    assert await world.servers.told() == (ONE,)


async def test_one_without_an_address_of_its_own_says_nothing_and_tells_what_others_say() -> None:
    world = make_join_world()
    silent = another(world)
    await silent.say()
    assert await silent.told() == ()
    await world.servers.say()
    await world.clock.advance(KNOWN_S)
    assert await silent.told() == (ONE,)
