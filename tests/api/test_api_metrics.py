"""What Prometheus reads of the traffic of apps."""

from __future__ import annotations

from collections.abc import Mapping

from shellwego.control.nodes import Nodes
from shellwego.control.traffic import KEPT_S
from shellwego.core.assignments import NodeReport
from shellwego.core.traffic import NodeTraffic, Passed
from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import ADMIN, World

SENT = "shellwego_network_transmit_bytes_total"
DROPPED = "shellwego_network_dropped_packets_total"


async def say(world: World, apps: Mapping[str, int], dropped: Mapping[str, int], *, epoch: int = 1) -> None:
    """As the node of this world, by a report: bytes that apps sent, frames that were dropped."""
    nodes = Nodes(world.control, world.sealer, traffic=world.app.state.context.traffic)
    traffic = NodeTraffic(apps={id_: Passed(transmit_bytes=sent) for id_, sent in apps.items()}, dropped=dropped)
    node = world.node
    await nodes.report(NodeReport(node_id=node.id, epoch=epoch, sequence=1, facts=node.facts, traffic=traffic))


async def lines(world: World) -> list[str]:
    text = (await world.get("/metrics", token=ADMIN)).content.decode()
    return [line for line in text.splitlines() if line.startswith("shellwego_network_")]


async def test_apps_are_told_by_node_and_name_and_drops_by_node_and_reason(world: World) -> None:
    await world.deployed()
    shop = (await world.running()).app_id
    await say(world, {shop: 2**60, "app_nobody": 5}, {"source-mac": 3})
    project = f'organization="default",project="{world.project.name}"'
    told = await lines(world)
    assert f'{SENT}{{node="{world.node.name}",{project},app="shop"}} {2**60}' in told
    assert f'{DROPPED}{{node="{world.node.name}",reason="source-mac"}} 3' in told
    assert len([line for line in told if line.startswith(SENT)]) == 1, "an app that is not there is not told of"


async def test_what_a_node_said_long_ago_or_in_a_past_epoch_is_not_told(world: World) -> None:
    await say(world, {}, {"arp": 1}, epoch=0)
    assert await lines(world) == []
    await say(world, {}, {"arp": 1})
    assert len(await lines(world)) == 1
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(KEPT_S + 1)
    assert await lines(world) == []
