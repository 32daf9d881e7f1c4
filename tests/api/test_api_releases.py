"""Releases as people see them: how each rollout went, who asked for it, and which can be gone back to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.control.unit import Unit
from shellwego.core.deployments import DeploymentState
from tests.api.api_world import World


async def end_newest(world: World, state: DeploymentState) -> None:
    """End the newest deployment in this state, as the rollout loop would."""

    def end(unit: Unit) -> None:
        newest = max(unit.tx.deployments.select(), key=lambda deployment: deployment.id)
        unit.tx.deployments.update(replace(newest, state=state, finished_at=unit.now()))

    await world.commit(end)


@pytest.mark.databases
async def test_a_release_tells_how_its_rollout_went_and_who_asked_for_it(world: World) -> None:
    await world.deployed()
    await end_newest(world, DeploymentState.SUCCEEDED)
    await world.made("/v1/apps/shop/deployments", {"port": 7000})
    await end_newest(world, DeploymentState.ROLLED_BACK)
    await world.made("/v1/apps/shop/deployments", {"port": 8000})
    found = (await world.get("/v1/apps/shop/releases")).json["data"]
    assert [release["state"] for release in found] == ["pending", "rolled_back", "succeeded"]
    assert {release["created_by_email"] for release in found} == {"owner@x"}
    assert (await world.get("/v1/apps/shop/releases/v2")).json["state"] == "rolled_back"


@pytest.mark.parametrize("state", [DeploymentState.FAILED, DeploymentState.ROLLED_BACK])
async def test_a_release_that_failed_is_nothing_to_go_back_to(world: World, state: DeploymentState) -> None:
    await world.deployed()
    await end_newest(world, state)
    await world.made("/v1/apps/shop/deployments", {"port": 7000})
    answer = await world.post("/v1/apps/shop/actions/rollback", {"release": "v1"})
    assert (answer.status, answer.code) == (409, "release-failed")


async def test_while_a_registry_is_down_the_way_to_deploy_what_the_app_has_is_told(world: World) -> None:
    await world.deployed()
    world.images.unreachable.add("registry.example")
    answer = await world.post("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1"})
    assert (answer.status, answer.code) == (503, "registry-unreachable")
    assert "A deploy without an image keeps the one that the app has." in answer.json["resolution"]
    assert await world.made("/v1/apps/shop/deployments", {"port": 7000})
