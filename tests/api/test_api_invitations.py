"""Inviting people: who may, to what, for whom, and once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.sqlite import open_sqlite
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, World, add_user, make_world

PASSWORD = "correct horse battery"
MANAGER = f"pat_{'M' * 43}"


async def invited(world: World, email: str = "ann@x", role: str = "developer", token: str = ADMIN) -> Any:
    path = f"/v1/organizations/{world.project.organization_id}/invitations"
    return await world.made(path, {"email": email, "role": role}, token=token)


async def register(world: World, secret: str, **more: Any) -> Any:
    body = {"invitation": secret, "password": PASSWORD, **more}
    return await world.post("/v1/auth/register", body, token=None)


async def with_manager(world: World, role: str = "admin") -> str:
    """A member of the organization with this role; its token."""
    organization = world.project.organization_id
    await world.commit(lambda unit: add_user(unit, "manager@x", role, organization, MANAGER))
    return MANAGER


async def test_who_is_invited_makes_an_account_with_the_role_and_is_signed_in(world: World) -> None:
    made = await invited(world, "Ann@X")
    assert (made["email"], made["role"], made["state"]) == ("ann@x", "developer", "pending")
    answer = await register(world, made["secret"], name="Ann")
    assert answer.status == 201
    user = (await world.get("/v1/user", token=answer.json["secret"])).json
    assert (user["email"], user["name"], user["has_password"]) == ("ann@x", "Ann", True)
    assert user["grants"] == [{"role": "developer", "scope_id": world.project.organization_id}]
    assert (await world.get("/v1/apps", token=answer.json["secret"])).status == 200
    again = await world.post("/v1/auth/token", {"email": "ann@x", "password": PASSWORD}, token=None)
    assert again.status == 201


async def test_who_has_an_account_accepts_as_himself(world: World) -> None:
    made = await invited(world, "foreign@x", "viewer")
    assert (await register(world, made["secret"])).code == "account-exists"
    accepted = await world.made("/v1/invitations/accept", {"invitation": made["secret"]}, token=FOREIGN)
    assert accepted == {"organization_id": world.project.organization_id, "role": "viewer"}
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(1.0)
    assert (await world.get(f"/v1/projects/{world.project.id}", token=FOREIGN)).status == 200


async def test_an_invitation_is_for_one_address_once_and_for_a_week(world: World) -> None:
    made = await invited(world, "foreign@x", "viewer")

    async def accept(token: str, secret: str = made["secret"]) -> tuple[int, str]:
        answer = await world.post("/v1/invitations/accept", {"invitation": secret}, token=token)
        return answer.status, answer.json["detail"] if answer.status != 200 else ""

    refused = await accept(OWNER)
    assert refused[0] == 404, "somebody else"
    assert (await accept(FOREIGN))[0] == 200
    assert await accept(FOREIGN) == refused, "a second time"
    for unknown in ("inv_" + "x" * 43, "", "inv_short", "pat_" + "x" * 43, "\0"):
        assert await accept(FOREIGN, unknown) == refused
    late = await invited(world, "late@x")
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(7 * 24 * 3600.0)
    assert (await register(world, late["secret"])).status == 404


async def test_of_many_who_accept_at_once_one_does(tmp_path: Path) -> None:
    clock = VirtualClock()
    world = await make_world(tmp_path / "spool", clock=clock, store=open_sqlite(tmp_path / "state.db", clock))
    try:
        made = await invited(world)
        answers = await asyncio.gather(*(register(world, made["secret"], name=str(n)) for n in range(5)))
        assert sorted(answer.status for answer in answers)[0] == 201
        assert all(answer.status in (404, 409) for answer in answers if answer.status != 201)
        users = (await world.get("/v1/users", token=ADMIN)).json["data"]
        assert [user["email"] for user in users].count("ann@x") == 1
        ann = next(user["id"] for user in users if user["email"] == "ann@x")
        grants = await world.control.read(lambda tx: [each for each in tx.grants.select() if each.principal_id == ann])
        assert len(grants) == 1
    finally:
        await world.control.store.close()


@pytest.mark.parametrize(("inviter", "role", "status"), [("admin", "owner", 403), ("admin", "developer", 201)])
async def test_nobody_invites_to_a_role_beyond_his_own(world: World, inviter: str, role: str, status: int) -> None:
    token = await with_manager(world, inviter)
    path = f"/v1/organizations/{world.project.organization_id}/invitations"
    answer = await world.post(path, {"email": "ann@x", "role": role}, token=token)
    assert answer.status == status
    if status == 403:
        assert answer.json["errors"][0]["field"] == "role"


@pytest.mark.parametrize("role", ["developer", "viewer", "billing"])
async def test_who_does_not_manage_members_invites_nobody(world: World, role: str) -> None:
    token = await with_manager(world, role)
    path = f"/v1/organizations/{world.project.organization_id}/invitations"
    assert (await world.post(path, {"email": "ann@x", "role": "viewer"}, token=token)).status in (403, 404)
    assert (await world.get(path, token=token)).status in (403, 404)


async def test_a_token_that_is_weaker_than_its_user_invites_to_no_more_than_it_holds(world: World) -> None:
    scoped = await world.made("/v1/user/tokens", {"name": "x", "scopes": ["members:*"]}, token=ADMIN)
    path = f"/v1/organizations/{world.project.organization_id}/invitations"
    answer = await world.post(path, {"email": "ann@x", "role": "viewer"}, token=scoped["secret"])
    assert (answer.status, answer.code) == (403, "not-held")


async def test_an_inviter_who_lost_his_role_gives_it_to_nobody(world: World) -> None:
    token = await with_manager(world)
    made = await invited(world, token=token)

    def demote(unit: Any) -> None:
        for grant in unit.tx.grants.select():
            if grant.role == "admin":
                unit.tx.grants.delete(grant.id)

    await world.commit(demote)
    answer = await register(world, made["secret"])
    assert (answer.status, answer.code) == (409, "invitation-void")
    assert "ann@x" not in (await world.get("/v1/users", token=ADMIN)).content.decode(), "nothing is stored half"


async def test_a_disabled_inviter_gives_nothing(world: World) -> None:
    made = await invited(world, token=await with_manager(world))
    await world.call("PATCH", "/v1/users/manager@x", {"disabled": True}, token=ADMIN)
    assert (await register(world, made["secret"])).code == "invitation-void"


async def test_invitations_are_listed_without_secrets_and_revoked(world: World) -> None:
    path = f"/v1/organizations/{world.project.organization_id}/invitations"
    made = await invited(world)
    listed = (await world.get(path, token=ADMIN)).json["data"]
    assert [(each["id"], each["state"]) for each in listed] == [(made["id"], "pending")]
    assert "secret" not in listed[0]
    assert (await world.call("DELETE", f"{path}/{made['id']}", token=ADMIN)).json["state"] == "revoked"
    assert (await world.call("DELETE", f"{path}/{made['id']}", token=ADMIN)).status == 200
    assert (await register(world, made["secret"])).status == 404
    for gone in (
        f"{path}/ivt_{'0' * 26}",
        f"/v1/organizations/{world.foreign.organization_id}/invitations/{made['id']}",
    ):
        assert (await world.call("DELETE", gone, token=ADMIN)).status == 404
    stored = await world.control.read(lambda tx: repr(tx.invitations.select()) + repr(tx.events.select()))
    assert made["secret"] not in stored


async def test_a_second_invitation_of_an_address_takes_the_place_of_the_first(world: World) -> None:
    first, second = await invited(world), await invited(world, role="viewer")
    assert (await register(world, first["secret"])).status == 404
    assert (await register(world, second["secret"])).status == 201
    path = f"/v1/organizations/{world.project.organization_id}/invitations"
    assert (await world.call("DELETE", f"{path}/{second['id']}", token=ADMIN)).code == "invitation-accepted"
    answer = await world.post(path, {"email": "ann@x", "role": "viewer"}, token=ADMIN)
    assert (answer.status, answer.code) == (409, "member-exists")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"email": "no address", "role": "viewer"}, 422, "email"),
        ({"email": "nul\0@x", "role": "viewer"}, 422, "email"),
        ({"email": "ann@x", "role": "emperor"}, 422, "role"),
        ({"email": "ann@x", "role": ""}, 422, "role"),
        ({"email": "ann@x"}, 400, "role"),
        ({"email": "ann@x", "role": "viewer", "organization_id": "org_x"}, 400, "organization_id"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_its_field(
    world: World, body: dict[str, str], status: int, field: str
) -> None:
    answer = await world.post(f"/v1/organizations/{world.project.organization_id}/invitations", body, token=ADMIN)
    assert (answer.status, answer.json["errors"][0]["field"]) == (status, field)


async def test_a_new_user_needs_a_password_that_will_do_and_gets_nothing_else(world: World) -> None:
    made = await invited(world)
    for more, status, field in (
        ({"password": "short"}, 422, "password"),
        ({"password": "x" * 1025}, 422, "password"),
        ({"role": "owner"}, 400, "role"),
        ({"email": "admin@localhost"}, 400, "email"),
    ):
        answer = await register(world, made["secret"], **more)
        assert (answer.status, answer.json["errors"][0]["field"]) == (status, field)
    assert (await register(world, made["secret"])).status == 201


async def test_a_foreign_organization_looks_absent(world: World) -> None:
    for organization in (world.project.organization_id, f"org_{'0' * 26}"):
        path = f"/v1/organizations/{organization}/invitations"
        for answer in (
            await world.get(path, token=FOREIGN),
            await world.post(path, {"email": "a@x", "role": "viewer"}, token=FOREIGN),
            await world.call("DELETE", f"{path}/ivt_x", token=FOREIGN),
        ):
            assert (answer.status, answer.code) == (404, "organization-not-found")


async def test_guessing_at_invitations_is_slowed(world: World) -> None:
    statuses = [(await register(world, f"inv_{number:043}")).status for number in range(25)]
    assert statuses.count(429) >= 3


async def test_a_narrowed_token_accepts_nothing(world: World) -> None:
    made = await invited(world, "viewer@x")
    narrow = await world.made("/v1/user/tokens", {"name": "x", "resources": [world.project.id]}, token=VIEWER)
    answer = await world.post("/v1/invitations/accept", {"invitation": made["secret"]}, token=narrow["secret"])
    assert answer.status == 403
