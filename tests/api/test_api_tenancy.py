"""Organizations, projects, members, roles, grants, service accounts and quotas, as the API has them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shellwego.core.plans import PLANS
from shellwego.core.tenancy import Grant
from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, Answer, World, add_user, make_world

BOSS, CHIEF, JUNIOR = (f"pat_{letter * 42}1" for letter in "BCJ")


@pytest.fixture
async def org(world: World) -> str:
    """The id of the first organization, with an owner, an admin and a developer; the owner speaks."""
    organization = world.project.organization_id
    for email, role, secret in (
        ("boss@x", "owner", BOSS),
        ("chief@x", "admin", CHIEF),
        ("junior@x", "developer", JUNIOR),
    ):
        await world.commit(lambda unit, e=email, r=role, s=secret: add_user(unit, e, r, organization, s))  # type: ignore[misc]
    world.token = BOSS
    return organization


def fields(answer: Answer) -> list[str]:
    return [error["field"] for error in answer.json["errors"]]


async def later(world: World, seconds: float = 1.0) -> None:
    """Let time pass; after a second nothing is remembered of who had which role."""
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(seconds)


async def grants_of(world: World, email: str) -> list[Grant]:
    def look(tx: Any) -> list[Grant]:
        users = {user.id: user.email for user in tx.users.select()}
        return [grant for grant in tx.grants.select() if users.get(grant.principal_id) == email]

    return await world.control.read(look)


async def test_whoever_makes_an_organization_owns_it_and_it_begins_with_a_project(world: World) -> None:
    made = await world.made("/v1/organizations", {"name": "acme"}, token=ADMIN)
    assert made["plan"] == "free"
    members = (await world.get(f"/v1/organizations/{made['id']}/members", token=ADMIN)).json["data"]
    assert [(member["email"], member["role"]) for member in members] == [("admin@localhost", "owner")]
    projects = (await world.get("/v1/projects", query={"organization": "acme"}, token=ADMIN)).json["data"]
    assert [project["name"] for project in projects] == ["default"]


async def test_users_make_organizations_where_the_operator_says_so_and_only_some(tmp_path: Path) -> None:
    world = await make_world(tmp_path / "spool")
    assert (await world.post("/v1/organizations", {"name": "mine"})).status == 403
    world.app.state.context.open_organizations = True
    key = {"Idempotency-Key": "k"}
    first = await world.post("/v1/organizations", {"name": "mine"}, headers=key)
    again = await world.post("/v1/organizations", {"name": "mine"}, headers=key)
    assert (first.status, again.json) == (201, first.json)
    for number in range(4):
        await world.made("/v1/organizations", {"name": f"mine-{number}"})
    refused = await world.post("/v1/organizations", {"name": "one-more"})
    assert (refused.status, refused.code) == (429, "quota-exceeded")


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a" * 41, "ä"])
@pytest.mark.parametrize("path", ["/v1/organizations", "/v1/projects", "/v1/organizations/default/service-accounts"])
async def test_a_name_that_is_none_is_refused(world: World, path: str, name: str) -> None:
    body = {"name": name, **({"organization": "default"} if path == "/v1/projects" else {})}
    answer = await world.post(path, body, token=ADMIN)
    assert (answer.status, fields(answer)) == (422, ["name"])


async def test_an_organization_goes_when_its_projects_are_gone(world: World, org: str) -> None:
    taken = await world.post("/v1/organizations", {"name": "other"}, token=ADMIN)
    assert (taken.status, taken.code) == (409, "organization-exists")
    path = f"/v1/organizations/{org}"
    assert (await world.call("DELETE", path)).code == "organization-not-empty"
    await world.made("/v1/apps", {"name": "shop"})
    project = f"/v1/projects/{world.project.id}"
    assert (await world.call("DELETE", project)).code == "project-not-empty"
    empty = await world.made("/v1/projects", {"name": "empty", "organization": "default"})
    assert (await world.call("DELETE", f"/v1/projects/{empty['id']}")).status == 204
    await world.commit(lambda unit: [unit.tx.apps.delete(app.id) for app in unit.tx.apps.select()])
    secret = await world.made("/v1/secrets", {"name": "DB_URL", "value": "x"})
    assert (await world.call("DELETE", project)).code == "project-not-empty", "nothing would bring its secrets back"
    await world.call("DELETE", f"/v1/secrets/{secret['id']}")
    await world.made("/v1/webhooks", {"url": "https://hooks.example/"})
    assert (await world.call("DELETE", project, headers={"If-Match": '"9"'})).status == 412
    assert (await world.call("DELETE", project)).status == 204
    await world.made("/v1/webhooks", {"url": "https://hooks.example/"}, query={"organization": org})
    await world.made(f"{path}/invitations", {"email": "ann@x", "role": "viewer"})
    assert (await world.call("DELETE", path)).status == 204
    left = await world.control.read(lambda tx: [tx.webhooks.select(), tx.invitations.select(), tx.data_keys.select()])
    assert left == [[], [], []]
    assert (await world.call("DELETE", "/v1/organizations/other", token=ADMIN)).status == 409
    assert (await world.get(path, token=ADMIN)).status == 404


async def test_renaming_keeps_ids_and_is_guarded_by_the_tag(world: World, org: str) -> None:
    seen = await world.get(f"/v1/organizations/{org}")
    renamed = await world.call(
        "PATCH", f"/v1/organizations/{org}", {"name": "acme"}, headers={"If-Match": seen.headers["etag"]}
    )
    assert (renamed.status, renamed.json["id"], renamed.json["name"]) == (200, org, "acme")
    stale = await world.call(
        "PATCH", f"/v1/organizations/{org}", {"name": "late"}, headers={"If-Match": seen.headers["etag"]}
    )
    assert stale.status == 412
    project = await world.call("PATCH", "/v1/projects/default", {"name": "main"})
    assert project.json["name"] == "main"


async def test_lists_show_what_the_caller_may_see_and_nothing_else(world: World, org: str) -> None:
    everything = await world.get("/v1/organizations", token=ADMIN)
    assert [row["name"] for row in everything.json["data"]] == ["default", "other"]
    assert [row["name"] for row in (await world.get("/v1/organizations", token=FOREIGN)).json["data"]] == ["other"]
    assert (await world.get("/v1/organizations", token=VIEWER)).json["data"] == [], "he sees one of its projects only"
    assert [row["name"] for row in (await world.get("/v1/projects", token=VIEWER)).json["data"]] == ["default"]
    assert (await world.get("/v1/projects", query={"organization": org}, token=FOREIGN)).status == 404


async def test_who_has_one_project_of_an_organization_lists_it_as_that_organizations(world: World, org: str) -> None:
    await world.made("/v1/projects", {"name": "web", "organization": org})
    for ref in (org, "default"):
        listed = await world.get("/v1/projects", query={"organization": ref}, token=OWNER)
        assert [project["id"] for project in listed.json["data"]] == [world.project.id]
        assert (await world.get("/v1/projects", query={"organization": ref}, token=FOREIGN)).status == 404
    for ref in ("other", world.foreign.organization_id):
        assert (await world.get("/v1/projects", query={"organization": ref}, token=OWNER)).status == 404


async def test_the_last_owner_stays(world: World, org: str) -> None:
    path = f"/v1/organizations/{org}/members/boss@x"
    assert (await world.call("DELETE", path)).code == "last-owner"
    assert (await world.call("PATCH", path, {"role": "viewer"})).code == "last-owner"
    [grant] = await grants_of(world, "boss@x")
    assert (await world.call("DELETE", f"/v1/grants/{grant.id}")).code == "last-owner"
    promoted = await world.call("PATCH", f"/v1/organizations/{org}/members/chief@x", {"role": "owner"})
    assert promoted.json["role"] == "owner"
    assert (await world.call("DELETE", path)).status == 204


async def test_of_two_owners_who_remove_each_other_at_once_one_stays(world: World, org: str) -> None:
    await world.call("PATCH", f"/v1/organizations/{org}/members/chief@x", {"role": "owner"})
    path = f"/v1/organizations/{org}/members"
    await world.get(path, token=CHIEF)
    answers = await asyncio.gather(
        world.call("DELETE", f"{path}/chief@x", token=BOSS), world.call("DELETE", f"{path}/boss@x", token=CHIEF)
    )
    assert sorted(answer.status for answer in answers) == [204, 409]


async def test_an_admin_neither_makes_nor_unmakes_an_owner(world: World, org: str) -> None:
    path = f"/v1/organizations/{org}/members"
    for method, member, body in (("PATCH", "boss@x", {"role": "viewer"}), ("DELETE", "boss@x", None)):
        answer = await world.call(method, f"{path}/{member}", body, token=CHIEF)
        assert (answer.status, answer.code) == (403, "not-held")
    answer = await world.call("PATCH", f"{path}/junior@x", {"role": "owner"}, token=CHIEF)
    assert (answer.status, fields(answer)) == (403, ["role"])
    assert (await world.call("PATCH", f"{path}/junior@x", {"role": "admin"}, token=CHIEF)).status == 200
    records = (await world.get("/v1/audit", token=ADMIN)).json["data"]
    assert [r["action"] for r in records if not r["allowed"]] == ["members:write"] * 3


async def test_a_removed_member_loses_what_lies_below_the_organization_too(world: World, org: str) -> None:
    body = {"scope": world.project.id, "principal": "junior@x", "role": "admin"}
    await world.made("/v1/grants", body)
    assert (await world.post("/v1/grants", body)).code == "grant-exists"
    assert (await world.call("DELETE", f"/v1/organizations/{org}/members/junior@x")).status == 204
    assert await grants_of(world, "junior@x") == []


async def test_a_grant_on_an_app_shows_that_app_alone(world: World, org: str) -> None:
    shop, other = [(await world.made("/v1/apps", {"name": name}))["id"] for name in ("shop", "other")]
    await world.call("PATCH", f"/v1/organizations/{org}/members/junior@x", {"role": "billing"})
    await world.made("/v1/grants", {"scope": shop, "principal": "junior@x", "role": "viewer"})
    assert (await world.get(f"/v1/apps/{shop}", token=JUNIOR)).status == 200
    assert (await world.get("/v1/apps/shop", token=JUNIOR)).status == 200
    assert (await world.get(f"/v1/apps/{other}", token=JUNIOR)).status == 404
    assert (await world.get("/v1/apps", token=JUNIOR)).status == 403
    listed = (await world.get("/v1/grants", query={"scope": shop})).json["data"]
    assert [(grant["scope"], grant["role"]) for grant in listed] == [(shop, "viewer")]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"principal": "foreign@x"}, "principal"),
        ({"principal": "nobody@x"}, "principal"),
        ({"role": "emperor"}, "role"),
    ],
)
async def test_a_grant_needs_somebody_and_a_role_that_are_here(
    world: World, org: str, body: dict[str, str], field: str
) -> None:
    answer = await world.post("/v1/grants", {"scope": org, "principal": "junior@x", "role": "viewer", **body})
    assert (answer.status, fields(answer)) == (422, [field])


async def test_whoever_runs_the_platform_brings_any_user_into_any_organization_by_his_id(
    world: World, org: str
) -> None:
    foreign, boss = [(await world.get("/v1/user", token=token)).json["id"] for token in (FOREIGN, BOSS)]
    made = await world.made("/v1/grants", {"scope": org, "principal": foreign, "role": "viewer"}, token=ADMIN)
    assert made["scope"] == org
    system = {"scope": "system", "principal": boss, "role": "viewer"}
    assert (await world.post("/v1/grants", system)).status == 403
    assert (await world.post("/v1/grants", system, token=ADMIN)).status == 201


@pytest.mark.parametrize("email", ["foreign@x", "junior@x", "nobody@x"])
async def test_nobody_gets_a_role_on_the_platform_by_an_address_that_he_may_have_taken(
    world: World, org: str, email: str
) -> None:
    """Whoever owns an organization invites any address, and makes its account himself."""
    body = {"scope": "system", "principal": email, "role": "viewer"}
    refused = await world.post("/v1/grants", body, token=ADMIN)
    assert (refused.status, refused.code, fields(refused)) == (422, "principal-by-id", ["principal"])
    assert "swg whoami" in refused.json["resolution"]
    listed = (await world.get("/v1/grants", query={"scope": "system"}, token=ADMIN)).json["data"]
    assert len(listed) == 1


async def test_in_an_organization_an_address_means_a_member_and_nobody_else(world: World, org: str) -> None:
    body = {"scope": world.project.id, "role": "viewer"}
    assert (await world.post("/v1/grants", {**body, "principal": "junior@x"}, token=ADMIN)).status == 201
    others = [await world.post("/v1/grants", {**body, "principal": "foreign@x"}, token=each) for each in (ADMIN, BOSS)]
    assert [answer.code for answer in others] == ["principal-by-id", "no-such-principal"]


async def test_a_member_is_found_by_his_address_as_people_write_it(world: World, org: str) -> None:
    body = {"scope": world.project.id, "principal": "Junior@X", "role": "viewer"}
    assert (await world.post("/v1/grants", body)).status == 201
    path = f"/v1/organizations/{org}/members/JUNIOR@x"
    assert (await world.call("PATCH", path, {"role": "viewer"})).json["email"] == "junior@x"
    assert (await world.get("/v1/users/Junior@x", token=ADMIN)).json["email"] == "junior@x"
    assert (await world.call("DELETE", path)).status == 204


async def test_a_custom_role_holds_what_it_names_and_changes_for_all_who_have_it(world: World, org: str) -> None:
    roles = f"/v1/organizations/{org}/roles"
    role = await world.made(roles, {"name": "reader", "permissions": ["apps:read", "apps:read"]})
    assert role["permissions"] == ["apps:read"]
    await world.call("PATCH", f"/v1/organizations/{org}/members/junior@x", {"role": "reader"})
    assert (await world.get("/v1/apps", token=JUNIOR)).status == 200
    assert (await world.post("/v1/apps", {"name": "shop"}, token=JUNIOR)).status == 403
    assert (await world.call("DELETE", f"{roles}/reader")).code == "role-in-use"
    await world.call("PATCH", f"{roles}/reader", {"permissions": ["apps:read", "apps:write"]})
    await later(world)
    assert (await world.post("/v1/apps", {"name": "shop"}, token=JUNIOR)).status == 201
    member = (await world.get(f"/v1/organizations/{org}/members")).json["data"][-1]
    assert member["role"] == "reader"


@pytest.mark.parametrize("permission", ["*:*", "apps:*", "apps:fly", "nonsense", "quotas:write"])
async def test_a_custom_role_is_made_of_known_permissions(world: World, org: str, permission: str) -> None:
    body = {"name": "mine", "permissions": ["apps:read", permission]}
    answer = await world.post(f"/v1/organizations/{org}/roles", body)
    assert (answer.status, fields(answer)) == (422, ["permissions[1]"])


async def test_nobody_makes_or_widens_a_role_beyond_himself(world: World, org: str) -> None:
    roles = f"/v1/organizations/{org}/roles"
    beyond = {"name": "mine", "permissions": ["organizations:delete"]}
    assert (await world.post(roles, beyond, token=CHIEF)).code == "not-held"
    assert (await world.post(roles, {"name": "owner", "permissions": ["apps:read"]})).code == "role-exists"
    await world.made(roles, beyond)
    for method, body in (("PATCH", {"permissions": ["apps:read"]}), ("DELETE", None)):
        assert (await world.call(method, f"{roles}/mine", body, token=CHIEF)).code == "not-held"
    assert (await world.post(roles, {"name": "small", "permissions": ["apps:read"]}, token=CHIEF)).status == 201


async def test_a_service_account_works_by_its_token_as_far_as_it_is_granted(world: World, org: str) -> None:
    accounts = f"/v1/organizations/{org}/service-accounts"
    account = await world.made(accounts, {"name": "ci", "description": "the pipeline"})
    token = await world.made(f"{accounts}/ci/tokens", {"name": "one"})
    assert token["secret"].startswith("sat_")
    assert token["secret"] not in str((await world.get(f"{accounts}/ci/tokens")).json)
    assert (await world.get("/v1/apps", query={"project": world.project.id}, token=token["secret"])).status == 404
    await world.made("/v1/grants", {"scope": world.project.id, "principal": account["id"], "role": "developer"})
    await later(world)
    assert (await world.post("/v1/apps", {"name": "shop"}, token=token["secret"])).status == 201
    narrow = await world.made(f"{accounts}/ci/tokens", {"name": "two", "scopes": ["apps:read"]})
    assert (await world.post("/v1/apps", {"name": "other"}, token=narrow["secret"])).status == 403
    revoked = await world.call("DELETE", f"{accounts}/ci/tokens/{token['id']}")
    assert revoked.json["revoked_at"]
    await later(world)
    assert (await world.get("/v1/apps", token=token["secret"])).status == 401
    assert (await world.call("DELETE", f"{accounts}/ci")).status == 204
    await later(world)
    assert (await world.get("/v1/apps", token=narrow["secret"])).status == 401


async def test_what_a_service_account_makes_for_any_account_ends_with_the_token_that_made_it(
    world: World, org: str
) -> None:
    accounts = f"/v1/organizations/{org}/service-accounts"
    maker = await world.made(accounts, {"name": "maker"})
    await world.made(accounts, {"name": "ci"})
    await world.made("/v1/grants", {"scope": org, "principal": maker["id"], "role": "admin"})
    parent = await world.made(f"{accounts}/maker/tokens", {"name": "parent", "expires_in": 86400})
    children = [
        await world.made(f"{accounts}/{name}/tokens", {"name": "child"}, token=parent["secret"])
        for name in ("maker", "ci")
    ]
    assert {child["expires_at"] for child in children} == {parent["expires_at"]}, "a child lives no longer"
    grandchild = await world.made("/v1/user/tokens", {"name": "grandchild"}, token=children[1]["secret"])
    await world.call("DELETE", f"{accounts}/maker/tokens/{parent['id']}")
    await later(world)
    for each in (*children, grandchild):
        assert (await world.get("/v1/user", token=each["secret"])).status == 401


async def test_what_the_tokens_of_a_deleted_account_made_is_void_as_well(world: World, org: str) -> None:
    accounts = f"/v1/organizations/{org}/service-accounts"
    maker = await world.made(accounts, {"name": "maker"})
    await world.made(accounts, {"name": "ci"})
    await world.made("/v1/grants", {"scope": org, "principal": maker["id"], "role": "admin"})
    parent = await world.made(f"{accounts}/maker/tokens", {"name": "parent"})
    child = await world.made(f"{accounts}/ci/tokens", {"name": "child"}, token=parent["secret"])
    assert (await world.call("DELETE", f"{accounts}/maker")).status == 204
    await later(world)
    assert (await world.get("/v1/user", token=child["secret"])).status == 401


async def test_a_token_that_a_user_makes_for_an_account_outlives_his_own(world: World, org: str) -> None:
    """It is the organization's: a pipeline does not stop when whoever set it up signs out."""
    accounts = f"/v1/organizations/{org}/service-accounts"
    await world.made(accounts, {"name": "ci"})
    his = await world.made("/v1/user/tokens", {"name": "his"})
    token = await world.made(f"{accounts}/ci/tokens", {"name": "one"}, token=his["secret"])
    await world.call("DELETE", f"/v1/user/tokens/{his['id']}")
    await later(world)
    assert (await world.get("/v1/user", token=token["secret"])).status == 200


async def test_nobody_makes_a_token_for_an_account_that_holds_more_than_he(world: World, org: str) -> None:
    accounts = f"/v1/organizations/{org}/service-accounts"
    account = await world.made(accounts, {"name": "root"})
    await world.made("/v1/grants", {"scope": org, "principal": account["id"], "role": "owner"})
    answer = await world.post(f"{accounts}/root/tokens", {"name": "mine"}, token=CHIEF)
    assert (answer.status, answer.code) == (403, "not-held")
    narrow = await world.post(f"{accounts}/root/tokens", {"name": "mine", "scopes": ["apps:*"]}, token=CHIEF)
    assert narrow.status == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": ["apps:fly"]}, "scopes[0]"),
        ({"expires_in": 91 * 86400}, "expires_in"),
        ({"expires_in": 0}, "expires_in"),
    ],
)
async def test_a_token_that_makes_no_sense_is_refused(world: World, org: str, body: dict[str, Any], field: str) -> None:
    await world.made(f"/v1/organizations/{org}/service-accounts", {"name": "ci"})
    answer = await world.post(f"/v1/organizations/{org}/service-accounts/ci/tokens", {"name": "one", **body})
    assert (answer.status, fields(answer)) == (422, [field])


async def test_the_secret_of_an_account_is_not_kept_for_a_repeated_request(world: World, org: str) -> None:
    await world.made(f"/v1/organizations/{org}/service-accounts", {"name": "ci"})
    path = f"/v1/organizations/{org}/service-accounts/ci/tokens"
    answer = await world.post(path, {"name": "one"}, headers={"Idempotency-Key": "k"})
    assert (answer.status, answer.code) == (409, "not-repeatable")


async def test_quotas_are_by_plan_and_by_what_the_operator_set(world: World) -> None:
    path = "/v1/organizations/other/quotas"
    by_plan = (await world.get(path, token=FOREIGN)).json
    assert {each["name"]: each["limit"] for each in by_plan["data"]} == {**PLANS["free"].limits, "priority": 50}
    assert (await world.call("PUT", path, {"limits": {}, "plan": "enterprise"}, token=FOREIGN)).status == 403
    given = await world.call("PUT", path, {"plan": "starter", "limits": {"apps": 1, "cpu": None}}, token=ADMIN)
    limits = {each["name"]: each["limit"] for each in given.json["data"]}
    assert (given.json["plan"], given.json["set"]) == ("starter", ["apps", "cpu"])
    assert limits == {**PLANS["starter"].limits, "apps": 1, "cpu": None, "priority": 50}
    await world.made("/v1/apps", {"name": "shop"}, token=FOREIGN)
    answer = await world.post("/v1/apps", {"name": "more"}, token=FOREIGN)
    assert (answer.status, answer.code) == (429, "quota-exceeded")
    [error] = answer.json["errors"]
    assert (error["field"], error["limit"], error["used"]) == ("apps", 1, 1)
    back = await world.call("PUT", path, {"limits": {}}, token=ADMIN)
    assert (back.json["set"], back.json["plan"]) == ([], "starter")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limits": {"apples": 1}}, "limits.apples"),
        ({"limits": {"apps": -1}}, "limits.apps"),
        ({"limits": {}, "plan": "gold"}, "plan"),
    ],
)
async def test_a_quota_that_makes_no_sense_is_refused(world: World, body: dict[str, Any], field: str) -> None:
    answer = await world.call("PUT", "/v1/organizations/other/quotas", body, token=ADMIN)
    assert (answer.status, fields(answer)) == (422, [field])


async def test_an_owner_bounds_his_projects_and_sees_what_each_uses(world: World, org: str) -> None:
    path = f"/v1/projects/{world.project.id}/quotas"
    assert (await world.call("PUT", path, {"limits": {"tokens": 1}})).status == 422
    assert (await world.call("PUT", path, {"limits": {"apps": 1}}, token=JUNIOR)).status == 403
    assert (await world.call("PUT", path, {"limits": {"apps": 1}})).json["set"] == ["apps"]
    await world.deployed()
    assert (await world.post("/v1/apps", {"name": "more"})).status == 429
    usage = (await world.get(f"/v1/organizations/{org}/usage")).json
    assert usage["used"] == {
        "projects": 1,
        "tokens": 0,
        "apps": 1,
        "instances": 1,
        "memory": 256 << 20,
        "cpu": 1000,
        "volumes": 0,
        "storage": 0,
        "images": 1000,
        "backups": 0,
        "ports": 0,
    }
    assert usage["projects"][0]["used"]["instances"] == 1


async def test_tokens_of_service_accounts_count_while_they_hold(world: World) -> None:
    accounts = "/v1/organizations/other/service-accounts"
    await world.made(accounts, {"name": "ci"}, token=FOREIGN)
    await world.call("PUT", "/v1/organizations/other/quotas", {"limits": {"tokens": 1}}, token=ADMIN)
    first = await world.made(f"{accounts}/ci/tokens", {"name": "one"}, token=FOREIGN)
    assert (await world.post(f"{accounts}/ci/tokens", {"name": "two"}, token=FOREIGN)).code == "quota-exceeded"
    await world.call("DELETE", f"{accounts}/ci/tokens/{first['id']}", token=FOREIGN)
    assert (await world.post(f"{accounts}/ci/tokens", {"name": "two"}, token=FOREIGN)).status == 201


@pytest.mark.parametrize("plan", [name for name, plan in PLANS.items() if plan.rate])
async def test_each_token_has_the_rate_of_its_plan(world: World, plan: str) -> None:
    rate = PLANS[plan].rate
    assert rate
    await world.call("PUT", "/v1/organizations/other/quotas", {"plan": plan, "limits": {}}, token=ADMIN)
    answers = [await world.get("/v1/projects", token=FOREIGN) for _ in range(rate.burst + 1)]
    assert [answer.status for answer in answers] == [200] * rate.burst + [429]
    first, last = answers[0].headers, answers[-1].headers
    assert (first["ratelimit-limit"], first["ratelimit-remaining"]) == (str(rate.burst), str(rate.burst - 1))
    assert (last["ratelimit-remaining"], last["retry-after"]) == ("0", "1")
    await later(world, 60 / rate.per_minute)
    assert (await world.get("/v1/projects", token=FOREIGN)).status == 200, "one more after one interval"
    assert "ratelimit-limit" not in (await world.get("/v1/projects", token=ADMIN)).headers
