"""Tokens that make tokens: narrowed to resources, shorter, and ended with whoever made them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shellwego.control import tokens
from shellwego.control.unit import Unit
from shellwego.core.tenancy import ServiceAccount, Token, TokenKind
from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import ADMIN, FOREIGN, OWNER, World, add_user

SERVICE = f"sat_{'S' * 43}"


async def narrowed(world: World, *resources: str, token: str = OWNER, **wish: Any) -> str:
    made = await world.made("/v1/user/tokens", {"name": "narrow", "resources": list(resources), **wish}, token=token)
    return str(made["secret"])


async def test_a_token_narrowed_to_an_app_reaches_this_app_and_nothing_else(world: World) -> None:
    shop = await world.made("/v1/apps", {"name": "shop"})
    other = await world.made("/v1/apps", {"name": "other"})
    token = await narrowed(world, shop["id"])
    assert (await world.get(f"/v1/apps/{shop['id']}", token=token)).status == 200
    assert (await world.get("/v1/apps/shop", token=token)).status == 200
    assert (await world.post("/v1/apps/shop/actions/stop", token=token)).status in (200, 202)
    foreign = await world.get(f"/v1/apps/{other['id']}", token=token)
    absent = await world.get(f"/v1/apps/app_{'0' * 26}", token=token)
    assert (foreign.status, foreign.code) == (absent.status, absent.code) == (404, "app-not-found")
    for path in (
        "/v1/apps",
        f"/v1/projects/{world.project.id}",
        "/v1/events",
        f"/v1/events?project={world.project.id}",
    ):
        assert (await world.get(path, token=token)).status == 404, path
    assert (await world.post("/v1/apps", {"name": "more"}, token=token)).status == 404


async def test_a_token_narrowed_to_a_project_has_the_project_even_of_an_administrator(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    token = await narrowed(world, world.project.id, token=ADMIN)
    assert (await world.get("/v1/apps/shop", token=token)).status == 200
    assert (await world.get("/v1/events", token=token)).status == 200
    projects = (await world.get("/v1/projects", token=token)).json["data"]
    assert [project["id"] for project in projects] == [world.project.id]
    assert (await world.get("/v1/nodes", token=token)).status == 403
    records = (await world.get("/v1/audit", token=token)).json["data"]
    assert {record["project_id"] for record in records} == {world.project.id}
    for path in (f"/v1/apps?project={world.foreign.id}", "/v1/apps?project=theirs"):
        assert (await world.get(path, token=token)).status == 404, path
    assert (await world.get(f"/v1/organizations/{world.project.organization_id}", token=token)).status == 404


async def test_a_child_stays_within_its_parents_resources(world: World) -> None:
    shop = await world.made("/v1/apps", {"name": "shop"})
    other = await world.made("/v1/apps", {"name": "other"})
    token = await narrowed(world, shop["id"])
    child = await world.made("/v1/user/tokens", {"name": "child"}, token=token)
    assert child["resources"] == [shop["id"]]
    for beyond in (other["id"], world.project.id, world.foreign.id, "prj_x", "node_x", ""):
        answer = await world.post("/v1/user/tokens", {"name": "x", "resources": [beyond]}, token=token)
        assert answer.status == 422, beyond
        assert answer.json["errors"][0]["field"].startswith("resources.0")


async def test_a_resource_of_somebody_else_looks_like_none(world: World) -> None:
    told = []
    for resource in (world.foreign.id, f"prj_{'0' * 26}"):
        answer = await world.post("/v1/user/tokens", {"name": "x", "resources": [resource]})
        told.append((answer.status, answer.json["detail"].replace(resource, "")))
    assert told[0] == told[1]


async def test_a_narrowed_token_sees_and_ends_only_what_it_made(world: World) -> None:
    token = await narrowed(world, world.project.id)
    child = await world.made("/v1/user/tokens", {"name": "child"}, token=token)
    grandchild = await world.made("/v1/user/tokens", {"name": "grandchild"}, token=child["secret"])
    own = (await world.get("/v1/user")).json["token_id"]
    listed = (await world.get("/v1/user/tokens", token=token)).json["data"]
    assert [each["id"] for each in listed] == [child["id"]]
    assert (await world.call("DELETE", f"/v1/user/tokens/{own}", token=token)).status == 404
    assert (await world.call("DELETE", f"/v1/user/tokens/{grandchild['id']}", token=token)).status == 200
    assert (await world.get("/v1/user")).status == 200


async def test_revoking_a_token_revokes_what_it_made_within_a_second(world: World) -> None:
    parent = await world.made("/v1/user/tokens", {"name": "parent"})
    child = await world.made("/v1/user/tokens", {"name": "child"}, token=parent["secret"])
    grandchild = await world.made("/v1/user/tokens", {"name": "grandchild"}, token=child["secret"])
    assert grandchild["parent_id"] == child["id"]
    assert (await world.get("/v1/user", token=grandchild["secret"])).status == 200
    assert (await world.call("DELETE", f"/v1/user/tokens/{parent['id']}")).status == 200
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(1.0)
    for each in (parent, child, grandchild):
        assert (await world.get("/v1/user", token=each["secret"])).status == 401
    answer = await world.post("/v1/user/tokens", {"name": "late"}, token=child["secret"])
    assert answer.status == 401


async def test_a_temporary_token_lives_a_quarter_of_an_hour(world: World) -> None:
    made = await world.made("/v1/user/tokens", {"name": "script", "kind": "temporary"})
    assert made["secret"].startswith("tmp_")
    assert (await world.get("/v1/user", token=made["secret"])).status == 200
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(901.0)
    assert (await world.get("/v1/user", token=made["secret"])).status == 401
    longer = {"name": "script", "kind": "temporary", "expires_in": 901}
    answer = await world.post("/v1/user/tokens", longer)
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, "expires_in")


async def test_the_last_use_is_known_coarsely_and_not_written_by_each_request(world: World) -> None:
    assert isinstance(world.clock, VirtualClock)
    made = await world.made("/v1/user/tokens", {"name": "ci"})
    assert made["last_used_at"] is None

    async def used() -> Any:
        rows = (await world.get("/v1/user/tokens", token=OWNER)).json["data"]
        return next(row["last_used_at"] for row in rows if row["id"] == made["id"])

    await world.get("/v1/user", token=made["secret"])
    first = await used()
    assert first is not None
    for _ in range(5):
        await world.clock.advance(60.0)
        await world.get("/v1/user", token=made["secret"])
    assert await used() == first
    await world.clock.advance(600.0)
    await world.get("/v1/user", token=made["secret"])
    assert await used() > first


@pytest.mark.parametrize(
    "extra", [{"principal_id": "usr_x"}, {"secret": "pat_x"}, {"kind": "session"}, {"issued_by": "host"}]
)
async def test_a_body_says_no_more_than_it_may(world: World, extra: dict[str, str]) -> None:
    answer = await world.post("/v1/user/tokens", {"name": "x", **extra})
    assert answer.status in (400, 422)
    assert answer.json["errors"][0]["field"] == next(iter(extra))


async def test_a_service_account_knows_itself_makes_its_kind_of_token_and_has_no_password(world: World) -> None:
    def add(unit: Unit) -> None:
        organization = world.project.organization_id
        account = ServiceAccount(id=unit.new_id("svc"), organization_id=organization, name="ci", created_at=unit.now())
        unit.tx.service_accounts.insert(account)
        token = add_user(unit, "unused@x", "developer", world.project.id, SERVICE)
        unit.tx.tokens.update(replace(token, principal_id=account.id, kind=TokenKind.SERVICE))

    await world.commit(add)
    told = (await world.get("/v1/user", token=SERVICE)).json
    assert (told["email"], told["name"]) == (None, "ci")
    made = await world.made("/v1/user/tokens", {"name": "child"}, token=SERVICE)
    assert made["secret"].startswith("sat_")
    for path, body in (("user/totp", {}), ("invitations/accept", {"invitation": "inv_x"})):
        assert (await world.post(f"/v1/{path}", body, token=SERVICE)).status == 403


async def test_a_foreign_token_is_absent(world: World) -> None:
    made = await world.made("/v1/user/tokens", {"name": "mine"})
    for id_ in (made["id"], f"tok_{'0' * 26}"):
        answer = await world.call("DELETE", f"/v1/user/tokens/{id_}", token=FOREIGN)
        assert (answer.status, answer.code) == (404, "token-not-found")
    assert (await world.get("/v1/user", token=made["secret"])).status == 200


async def test_a_weaker_token_does_not_get_an_answer_that_was_kept_for_a_stronger_one(world: World) -> None:
    body, key = {"name": "shop"}, {"Idempotency-Key": "once"}
    assert (await world.post("/v1/apps", body, headers=key)).status == 201
    weaker = await world.made("/v1/user/tokens", {"name": "weak", "scopes": ["events:read"]})
    assert (await world.post("/v1/apps", body, headers=key)).status == 201
    assert (await world.post("/v1/apps", body, headers=key, token=weaker["secret"])).status in (403, 404)


async def test_tokens_that_ended_are_forgotten_after_a_week_but_never_the_hosts(world: World) -> None:
    for _ in range(3):
        await world.made("/v1/user/tokens", {"name": "short", "expires_in": 60}, token=ADMIN)
    host = (await world.get("/v1/user", token=ADMIN)).json["token_id"]
    keeper = await world.made("/v1/user/tokens", {"name": "keeper"}, token=ADMIN)
    await world.commit(lambda unit: unit.tx.tokens.update(replace(_token(unit, keeper["id"]), parent_id="")))
    assert (await world.call("DELETE", f"/v1/user/tokens/{host}", token=ADMIN)).status == 200
    await later(world, 3600.0)
    await world.made("/v1/user/tokens", {"name": "one"}, token=keeper["secret"])
    assert len(await names(world, keeper["secret"])) == 6
    await later(world, 7 * 24 * 3600.0)
    await world.made("/v1/user/tokens", {"name": "two"}, token=keeper["secret"])
    assert sorted(await names(world, keeper["secret"])) == ["first start", "keeper", "one", "two"]


async def test_tokens_that_ended_are_forgotten_behind_however_many_that_are_alive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_SWEEP", 2)
    for number in range(4):
        await world.made("/v1/user/tokens", {"name": str(number)})
    for _ in range(2):
        await world.made("/v1/user/tokens", {"name": "short", "expires_in": 60})
    await later(world, 7 * 24 * 3600.0 + 61)
    for name in ("later", "latest"):
        await world.made("/v1/user/tokens", {"name": name})
    assert sorted(await names(world, OWNER)) == ["0", "1", "2", "3", "later", "latest", "test"]


def _token(unit: Unit, id_: str) -> Token:
    token = unit.tx.tokens.get(id_)
    assert token is not None
    return token


async def names(world: World, token: str) -> list[str]:
    return [each["name"] for each in (await world.get("/v1/user/tokens", token=token)).json["data"]]


async def later(world: World, seconds: float) -> None:
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(seconds)


async def test_a_user_has_a_bounded_number_of_tokens(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS", 3)
    for number in range(2):
        await world.made("/v1/user/tokens", {"name": str(number)})
    answer = await world.post("/v1/user/tokens", {"name": "more"})
    assert (answer.status, answer.code) == (429, "too-many-tokens")


async def test_a_service_account_makes_no_more_tokens_than_its_organization_may_have(world: World) -> None:
    def add(unit: Unit) -> None:
        account = ServiceAccount(
            id=unit.new_id("svc"), organization_id=world.foreign.organization_id, name="ci", created_at=unit.now()
        )
        unit.tx.service_accounts.insert(account)
        token = add_user(unit, "unused@x", "developer", world.foreign.id, SERVICE)
        unit.tx.tokens.update(replace(token, principal_id=account.id, kind=TokenKind.SERVICE))

    await world.commit(add)
    statuses = [(await world.post("/v1/user/tokens", {"name": str(n)}, token=SERVICE)).status for n in range(11)]
    assert statuses == [201] * 9 + [429] * 2, "a free plan has ten"


async def test_a_scope_that_names_no_permission_is_refused(world: World) -> None:
    answer = await world.post("/v1/user/tokens", {"name": "ci", "scopes": ["apps:read", "app:read"]})
    assert (answer.status, answer.code) == (422, "scopes-refused")
    assert [fault["field"] for fault in answer.json["errors"]] == ["scopes[1]"]
