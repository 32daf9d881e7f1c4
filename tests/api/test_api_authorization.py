"""The authorization matrix, made from the OpenAPI document: every operation × who asks × whose it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import Response

from shellwego.api.rest.context import install_context
from shellwego.api.rest.guard import Granted, GuardedRoute, check_guarded, operation
from shellwego.core.iam import ROLES
from tests.api.api_world import ADMIN, DOCUMENT, FOREIGN, OWNER, VIEWER, World, call_asgi, make_world

OPERATIONS = [
    (method.upper(), path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
GUARDED = [each for each in OPERATIONS if each[2]["x-permission"] != "public"]
OWN = frozenset(
    {
        *("get_user", "update_user", "set_password", "enrol_totp", "confirm_totp", "disable_totp"),
        *("list_tokens", "create_token", "revoke_token", "sign_out", "list_projects", "capabilities"),
    }
)
"""Operations about the caller himself: everybody may, a token's scopes aside."""
PLATFORM = frozenset(
    {
        *("metrics", "list_nodes", "get_node", "cordon_node", "uncordon_node"),
        *("list_users", "get_user_of_platform", "update_user_of_platform"),
    }
)
"""Operations about the platform: an owner of a project may not."""
BODIES: dict[str, Any] = {
    "create_app": {"name": "fresh"},
    "update_app": {"config": {}},
    "scale_app": {"counts": {"web": 2}},
    "change_env": {"env": {"A": "b"}},
    "create_deployment": {"image": "registry.example/hello:v1"},
    "plan_deployment": {"image": "registry.example/hello:v1"},
    "register_image": {"reference": "registry.example/hello:v1"},
    "create_run": {"command": ["true"]},
    "exec_command": {"command": ["true"]},
    "create_token": {"name": "ci"},
    "update_user": {"name": "Ann"},
    "set_password": {"new_password": "correct horse battery"},
    "enrol_totp": {},
    "confirm_totp": {"code": "123456"},
    "disable_totp": {},
    "update_user_of_platform": {"disabled": True},
}


async def _things(world: World) -> dict[str, str]:
    """One of each thing in the first project, by the names of path parameters."""
    deployment = await world.deployed()
    instance = await world.running()
    upload = await world.made("/v1/images/uploads")
    images = (await world.get("/v1/images")).json["data"]
    user = (await world.get("/v1/user")).json
    return {
        "app": deployment["app_id"],
        "deployment": deployment["id"],
        "release": "v1",
        "instance": instance.id,
        "image": images[0]["id"],
        "upload": upload["id"],
        "node": world.node.id,
        "project": world.project.id,
        "organization": world.project.organization_id,
        "token": user["token_id"],
        "user": user["id"],
    }


def _path(template: str, things: dict[str, str], *, absent: bool) -> str:
    path = template
    for name, value in things.items():
        gone = f"{value.partition('_')[0]}_{'0' * 26}" if "_" in value else "v999"
        path = path.replace(f"{{{name}}}", gone if absent else value)
    return path


def _query(operation_: Any, project: str) -> dict[str, str]:
    known = {parameter["name"] for parameter in operation_.get("parameters", []) if parameter["in"] == "query"}
    values = {"project": project, "timeout": "0", "against": "v1", "digest": f"sha256:{'0' * 64}"}
    return {name: value for name, value in values.items() if name in known}


def _headers(operation_: Any) -> dict[str, str]:
    names = {parameter["name"] for parameter in operation_.get("parameters", []) if parameter["in"] == "header"}
    return {"Content-Range": "bytes 0-0/*"} if "Content-Range" in names else {}


def _may_view(permission: str) -> bool:
    return permission in ROLES["viewer"]


@pytest.mark.parametrize(
    ("method", "template", "operation_"), GUARDED, ids=[each[2]["operationId"] for each in GUARDED]
)
async def test_an_operation_answers_each_caller_as_its_grants_say(
    tmp_path: Path, method: str, template: str, operation_: Any
) -> None:
    world = await make_world(tmp_path / "spool")
    things = await _things(world)
    name, permission = operation_["operationId"], operation_["x-permission"]
    streams = any("text/event-stream" in response.get("content", {}) for response in operation_["responses"].values())

    async def ask(token: str | None, *, absent: bool = False) -> int:
        path = _path(template, things, absent=absent)
        body = BODIES.get(name)
        raw = b"x" if name == "append_upload" else None
        query, headers = _query(operation_, world.project.id), _headers(operation_)
        answer = await world.call(method, path, body, token=token, query=query, headers=headers, raw=raw)
        return answer.status

    before = await _census(world)
    assert await ask(None) == 401
    assert await ask("pat_" + "x" * 43) == 401
    if name in OWN:
        assert await ask(VIEWER) not in (401, 403)
        return
    if name in PLATFORM:
        refused = 404 if "{" in template else 403
        assert await ask(OWNER) == refused
        assert await ask(VIEWER) == refused
        assert await ask(FOREIGN) == refused
        assert await ask(FOREIGN, absent=True) == refused
        assert await ask(ADMIN) == 200
        return
    foreign = await ask(FOREIGN)
    assert foreign == 404
    if "{" in template:
        assert await ask(FOREIGN, absent=True) == foreign, "what is foreign must look as if it were absent"
    if not _may_view(permission):
        assert await ask(VIEWER) == 403
    if not streams:
        assert await _census(world) == before, "a refused operation had an effect"
        if _may_view(permission):
            assert await ask(VIEWER) not in (401, 403)
        assert await ask(OWNER) not in (401, 403)


async def _census(world: World) -> Any:
    """All that a refused operation could have changed."""
    return await world.control.read(
        lambda tx: (
            tx.apps.select(),
            tx.deployments.select(),
            tx.releases.select(),
            tx.instances.select(),
            tx.images.select(),
            tx.tokens.select(),
            tx.events.select(),
        )
    )


async def test_refused_actions_are_audited(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    app_id = (await world.get("/v1/apps/shop")).json["id"]
    for token in (VIEWER, FOREIGN):
        await world.post(f"/v1/apps/{app_id}/actions/stop", token=token)
    records = (await world.get("/v1/audit", token=ADMIN)).json["data"]
    refused = [record for record in records if not record["allowed"]]
    assert {(record["action"], record["resource"]) for record in refused} == {("apps:write", app_id)}
    assert len({record["actor"] for record in refused}) == 2


async def test_allowed_writes_are_audited_with_the_change_or_not_at_all(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    assert (await world.post("/v1/apps", {"name": "shop"})).status == 409
    records = (await world.get("/v1/audit", token=ADMIN)).json["data"]
    assert [r["action"] for r in records if r["resource"] == world.project.id] == ["apps:write"]


async def test_the_error_of_a_foreign_thing_tells_nothing_of_it(world: World) -> None:
    app = await world.made("/v1/apps", {"name": "shop"})
    foreign = await world.get(f"/v1/apps/{app['id']}", token=FOREIGN)
    absent = await world.get(f"/v1/apps/app_{'0' * 26}", token=FOREIGN)
    hidden = ("instance", "trace_id", "detail")
    assert {k: v for k, v in foreign.json.items() if k not in hidden} == {
        k: v for k, v in absent.json.items() if k not in hidden
    }
    assert foreign.json["detail"].replace(app["id"], "") == absent.json["detail"].replace(f"app_{'0' * 26}", "")


async def test_sub_resources_of_another_app_are_absent(world: World) -> None:
    deployment = await world.deployed("shop")
    instance = await world.running("shop")
    await world.made("/v1/apps", {"name": "other"})
    for path in (f"deployments/{deployment['id']}", f"instances/{instance.id}", f"releases/{deployment['release_id']}"):
        assert (await world.get(f"/v1/apps/shop/{path}")).status == 200
        assert (await world.get(f"/v1/apps/other/{path}")).status == 404


def _app_with(router: APIRouter) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.routes.extend(router.routes)
    return app


def test_a_route_without_a_permission_stops_the_start() -> None:
    router = APIRouter()

    @router.get("/v1/leak")
    async def leak() -> str:
        return "x"

    with pytest.raises(RuntimeError, match="/v1/leak declares no permission"):
        check_guarded(_app_with(router), own=())
    guarded = APIRouter(route_class=GuardedRoute)
    guarded.add_api_route("/v1/leak", leak)
    with pytest.raises(RuntimeError, match="/v1/leak declares no permission"):
        check_guarded(_app_with(guarded), own=())


def test_a_socket_without_a_permission_stops_the_start() -> None:
    router = APIRouter()

    @router.websocket("/v1/leak")
    async def leak() -> None: ...

    with pytest.raises(RuntimeError, match="the socket /v1/leak"):
        check_guarded(_app_with(router), own=())


async def test_an_endpoint_that_never_asked_its_access_does_not_answer(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    router = APIRouter(route_class=GuardedRoute)

    @operation(router, "GET", "/v1/careless", permission="apps:read", answer=None)
    async def careless(access: Granted) -> Response:
        return Response(b"everything")

    app = _app_with(router)
    install_context(app, world.app.state.context)
    with pytest.raises(RuntimeError, match="careless answered without asking its access"):
        await call_asgi(app, "GET", "/v1/careless", headers={"authorization": f"Bearer {OWNER}"})
