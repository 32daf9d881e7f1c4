"""Apps, environment, scale and deployments over the API."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from shellwego.control.unit import Unit
from shellwego.core.deployments import DeploymentState
from shellwego.core.fleet import Fleet
from shellwego.core.images import ImageKind, ImageState
from shellwego.core.instances import Phase
from shellwego.core.nodes import Backend
from shellwego.core.placement import PlacementRequest, Refusal
from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import ADMIN, FOREIGN, VIEWER, World


async def test_a_new_app_has_a_hostname_and_runs_nothing(world: World) -> None:
    app = await world.made("/v1/apps", {"name": "shop"})
    assert (app["hostname"], app["url"]) == ("shop.localhost", "http://shop.localhost:8080")
    assert (app["state"], app["counts"], app["running"], app["release"]) == ("stopped", {"web": 1}, {}, None)


async def test_two_tenants_with_one_name_get_two_hostnames(world: World) -> None:
    first = await world.made("/v1/apps", {"name": "shop"})
    second = await world.made("/v1/apps", {"name": "shop"}, token=FOREIGN)
    assert first["hostname"] == "shop.localhost"
    assert second["hostname"] == "shop-theirs.localhost"
    assert (await world.post("/v1/apps", {"name": "shop"})).code == "app-exists"


async def test_an_app_is_made_whole_with_config_env_and_counts(world: World) -> None:
    body = {
        "name": "shop",
        "env": {"A": "1"},
        "counts": {"worker": 3},
        "config": {
            "processes": {"worker": {"command": ["python", "-m", "jobs"], "memory": "1gb", "cpu": "2"}},
            "services": [{"port": 8080}],
            "checks": [{"type": "http", "path": "/healthz", "interval": 1}],
        },
    }
    app = await world.made("/v1/apps", body)
    assert app["counts"] == {"web": 1, "worker": 3}
    worker = app["config"]["processes"][1]
    assert (worker["memory_bytes"], worker["cpu_milli"], worker["vcpus"]) == (1 << 30, 2000, 2)
    assert worker["command"] == ["python", "-m", "jobs"]
    assert app["config"]["env_names"] == ["A"]
    assert app["config"]["checks"][0]["port"] is None


async def test_a_deploy_makes_a_release_and_waits_for_its_image(world: World) -> None:
    deployment = await world.deployed()
    assert (deployment["state"], deployment["stage"], deployment["release"]) == ("pending", "admission", 1)
    image = (await world.get("/v1/images")).json["data"][0]
    assert (image["reference"], image["state"], image["loaded"]) == ("registry.example/hello:v1", "fetching", False)
    release = (await world.get("/v1/apps/shop/releases/v1")).json
    assert release["image_digest"] == image["digest"]
    assert release["config"]["services"] == [{"process": "web", "port": 8080}]
    assert (await world.get("/v1/apps/shop")).json["state"] == "deploying"


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        ("hello:v1", 404, "image-not-found"),
        ("registry.example/nothing:v1", 404, "image-not-found"),
        ("forbidden.example/x", 403, "registry-forbidden"),
        ("down.example/x", 503, "registry-unreachable"),
        ("Hello World", 422, "bad-reference"),
        ("$(id)", 422, "bad-reference"),
        ("../../etc/passwd", 422, "bad-reference"),
        ("a/b\n", 422, "bad-reference"),
        ("x" * 600, 422, "refused"),
    ],
)
async def test_a_deploy_of_an_image_that_is_not_there_stores_nothing(
    world: World, image: str, status: int, code: str
) -> None:
    world.images.forbidden.add("forbidden.example")
    world.images.unreachable.add("down.example")
    await world.made("/v1/apps", {"name": "shop"})
    answer = await world.post("/v1/apps/shop/deployments", {"image": image})
    assert (answer.status, answer.code) == (status, code)
    assert (await world.get("/v1/apps/shop/deployments")).json["data"] == []
    assert (await world.get("/v1/apps/shop/releases")).json["data"] == []
    assert (await world.get("/v1/images")).json["data"] == []


async def test_a_deploy_without_an_image_needs_an_earlier_one(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    answer = await world.post("/v1/apps/shop/deployments", {})
    assert (answer.status, answer.code) == (422, "no-image")
    assert answer.json["errors"][0]["field"] == "image"


async def test_the_only_port_that_an_image_exposes_becomes_the_service(world: World) -> None:
    world.images.publish("registry.example/one:v1", exposed_ports=(3000,))
    world.images.publish("registry.example/two:v1", exposed_ports=(3000, 4000))
    for name, ports in (("one", [{"process": "web", "port": 3000}]), ("two", [])):
        await world.made("/v1/apps", {"name": name})
        await world.made(f"/v1/apps/{name}/deployments", {"image": f"registry.example/{name}:v1"})
        assert (await world.get(f"/v1/apps/{name}")).json["config"]["services"] == ports


async def test_a_check_uses_the_only_port_that_an_image_exposes_and_else_asks_for_one(world: World) -> None:
    world.images.publish("registry.example/one:v1", exposed_ports=(3000,))
    world.images.publish("registry.example/two:v1", exposed_ports=(3000, 4000))
    await world.made("/v1/apps", {"name": "shop"})
    refused = await world.post(
        "/v1/apps/shop/deployments", {"image": "registry.example/two:v1", "check_path": "/healthz"}
    )
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "checks[0].port")
    assert "--port" in refused.json["detail"]
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/one:v1", "check_path": "/healthz"})
    assert (await world.get("/v1/apps/shop")).json["config"]["services"] == [{"process": "web", "port": 3000}]


async def test_a_moved_tag_deploys_what_it_means_now(world: World) -> None:
    await world.deployed()
    moved = world.images.publish("registry.example/hello:v1", size_bytes=2000)
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1"})
    assert (await world.get("/v1/apps/shop/releases/2")).json["image_digest"] == moved
    await world.made("/v1/apps/shop/deployments", {"description": "same image"})
    assert (await world.get("/v1/apps/shop/releases/3")).json["image_digest"] == moved


async def test_what_no_node_could_serve_is_refused_with_the_field(world: World) -> None:
    world.images.publish("registry.example/hello:v1")
    await world.made("/v1/apps", {"name": "shop"})
    body = {"image": "registry.example/hello:v1", "config": {"processes": {"web": {"memory": "900gb"}}}}
    answer = await world.post("/v1/apps/shop/deployments", body)
    assert (answer.status, answer.code) == (422, "cannot-be-placed")
    assert answer.json["errors"][0]["field"] == "processes.web.memory"


@pytest.mark.parametrize(
    "body",
    [
        {"strategy": "hope"},
        {"wait_timeout": 0},
        {"port": 0},
        {"port": 70000},
        {"check_path": "no-slash", "port": 80},
        {"check_path": "/a b", "port": 80},
        {"check_path": "/"},
        {"port": 80, "config": {"services": [{"port": 81}]}},
        {"command": ["a\u0000b"]},
        {"command": ["x"] * 200},
        {"config": {"checks": [{"type": "exec"}]}},
        {"config": {"checks": [{"type": "tcp", "process": "nope", "port": 1}]}},
        {"config": {"services": [{"process": "nope", "port": 1}]}},
        {"config": {"remove_processes": ["web"]}},
        {"process": "nope"},
        {"process": "nope", "port": 80},
        {"config": {"processes": {"web": {"stop_signal": "KILL;reboot"}}}},
        {"config": {"processes": {f"p{n}": {} for n in range(16)}}},
    ],
)
async def test_a_deploy_that_means_nothing_is_refused_and_leaves_nothing(world: World, body: Any) -> None:
    world.images.publish("registry.example/hello:v1")
    await world.made("/v1/apps", {"name": "shop"})
    before = (await world.get("/v1/apps/shop")).json
    answer = await world.post("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1", **body})
    assert answer.status == 422, answer.content
    assert answer.json["errors"]
    assert (await world.get("/v1/apps/shop")).json == before
    assert (await world.get("/v1/images")).json["data"] == []


async def test_a_command_makes_a_process_of_a_new_name(world: World) -> None:
    await world.deployed()
    await world.made("/v1/apps/shop/deployments", {"process": "worker", "command": ["work"]})
    processes = (await world.get("/v1/apps/shop")).json["config"]["processes"]
    assert [(process["name"], process["command"]) for process in processes] == [("web", None), ("worker", ["work"])]


async def test_a_backend_that_no_node_offers_is_refused_and_an_offered_one_is_kept_until_it_is_taken_back(
    world: World,
) -> None:
    await world.deployed()
    answer = await world.post("/v1/apps/shop/deployments", {"backend": "wasm"})
    assert (answer.status, [fault["field"] for fault in answer.json["errors"]]) == (422, ["backend"])
    assert (await world.post("/v1/apps/shop/deployments", {"backend": "../x"})).status == 422
    planned = await world.made("/v1/apps/shop/plan", {"backend": "kvm"})
    assert planned["changes"] == [{"field": "backend", "before": None, "after": "kvm"}]
    await world.made("/v1/apps/shop/deployments", {"backend": "kvm"})
    assert (await world.made("/v1/apps/shop/plan", {"env": {"A": "1"}}))["changes"][0]["field"] == "env.A"
    assert (await world.made("/v1/apps/shop/plan", {"backend": ""}))["changes"] == [
        {"field": "backend", "before": "kvm", "after": None}
    ]


async def test_an_image_of_a_module_chooses_its_backend_and_one_of_linux_is_refused_on_that(world: World) -> None:
    world.images.publish("registry.example/module:v1", kind=ImageKind.WASM)
    linux = world.images.publish("registry.example/linux:v1")
    await world.made("/v1/apps", {"name": "shop"})
    absent = await world.post("/v1/apps/shop/deployments", {"image": "registry.example/module:v1"})
    assert (absent.status, absent.json["errors"][0]["field"]) == (422, "backend")
    wasm = Backend(name="wasm", status="ready", isolation="wasm-sandbox")
    offers = replace(world.node, facts=replace(world.node.facts, backends=(*world.node.facts.backends, wasm)))
    await world.commit(lambda unit: unit.tx.nodes.update(offers))
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/module:v1"})
    assert (await world.made("/v1/apps/shop/plan", {"backend": ""}))["changes"] == [
        {"field": "backend", "before": "wasm", "after": None}
    ]
    refused = await world.post("/v1/apps/shop/deployments", {"image": "registry.example/linux:v1"})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "backend")
    assert "a Linux system, which the backend “wasm” does not run" in refused.json["detail"]
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/linux:v1", "backend": ""})
    assert (await world.get("/v1/apps/shop/releases/2")).json["image_digest"] == linux
    refused = await world.post("/v1/apps/shop/deployments", {"image": "registry.example/module:v1", "backend": "kvm"})
    assert "a WebAssembly module" in refused.json["detail"]


async def test_where_a_node_reaches_a_vm_without_an_address_is_not_told(world: World) -> None:
    await world.deployed()
    await world.running()
    shown = await world.get("/v1/apps/shop/instances")
    assert [each["address"] for each in shown.json["data"]] == ["10.64.0.5"]

    def move(unit: Unit) -> None:
        (instance,) = unit.tx.instances.select()
        at_socket = replace(instance.observed, address="unix:/run/shellwego/abc/vm/abcdefghijkl/http.sock")
        unit.tx.instances.update(replace(instance, observed=at_socket))

    await world.commit(move)
    shown = await world.get("/v1/apps/shop/instances")
    assert [each["address"] for each in shown.json["data"]] == [None]


async def test_a_plan_tells_what_a_deploy_would_change_and_does_nothing(world: World) -> None:
    await world.deployed()
    await world.running()
    same = await world.made("/v1/apps/shop/plan", {"image": "registry.example/hello:v1"})
    assert (same["changed"], same["changes"], same["replaced"]) == (False, [], {})
    other = await world.made("/v1/apps/shop/plan", {"port": 9000, "env": {"SECRET": "hunter2"}})
    assert other["replaced"] == {"web": 1}
    assert {(c["field"], c["before"], c["after"]) for c in other["changes"]} == {
        ("services.web.port", "8080", "9000"),
        ("env.SECRET", None, "(set)"),
    }
    assert (await world.get("/v1/apps/shop/releases")).json["pagination"]["has_more"] is False
    assert len((await world.get("/v1/apps/shop/releases")).json["data"]) == 1


async def test_a_deploy_that_would_change_nothing_is_the_one_that_was(world: World) -> None:
    first = await world.deployed()
    await world.running()
    again = await world.made("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1", "port": 8080})
    assert (again["id"], again["state"]) == (first["id"], "succeeded")
    unset = await world.call("PATCH", "/v1/apps/shop/env", {"env": {"NOPE": None}})
    assert unset.json["deployment_id"] == first["id"]
    assert len((await world.get("/v1/apps/shop/releases")).json["data"]) == 1


async def test_a_deploy_makes_up_for_what_is_missing_though_nothing_changed(world: World) -> None:
    first = await world.deployed()
    await world.running(phase=Phase.FAILED)
    again = await world.made("/v1/apps/shop/deployments", {})
    assert (again["id"] != first["id"], again["release"]) == (True, 2)


async def test_an_instance_that_a_later_release_keeps_counts_as_of_that_one(world: World) -> None:
    await world.deployed()
    kept = await world.running()
    await world.made("/v1/apps/shop/deployments", {"env": {"A": "1"}})
    old = (await world.get(f"/v1/apps/shop/instances/{kept.id}")).json
    back = await world.made("/v1/apps/shop/actions/rollback", {"release": "v1"})
    await world.running()
    same = (await world.get(f"/v1/apps/shop/instances/{kept.id}")).json
    assert (old["release"], same["release"], same["release_id"]) == (1, back["release"], back["release_id"])


async def test_a_changed_variable_is_rolled_out_unless_it_is_staged(world: World) -> None:
    await world.deployed()
    staged = await world.call("PATCH", "/v1/apps/shop/env", {"env": {"A": "1"}, "stage": True})
    assert staged.json == {"env": {"A": "1"}, "secrets": {}, "deployment_id": None}
    assert len((await world.get("/v1/apps/shop/releases")).json["data"]) == 1
    changed = await world.call("PATCH", "/v1/apps/shop/env", {"env": {"B": "2"}})
    assert changed.json["deployment_id"]
    release = (await world.get("/v1/apps/shop/releases/v2")).json
    assert release["config"]["env_names"] == ["A", "B"]
    unset = await world.call("PATCH", "/v1/apps/shop/env", {"env": {"A": None}})
    assert unset.json["env"] == {"B": "2"}


async def test_values_of_variables_are_for_those_who_may_change_them(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop", "env": {"PASSWORD": "hunter2"}})
    assert (await world.get("/v1/apps/shop/env")).json["env"] == {"PASSWORD": "hunter2"}
    assert (await world.get("/v1/apps/shop/env", token=VIEWER)).status == 403
    for path in ("/v1/apps/shop", "/v1/apps"):
        assert b"hunter2" not in (await world.get(path, token=VIEWER)).content


async def test_a_count_is_no_release_and_a_size_is_one(world: World) -> None:
    await world.deployed()
    counted = await world.made("/v1/apps/shop/scale", {"counts": {"web": 3}})
    assert (counted["app"]["counts"], counted["deployment_id"]) == ({"web": 3}, None)
    sized = await world.made("/v1/apps/shop/scale", {"sizes": {"web": {"memory": "1gb"}}})
    assert sized["deployment_id"]
    release = (await world.get("/v1/apps/shop/releases/v2")).json
    assert release["config"]["processes"][0]["memory_bytes"] == 1 << 30
    for body in ({}, {"counts": {"nope": 1}}, {"sizes": {"nope": {"memory": "1gb"}}}, {"counts": {"web": 5000}}):
        assert (await world.post("/v1/apps/shop/scale", body)).status == 422


async def test_a_count_that_the_nodes_could_never_hold_is_refused(world: World) -> None:
    await world.deployed()
    answer = await world.post("/v1/apps/shop/scale", {"counts": {"nope": 1}})
    assert answer.json["resolution"].startswith("The app has: web.")
    answer = await world.post("/v1/apps/shop/scale", {"counts": {"web": 1000}})
    assert (answer.status, answer.code, answer.json["errors"][0]["field"]) == (422, "cannot-be-placed", "counts.web")
    smaller = await world.post("/v1/apps/shop/scale", {"counts": {"web": 100}, "sizes": {"web": {"memory": "64mb"}}})
    assert smaller.status == 202, "its new size counts"
    assert (await world.made("/v1/apps/shop/scale", {"sizes": {"web": {"memory": "4gb"}}}))["app"]["counts"][
        "web"
    ] == 100
    fewer = await world.post("/v1/apps/shop/scale", {"counts": {"web": 50}})
    assert fewer.status == 202, "less than what is wanted is always taken"


async def test_start_stop_and_restart(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    assert (await world.post("/v1/apps/shop/actions/restart")).code == "not-running"
    world.images.publish("registry.example/hello:v1")
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1"})
    await world.running()
    assert (await world.get("/v1/apps/shop")).json["state"] == "running"
    restarted = await world.made("/v1/apps/shop/actions/restart", {"strategy": "immediate"})
    deployment = (await world.get(f"/v1/apps/shop/deployments/{restarted['deployment_id']}")).json
    assert (deployment["release"], deployment["strategy"]) == (1, "immediate")
    stopped = await world.made("/v1/apps/shop/actions/stop")
    assert (stopped["app"]["stopped"], stopped["app"]["state"]) == (True, "stopped")
    assert (await world.post("/v1/apps/shop/actions/restart")).code == "not-running"
    assert (await world.made("/v1/apps/shop/actions/start"))["app"]["stopped"] is False


async def test_a_destroyed_app_takes_no_more_orders(world: World) -> None:
    await world.deployed()
    gone = await world.call("DELETE", "/v1/apps/shop")
    assert (gone.status, gone.json["app"]["deleting"]) == (202, True)
    assert (await world.call("DELETE", "/v1/apps/shop")).status == 202
    for path, body in (
        ("deployments", {"image": "registry.example/hello:v1"}),
        ("actions/start", None),
        ("actions/restart", None),
        ("actions/rollback", {"release": "v1"}),
        ("scale", {"counts": {"web": 2}}),
        ("runs", {"command": ["true"]}),
    ):
        answer = await world.post(f"/v1/apps/shop/{path}", body)
        assert (answer.status, answer.code) == (409, "app-deleting"), path


async def test_a_deployment_is_cancelled_once(world: World) -> None:
    deployment = await world.deployed()
    path = f"/v1/apps/shop/deployments/{deployment['id']}"
    cancelled = await world.post(f"{path}/actions/cancel")
    assert (cancelled.json["state"], cancelled.json["finished"]) == ("cancelled", True)
    assert (await world.post(f"{path}/actions/cancel")).code == "deployment-finished"


async def test_waiting_ends_when_the_deployment_does(world: World) -> None:
    deployment = await world.deployed()
    path = f"/v1/apps/shop/deployments/{deployment['id']}"
    assert isinstance(world.clock, VirtualClock)
    early = await world.clock.run(world.get(f"{path}/wait?timeout=3"))
    assert early.json["state"] == "pending"

    async def finish() -> None:
        await world.clock.sleep(5)
        await world.running()

    task = asyncio.ensure_future(finish())
    started = world.clock.monotonic()
    late = await world.clock.run(world.get(f"{path}/wait?timeout=60"))
    await task
    assert late.json["state"] == "succeeded"
    assert world.clock.monotonic() - started < 8
    same = await world.get(f"{path}/wait?timeout=0&version={late.json['version']}&state=failed")
    assert same.json == late.json
    changed = await world.clock.run(world.get(f"{path}/wait?timeout=60&version=1&state=failed"))
    assert changed.json == late.json


async def test_deployments_are_filtered_by_state(world: World) -> None:
    await world.deployed()
    for states, count in (("pending", 1), ("pending,failed", 1), ("failed", 0), (",".join(["x"] * 51), None)):
        answer = await world.get(f"/v1/apps/shop/deployments?filter[state]={states}")
        assert (len(answer.json["data"]) if count is not None else answer.status) == (400 if count is None else count)


async def test_a_deployment_in_progress_shows_as_the_apps_state(world: World) -> None:
    await world.deployed()
    await world.running(phase=Phase.UNHEALTHY)
    assert (await world.get("/v1/apps/shop")).json["state"] == "failed"

    def fail(unit: Any) -> None:
        row = unit.tx.deployments.select()[0]
        unit.tx.deployments.update(replace(row, state=DeploymentState.FAILED, reason="x", reason_code="y"))
        image = unit.tx.images.select()[0]
        unit.tx.images.update(replace(image, state=ImageState.FAILED, reason="corrupt"))

    await world.commit(fail)
    assert (await world.get("/v1/images")).json["data"][0]["reason"] == "corrupt"
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1"})
    assert (await world.get("/v1/images")).json["data"][0]["state"] == "fetching"


async def test_a_cordoned_node_gets_nothing_new_until_it_is_uncordoned(world: World) -> None:
    shown = await world.made(f"/v1/nodes/{world.node.name}/actions/cordon", token=ADMIN)
    assert shown["scheduling"] == "cordoned"
    nodes = await world.control.read(lambda tx: tx.nodes.select())
    request = PlacementRequest(cpu_milli=1, memory_bytes=1, disk_bytes=1)
    assert Fleet(nodes).place(request) == Refusal("no node fits: 1 is cordoned")
    shown = await world.made(f"/v1/nodes/{world.node.name}/actions/uncordon", token=ADMIN)
    assert shown["scheduling"] == "open"
