"""The road of a deploy through the real loops, on memory drivers and virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shellwego.core.deployments import DeploymentState
from tests.control.rollout_world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.begin()
    yield world
    await world.end()


async def test_a_first_deploy_ends_in_a_routed_instance(world: World) -> None:
    node, edge = await world.node(), await world.edge()
    done = await world.finished(await world.deploy("hello:v1"))
    assert done.state is DeploymentState.SUCCEEDED
    (instance,) = world.serving()
    await world.clock.until(lambda: edge.endpoints() == {instance.id}, 5)
    assert node.running() == 1
