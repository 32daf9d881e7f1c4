"""How a deployment is asked for: strategies and their numbers, the release command, what a process has of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from shellwego.control.runs import forget_run
from shellwego.control.unit import Unit
from shellwego.core.changes import StartCommand, new_command
from shellwego.core.errors import ConflictError
from shellwego.core.instances import Phase
from shellwego.ports.store import eq
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
        ("mounts[0].source", {"config": {"mounts": [{"source": "data", "destination": "/data"}]}}),
        ("mounts[0].source", {"config": {"mounts": [{"source": "../etc", "destination": "/data"}]}}),
        ("mounts[0].destination", {"config": {"mounts": [{"source": "data", "destination": "/data/../etc"}]}}),
        ("mounts[0].destination", {"config": {"mounts": [{"source": "data", "destination": "/proc/x"}]}}),
        ("mounts[0].process", {"config": {"mounts": [{"source": "data", "destination": "/d", "process": "no"}]}}),
        (
            "mounts[1].source",
            {"config": {"mounts": [{"source": "data", "destination": path} for path in ("/a", "/b")]}},
        ),
        (
            "mounts[1].destination",
            {"config": {"mounts": [{"source": "a", "destination": "/a"}, {"source": "b", "destination": "/a/b"}]}},
        ),
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
    scaled = await world.control.read(lambda tx: tx.events.select(eq("type", "app.scaled")))
    assert [event.data["worker"] for event in scaled] == ["3"]
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


async def test_a_plan_tells_what_becomes_of_each_process(world: World) -> None:
    await world.deployed()
    await world.running()
    same = await world.made("/v1/apps/shop/plan", {})
    assert (same["changed"], same["processes"]) == (False, [PLANNED])
    body = {"port": 9000, "counts": {"web": 3, "worker": 1}, "config": {"processes": {"worker": {}}}}
    planned = await world.made("/v1/apps/shop/plan", body)
    assert planned["processes"] == [
        {**PLANNED, "count": 3, "kept": 0, "started": 3, "stopped": 1},
        {**PLANNED, "process": "worker", "kept": 0, "started": 1},
    ]
    assert {"field": "counts.web", "before": "1", "after": "3"} in planned["changes"]
    assert (await world.get("/v1/apps/shop")).json["counts"] == {"web": 1}, "nothing is done"


PLANNED = {
    **{"process": "web", "count": 1, "kept": 1, "started": 0, "stopped": 0},
    **{"obstacle": None, "pause": None, "evicts": 0},
}


async def test_a_plan_that_takes_instances_away_changes_something(world: World) -> None:
    await world.deployed()
    await world.running()
    planned = await world.made("/v1/apps/shop/plan", {"counts": {"web": 0}})
    assert (planned["changed"], planned["processes"]) == (True, [{**PLANNED, "count": 0, "kept": 0, "stopped": 1}])


async def test_a_plan_says_why_there_is_no_room(world: World) -> None:
    """The node has 8 GiB: beside an old instance of 5 GiB there is no room for a new one, in its place there is."""
    await deployed(world, config={"processes": {"web": {"memory": "5gb"}}})
    await world.running()
    for strategy, obstacle in (("rolling", "no node fits: 1 lacks memory"), ("immediate", "")):
        planned = await world.made("/v1/apps/shop/plan", {"port": 9000, "strategy": strategy})
        (web,) = planned["processes"]
        assert (web["obstacle"] or "").startswith(obstacle)
        assert bool(web["obstacle"]) == bool(obstacle)


async def test_a_plan_says_how_many_would_have_to_make_room(world: World) -> None:
    sizes = {"processes": {"web": {"memory": "5gb"}}}
    await deployed(world, config={**sizes, "placement": {"priority": 20}})
    low = await world.running()
    await world.commit(lambda unit: unit.tx.instances.update(replace(low, priority=20)))
    await world.made("/v1/apps", {"name": "urgent", "config": sizes})
    for name, priority, evicts in (("urgent", 50, 1), ("urgent", 29, 0), ("shop", 50, 0)):
        wish = {"image": "registry.example/hello:v1", "port": 9000, "config": {"placement": {"priority": priority}}}
        (web,) = (await world.made(f"/v1/apps/{name}/plan", wish))["processes"]
        assert web["obstacle"].startswith("no node fits: 1 lacks memory")
        assert (name, priority, web["evicts"]) == (name, priority, evicts)


async def test_a_plan_is_refused_as_the_deploy_would_be(world: World) -> None:
    await world.deployed()
    for body in ({"strategy": "bluegreen", "surge": "1"}, {"counts": {"nope": 1}}):
        assert (await world.post("/v1/apps/shop/plan", body)).status == 422


async def test_the_run_of_a_release_command_is_named_and_stays_while_its_deployment_waits(world: World) -> None:
    asked = await deployed(world, config={"release_command": ["migrate"]})
    assert asked["release_command_instance"] is None

    def run(unit: Unit) -> str:
        release = unit.tx.releases.get(asked["release_id"])
        assert release is not None
        start = StartCommand(deployment_id=asked["id"], release_id=release.id, command=("migrate",))
        row = new_command(start, asked["app_id"], release, id_=unit.new_id("ins"), now=unit.now())
        return unit.tx.instances.insert(replace(row, phase=Phase.FAILED, stopped_at=unit.now())).id

    id_ = await world.commit(run)
    shown = (await world.get(f"/v1/apps/shop/deployments/{asked['id']}")).json
    assert (shown["release_command"], shown["release_command_instance"]) == (["migrate"], id_)

    def forget(unit: Unit) -> None:
        app = unit.tx.apps.get(asked["app_id"])
        assert app is not None
        forget_run(unit, app, id_)

    with pytest.raises(ConflictError, match="has not ended"):  # it would be started once more
        await world.commit(forget)
    await world.made(f"/v1/apps/shop/deployments/{asked['id']}/actions/cancel", None)
    await world.commit(forget)
