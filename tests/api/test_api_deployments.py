"""How a deployment is asked for: strategies and their numbers, the release command, what a process has of its own."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.api.api_world import World

IMAGE = "registry.example/hello:v1"


async def deployed(world: World, **body: Any) -> dict[str, Any]:
    """Ask for a deployment of a new app; what the API says of it."""
    world.images.publish(IMAGE)
    await world.made("/v1/apps", {"name": "shop"})
    answer = await world.post("/v1/apps/shop/deployments", {"image": IMAGE, "port": 8080, **body})
    assert answer.status == 202, answer.content
    found: dict[str, Any] = answer.json
    return found


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("surge", {"surge": "some"}),
        ("max_unavailable", {"max_unavailable": "101%"}),
        ("surge", {"surge": "0", "max_unavailable": "0%"}),
        ("surge", {"strategy": "bluegreen", "surge": "1"}),
        ("max_unavailable", {"strategy": "immediate", "max_unavailable": "1"}),
        ("canary_steps", {"canary_steps": [10]}),
        ("canary_steps", {"strategy": "canary", "canary_steps": [50, 10]}),
        ("canary_steps.0", {"strategy": "canary", "canary_steps": [0, 10]}),
        ("canary_steps", {"strategy": "canary", "canary_steps": [100]}),
        ("canary_pause", {"strategy": "canary", "canary_pause": 86400}),
        ("counts.nope", {"counts": {"nope": 1}}),
        ("release_command", {"config": {"release_command": [""]}}),
        ("mounts[0]", {"config": {"mounts": [{"source": "data", "destination": "/data"}]}}),
        ("processes.web.env.A B", {"config": {"processes": {"web": {"env": {"A B": "c"}}}}}),
        ("config.processes.web.restart.backoff", {"config": {"processes": {"web": {"restart": {"backoff": 0}}}}}),
    ],
)
async def test_what_could_never_be_rolled_out_is_refused_by_its_field(world: World, field: str, body: Any) -> None:
    world.images.publish(IMAGE)
    await world.made("/v1/apps", {"name": "shop"})
    before = (await world.get("/v1/apps/shop")).json
    answer = await world.post("/v1/apps/shop/deployments", {"image": IMAGE, "port": 8080, **body})
    assert answer.status == 422, answer.content
    assert [each["field"] for each in answer.json["errors"]] == [field]
    assert (await world.get("/v1/apps/shop")).json == before
    assert (await world.get("/v1/apps/shop/deployments")).json["data"] == []


async def test_a_deployment_tells_the_numbers_that_it_was_asked_for_with(world: World) -> None:
    told = await deployed(
        world,
        strategy="canary",
        canary_steps=[5, 20, 100],
        canary_pause=30,
        max_unavailable="1",
        surge="50%",
        wait_timeout=120,
        config={"release_command": ["migrate", "--all"]},
    )
    assert (told["strategy"], told["max_unavailable"], told["surge"]) == ("canary", "1", "50%")
    assert told["canary"] == {"steps": [5, 20], "pause": 30, "step": 0, "weight": 5, "holds_since": None}
    assert told["release_command"] == ["migrate", "--all"]
    assert [(each["stage"], each["finished_at"]) for each in told["stages"]] == [("admission", None)]
    asked, deadline = (datetime.fromisoformat(told[name]) for name in ("created_at", "deadline"))
    assert (deadline - asked).total_seconds() == 120 + 2 * 30, "its pauses are not counted"


@pytest.mark.parametrize("strategy", ["rolling", "bluegreen", "canary", "immediate"])
async def test_each_strategy_can_be_asked_for(world: World, strategy: str) -> None:
    assert (await deployed(world, strategy=strategy))["strategy"] == strategy
    assert strategy in (await world.get("/v1/capabilities")).json["strategies"]


async def test_counts_of_a_deploy_are_the_app_s_and_no_release_s(world: World) -> None:
    config = {"processes": {"worker": {"memory": "64m", "env": {"QUEUE": "slow"}}}}
    await deployed(world, counts={"worker": 3}, config=config)
    app = (await world.get("/v1/apps/shop")).json
    assert app["counts"] == {"web": 1, "worker": 3}
    worker = app["config"]["processes"][1]
    assert (worker["env_names"], worker["backoff"]) == (["QUEUE"], None)


async def test_a_deploy_that_changes_counts_alone_is_no_new_release(world: World) -> None:
    await deployed(world)
    await world.running()
    before = (await world.get("/v1/apps/shop")).json
    answer = await world.post("/v1/apps/shop/deployments", {"counts": {"web": 0}})
    assert (answer.status, answer.json["release"]) == (202, before["release"])
    assert (await world.get("/v1/apps/shop")).json["counts"] == {"web": 0}


async def test_values_of_a_process_s_variables_are_in_no_difference(world: World) -> None:
    await deployed(world, config={"processes": {"web": {"env": {"KEY": "hunter2"}}}})
    await world.made("/v1/apps/shop/deployments", {"config": {"processes": {"web": {"env": {"KEY": "swordfish"}}}}})
    answer = await world.get("/v1/apps/shop/releases/v2/diff", query={"against": "v1"})
    assert answer.json["changes"] == [{"field": "processes.web.env.KEY", "before": "(set)", "after": "(set)"}]
    planned = await world.post("/v1/apps/shop/plan", {"config": {"processes": {"web": {"env": {"KEY": None}}}}})
    assert b"swordfish" not in answer.content + planned.content
