"""Nodes that encrypt what goes between them: what each is told of the others' keys."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import pytest

from shellwego.control.nodes import Nodes
from shellwego.control.peers import rotate_keys
from shellwego.control.sealing import Sealer
from shellwego.core.assignments import Assignments, NodeReport, Registration
from shellwego.core.errors import ConflictError
from shellwego.core.nodes import NodeFacts, Underlay
from shellwego.core.peers import ROTATION_STEP_S, ROTATION_STEPS, PeerNode
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.ports.store import eq
from tests.control.rollout_world import World, node_facts

GENERATION_S = 1000.0
FIRST, SECOND, THIRD = (
    tuple(b64encode(bytes([number]) * 32).decode() for number in pair) for pair in ((1, 2), (3, 4), (5, 6))
)


@pytest.fixture
def nodes(world: World) -> Nodes:
    return Nodes(world.control, Sealer(world.control, MemoryKms()), key_generation_s=GENERATION_S)


def facts_of(number: int, keys: tuple[str, ...]) -> NodeFacts:
    return replace(
        node_facts(),
        subnet=f"10.64.{16 * number}.0/20",
        address=f"192.0.2.{number}",
        underlay=Underlay.WIREGUARD,
        tunnel_keys=keys,
        tunnel_port=7084,
    )


async def joined(nodes: Nodes, number: int, keys: tuple[str, ...]) -> str:
    answer = await nodes.register(Registration(name=f"node-{number}", facts=facts_of(number, keys)))
    return answer.node_id


async def told(world: World, nodes: Nodes, node_id: str) -> Assignments:
    await world.clock.advance(2)
    return await nodes.assignments(node_id)


def peer(number: int, keys: tuple[str, ...]) -> tuple[str, tuple[str, ...], int]:
    return f"192.0.2.{number}", keys, 7084


def seen(assignments: Assignments) -> list[tuple[str, tuple[str, ...], int]]:
    return [(each.address, each.keys, each.port) for each in sorted(assignments.peers, key=address_of)]


def address_of(peer: PeerNode) -> str:
    return peer.address


async def test_each_node_is_told_the_keys_of_the_others_and_of_new_ones_at_once(world: World, nodes: Nodes) -> None:
    one, two = await joined(nodes, 1, FIRST), await joined(nodes, 2, SECOND)
    assert seen(await told(world, nodes, one)) == [peer(2, SECOND)]
    await nodes.report(NodeReport(node_id=two, epoch=1, sequence=1, facts=facts_of(2, THIRD)))
    assert seen(await told(world, nodes, one)) == [peer(2, THIRD)]


async def test_who_tells_another_nodes_key_gets_nothing_by_it(world: World, nodes: Nodes) -> None:
    """Else he could have a node's packets dropped everywhere."""
    one, two = await joined(nodes, 1, FIRST), await joined(nodes, 2, SECOND)
    liar = await joined(nodes, 3, (FIRST[1], THIRD[0]))
    await nodes.report(NodeReport(node_id=two, epoch=1, sequence=1, facts=facts_of(2, (SECOND[0], FIRST[0]))))
    assert seen(await told(world, nodes, liar)) == []
    assert seen(await told(world, nodes, one)) == []
    await nodes.report(NodeReport(node_id=two, epoch=1, sequence=2, facts=facts_of(2, SECOND)))
    assert seen(await told(world, nodes, two)) == [peer(1, FIRST)]


@pytest.mark.parametrize(
    "keys", [FIRST[:1], (FIRST[0], FIRST[0]), (*FIRST, SECOND[0]), (FIRST[0], "no key"), (FIRST[0], FIRST[1] + "\n")]
)
async def test_what_are_no_two_keys_is_not_kept(world: World, nodes: Nodes, keys: tuple[str, ...]) -> None:
    await joined(nodes, 1, keys)
    two = await joined(nodes, 2, SECOND)
    assert seen(await told(world, nodes, two)) == []


async def test_an_exchange_that_was_asked_for_is_told_to_all_and_goes_on_by_itself(world: World, nodes: Nodes) -> None:
    one, two = await joined(nodes, 1, FIRST), await joined(nodes, 2, SECOND)
    before = (await told(world, nodes, one)).key_step
    began = await world.control.commit(rotate_keys)
    assert (began.nodes, began.over_at - began.began_at) == (2, ROTATION_STEPS * ROTATION_STEP_S)
    steps = [(await told(world, nodes, node)).key_step for node in (one, two)]
    assert [step - before for step in steps] == [1, 1]
    assert await world.control.commit(rotate_keys) == began, "it goes on"
    await world.clock.advance(began.over_at - began.began_at)
    assert (await told(world, nodes, one)).key_step - before >= ROTATION_STEPS
    again = await world.control.commit(rotate_keys)
    assert again.began_at > began.began_at
    events = await world.control.read(lambda tx: tx.events.select(eq("type", "platform.node_keys.rotated")))
    assert [event.data for event in events] == [{"nodes": "2"}] * 2


async def test_there_is_nothing_to_exchange_where_no_node_encrypts(world: World) -> None:
    with pytest.raises(ConflictError) as refused:
        await world.control.commit(rotate_keys)
    assert refused.value.code == "nothing-encrypted"


async def test_it_is_known_since_when_a_node_has_each_of_its_keys(world: World, nodes: Nodes) -> None:
    one = await joined(nodes, 1, FIRST)

    async def since() -> tuple[float, ...]:
        node = await world.control.read(lambda tx: tx.nodes.get(one))
        assert node is not None
        return node.tunnel_keys_since

    first = await since()
    assert first[0] == first[1]
    await world.clock.advance(1)
    await nodes.report(NodeReport(node_id=one, epoch=1, sequence=1, facts=facts_of(1, (FIRST[0], THIRD[0]))))
    kept, fresh = await since()
    assert kept == first[0]
    assert fresh == kept + 1
    await world.clock.advance(1)
    registration = Registration(name="node-1", known_node_id=one, facts=facts_of(1, (FIRST[0], THIRD[0])))
    await nodes.register(registration)
    assert await since() == (kept, fresh)


async def test_all_nodes_are_told_the_same_step_by_the_servers_clock(world: World, nodes: Nodes) -> None:
    one, two = await joined(nodes, 1, FIRST), await joined(nodes, 2, SECOND)
    before = (await told(world, nodes, one)).key_step
    await world.clock.advance(GENERATION_S)
    after = [(await told(world, nodes, node)).key_step for node in (one, two)]
    assert after[0] - before == 2
    assert after[1] - after[0] in (0, 1)
