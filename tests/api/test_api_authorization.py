"""The authorization matrix, made from the OpenAPI document: every operation × who asks × whose it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import Response

from shellwego.api.rest.context import install_context
from shellwego.api.rest.guard import Granted, GuardedRoute, check_guarded, operation
from shellwego.core.iam import PERMISSIONS
from shellwego.ports.store import eq
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, World, call_asgi, census
from tests.api.matrix import (
    CALLERS,
    GUARDED,
    OPERATOR,
    OWN,
    Operation,
    absent,
    make_matrix,
    named_things,
    told,
    unknown_references,
)
from tests.api.matrix import SYSTEM as LEVEL_SYSTEM

_FINE = (200, 201, 202, 204, 409)
_OTHERWISE: dict[str, int] = {
    **{"stop_run": 404, "finish_upload": 422, "get_logs": 503, "exec_command": 503},
    **{"move_volume": 404, "replicate_volume": 404},
}
"""What answers here that it may: the instance is no run, the upload is not whole, no agent answers; and who has a volume may
not see the platform's nodes by that."""


@pytest.fixture
def spools(tmp_path: Path) -> Iterator[Path]:
    """A directory for each world's uploads."""
    return (tmp_path / str(number) for number in itertools.count())


@pytest.mark.parametrize("operation_", GUARDED, ids=lambda each: each.name)
async def test_an_operation_refuses_each_caller_as_its_grants_say(
    spools: Iterator[Path], operation_: Operation
) -> None:
    matrix = await make_matrix(next(spools))
    before, refused = await census(matrix.world), 0
    assert (await matrix.ask(operation_, None, matrix.own)).status == 401
    assert (await matrix.ask(operation_, "pat_" + "x" * 43, matrix.own)).status == 401
    for caller in CALLERS:
        if operation_.name in OWN or caller.may(operation_.permission, operation_.level):
            continue
        sees = any(caller.may(permission, operation_.level) for permission in operation_.shows)
        there = operation_.level != LEVEL_SYSTEM or "{" in operation_.path
        answer = await matrix.ask(operation_, caller.token, matrix.own)
        assert answer.status == (404 if there and not sees else 403), (caller, answer.content)
        refused += 1
        assert await _refusals(matrix.world, operation_.permission) == refused, "each refusal is written down"
        if answer.status == 404:
            gone = absent(matrix.own)
            nothing = await matrix.ask(operation_, caller.token, gone)
            assert told(answer, matrix.own) == told(nothing, gone), caller
    assert await census(matrix.world) == before, "a refused operation had an effect"


@pytest.mark.parametrize("operation_", GUARDED, ids=lambda each: each.name)
async def test_what_is_foreign_looks_absent_in_every_field_that_names_it(
    spools: Iterator[Path], operation_: Operation
) -> None:
    assert unknown_references(operation_) == set(), "tests/api/matrix.py fills no thing into these fields"
    named = list(named_things(operation_))
    matrix = await make_matrix(next(spools))
    before = await census(matrix.world)
    gone = absent(matrix.own)
    for caller in CALLERS if named else ():
        alone = () if operation_.streams else ((name,) for name in named)  # what is own would go on for ever
        for fields in {*alone, tuple(named)}:
            theirs = {**matrix.own, **{name: matrix.foreign[name] for name in fields}}
            nothing = {**matrix.own, **{name: gone[name] for name in fields}}
            wider = ("project",) if fields == ("organization",) else ()  # else the project alone says where
            foreign = await matrix.ask(operation_, caller.token, theirs, without=wider)
            missing = await matrix.ask(operation_, caller.token, nothing, without=wider)
            assert told(foreign, theirs) == told(missing, nothing), (caller, fields)
            assert foreign.status >= 400 or not any(f"{{{name}}}" in operation_.path for name in fields)
    assert await census(matrix.world) == before, "an operation reached what is foreign"


@pytest.mark.parametrize("operation_", [each for each in GUARDED if not each.streams], ids=lambda each: each.name)
async def test_an_operation_serves_each_caller_who_may(spools: Iterator[Path], operation_: Operation) -> None:
    served = 0
    for caller in (*CALLERS, OPERATOR):
        if operation_.name in OWN or caller.may(operation_.permission, operation_.level):
            matrix = await make_matrix(next(spools))
            answer = await matrix.ask(operation_, caller.token, matrix.own)
            otherwise = (404, 412, 422) if operation_.name in OWN else (_OTHERWISE.get(operation_.name),)
            assert answer.status in (*_FINE, *otherwise), (caller, answer.status, answer.content)
            served += 1
    assert served, "nobody may"


def test_every_permission_is_known_and_none_is_without_use() -> None:
    sockets = {"instances:exec", "instances:read", "events:read"}
    used = {each.permission for each in GUARDED}
    assert used <= PERMISSIONS, "add it to core.iam.ACTIONS, and to the roles that should have it"
    assert PERMISSIONS - used - sockets == set()


async def _refusals(world: World, permission: str) -> int:
    """How many denied actions were written down under this permission."""
    records = await world.control.read(lambda tx: tx.audit.select(eq("action", permission)))
    return sum(not record.allowed for record in records)


async def test_refused_actions_are_audited(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    app_id = (await world.get("/v1/apps/shop")).json["id"]
    for token in (VIEWER, FOREIGN):
        await world.post(f"/v1/apps/{app_id}/actions/stop", token=token)
    records = (await world.get("/v1/audit", token=ADMIN)).json["data"]
    refused = [record for record in records if not record["allowed"]]
    assert {(record["action"], record["resource"]) for record in refused} == {("apps:write", app_id)}
    assert len({record["actor"] for record in refused}) == 2


@pytest.mark.parametrize(
    ("permission", "foreign", "absent"),
    [
        ("users:read", "/v1/users/foreign@x", "/v1/users/nobody@x"),
        ("organizations:read", "/v1/organizations/other", "/v1/organizations/none"),
        ("events:read", "/v1/events?organization=other", "/v1/events?organization=none"),
        ("nodes:read", "/v1/nodes/one", "/v1/nodes/two"),
    ],
)
async def test_what_could_be_guessed_leaves_as_many_records_whether_it_is_there_or_not(
    world: World, permission: str, foreign: str, absent: str
) -> None:
    """A record takes its time, by which one could know."""
    for number, path in enumerate((foreign, absent), 1):
        assert (await world.get(path)).status == 404
        assert await _refusals(world, permission) == number
    assert (await world.get(absent, token=ADMIN)).status == 404
    assert await _refusals(world, permission) == 2


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


async def test_an_endpoint_that_never_asked_its_access_does_not_answer(world: World) -> None:
    router = APIRouter(route_class=GuardedRoute)

    @operation(router, "GET", "/v1/careless", permission="apps:read", answer=None)
    async def careless(access: Granted) -> Response:
        return Response(b"everything")

    app = _app_with(router)
    install_context(app, world.app.state.context)
    with pytest.raises(RuntimeError, match="careless answered without asking its access"):
        await call_asgi(app, "GET", "/v1/careless", headers={"authorization": f"Bearer {OWNER}"})
