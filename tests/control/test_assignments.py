"""What a node is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shellwego.core.instances import Desired, Observed, Phase
from tests.control.reporter import Reporter, reporting


@pytest.fixture
async def node() -> AsyncIterator[Reporter]:
    async with reporting() as reporter:
        yield reporter


async def test_an_assignment_says_everything_that_a_vm_needs(node: Reporter) -> None:
    (item,) = (await node.nodes.assignments(node.node_id)).items
    work = item.workload
    assert item.present
    assert (work.image_digest, work.port, work.process, work.release) == ("sha256:hello:v1", 8080, "web", 1)
    assert (work.network_id, work.organization_id) == ("net_x", "org_x")
    assert work.env["PORT"] == "8080"


async def test_variables_of_a_process_come_before_the_app_s_and_those_before_the_platform_s(node: Reporter) -> None:
    world = node.world
    release = await world.release_of(world.peek(lambda tx: tx.deployments.select()[0].id))
    process = replace(release.config.processes[0], env={"SAID": "process", "OWN": "1"})
    config = replace(release.config, env={"SAID": "app", "PORT": "1"}, processes=(process,))
    await world.control.commit(lambda unit: unit.tx.releases.update(replace(release, config=config)))
    (item,) = (await node.nodes.assignments(node.node_id)).items
    assert {name: item.workload.env[name] for name in ("SAID", "OWN", "PORT")} == {
        "SAID": "process",
        "OWN": "1",
        "PORT": "1",
    }


async def test_what_is_to_stop_is_assigned_as_absent_until_the_node_says_that_it_is_gone(node: Reporter) -> None:
    await node.world.change_app(stopped=True)
    await node.world.clock.until(lambda: node.instance.desired is Desired.STOP, 10)
    (item,) = (await node.nodes.assignments(node.node_id)).items
    assert not item.present
    await node.say(Observed(phase=Phase.STOPPED))
    assert (await node.nodes.assignments(node.node_id)).items == ()
    assert node.instance.stopped_at is not None
