"""Signing in: who may, what a refusal tells, and what a code is good for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shellwego.api.rest.problems import SECRET_FIELDS
from shellwego.control.identity import make_identity
from shellwego.control.sealing import Sealer
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.passwords.argon2 import Argon2Hasher
from shellwego.drivers.passwords.memory import MemoryHasher
from shellwego.drivers.store.sqlite import open_sqlite
from tests.api.api_world import ADMIN, DOCUMENT, FOREIGN, OWNER, VIEWER, World, make_world
from tests.api.identity_world import ADMIN_EMAIL, NEW, PASSWORD, code, enrolled, later, set_password, sign_in


async def test_the_host_sets_the_first_password_and_signing_in_gives_a_token(world: World) -> None:
    assert (await set_password(world)).json == {"revoked_tokens": 0}
    answer = await sign_in(world)
    assert answer.status == 201
    made = answer.json
    assert made["secret"].startswith("pat_")
    user = (await world.get("/v1/user", token=made["secret"])).json
    assert (user["email"], user["has_password"], user["totp"]) == (ADMIN_EMAIL, True, False)
    assert (await sign_in(world, kind="temporary")).json["secret"].startswith("tmp_")


async def test_no_other_token_sets_a_first_password(world: World) -> None:
    answer = await set_password(world, token=OWNER)
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, "old_password")
    child = await world.made("/v1/user/tokens", {"name": "child"}, token=ADMIN)
    assert (await set_password(world, token=child["secret"])).status == 422


async def test_what_is_wrong_about_an_attempt_is_not_told(world: World) -> None:
    await enrolled(world)
    attempts: list[dict[str, str]] = [
        {"email": "nobody@x", "password": PASSWORD},
        {"email": "no address", "password": PASSWORD},
        {"email": "owner@x", "password": PASSWORD},
        {"email": ADMIN_EMAIL, "password": "wrong"},
        {"email": ADMIN_EMAIL, "password": PASSWORD},
        {"email": ADMIN_EMAIL, "password": PASSWORD, "totp": "000000"},
        {"email": ADMIN_EMAIL, "password": "x\0" * 12},
    ]
    told = []
    for number, attempt in enumerate(attempts):
        answer = await world.post("/v1/auth/token", attempt, token=None, client=f"192.0.2.{number}")
        told.append((answer.status, {k: v for k, v in answer.json.items() if k != "trace_id"}))
    assert all(each == told[0] for each in told)
    assert told[0][0] == 401


async def test_each_attempt_costs_one_hash_whatever_is_wrong(world: World) -> None:
    counting = CountingHasher()
    world.app.state.context.identity = make_identity(world.control, counting, world.sealer)
    await set_password(world)
    await sign_in(world, "warm up", email="nobody@x", client="192.0.2.9")
    for email, password in ((ADMIN_EMAIL, "wrong"), ("nobody@x", "wrong"), ("owner@x", "wrong"), ("", "wrong")):
        counting.compared = 0
        assert (await sign_in(world, password, email=email)).status == 401
        assert counting.compared == 1, email


class CountingHasher(MemoryHasher):
    compared = 0

    def matches(self, password: str, hashed: str) -> bool:
        assert hashed
        self.compared += 1
        return super().matches(password, hashed)


async def test_a_disabled_user_is_nobody_within_a_second_and_somebody_again(world: World) -> None:
    user = (await world.get("/v1/user")).json
    path = f"/v1/users/{user['id']}"
    assert (await world.call("PATCH", path, {"disabled": True}, token=ADMIN)).json["disabled_at"]
    await later(world, 1.0)
    assert (await world.get("/v1/user")).status == 401
    assert (await world.call("PATCH", path, {"disabled": False}, token=ADMIN)).status == 200
    await later(world, 1.0)
    assert (await world.get("/v1/user")).status == 200
    own = (await world.get("/v1/user", token=ADMIN)).json["id"]
    assert (await world.call("PATCH", f"/v1/users/{own}", {"disabled": True}, token=ADMIN)).status == 409


async def test_a_disabled_user_cannot_sign_in_and_is_told_what_everybody_is(world: World) -> None:
    await set_password(world)
    await world.commit(lambda unit: [_give_password(unit, user) for user in unit.tx.users.select()])
    assert (await sign_in(world, email="owner@x")).status == 201
    await world.call("PATCH", "/v1/users/owner@x", {"disabled": True}, token=ADMIN)
    answer = await sign_in(world, email="owner@x")
    assert (answer.status, answer.code) == (401, "sign-in-refused")


def _give_password(unit: Any, user: Any) -> None:
    from shellwego.core.credentials import Credentials  # noqa: PLC0415

    if unit.tx.credentials.get(user.id) is None:
        hashed = MemoryHasher().hash(PASSWORD)
        unit.tx.credentials.insert(Credentials(id=user.id, password_hash=hashed))


async def test_a_changed_password_needs_the_old_one_and_ends_the_other_sign_ins(world: World) -> None:
    await set_password(world)
    mine, other = [(await sign_in(world)).json["secret"] for _ in range(2)]
    child = (await world.made("/v1/user/tokens", {"name": "child"}, token=other))["secret"]
    for wrong in ({}, {"old_password": "wrong"}):
        answer = await set_password(world, NEW, token=mine, **wrong)
        assert (answer.status, answer.json["errors"][0]["field"]) == (422, "old_password")
    assert (await set_password(world, NEW, token=mine, old_password=PASSWORD)).json == {"revoked_tokens": 1}
    await later(world, 1.0)
    statuses = [(await world.get("/v1/user", token=each)).status for each in (mine, other, child, ADMIN)]
    assert statuses == [200, 401, 401, 200]
    assert (await sign_in(world)).status == 401
    assert (await sign_in(world, NEW)).status == 201


@pytest.mark.parametrize(
    "new", ["short", ADMIN_EMAIL, "x" * 1025, "é" * 600, "nul\0 in a long password", "aaaaaaaaaaaa"]
)
async def test_a_bad_new_password_is_refused_by_its_field_and_never_repeated(world: World, new: str) -> None:
    answer = await set_password(world, new)
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, "new_password")
    assert new not in answer.content.decode()
    assert "value" not in answer.json["errors"][0]


async def test_a_password_of_the_size_of_a_file_is_refused(world: World) -> None:
    assert (await sign_in(world, "x" * 60_000)).status == 422
    assert (await sign_in(world, "x" * 70_000)).status == 413


async def test_a_stolen_token_that_is_narrowed_cannot_touch_the_account(world: World) -> None:
    narrow = await world.made("/v1/user/tokens", {"name": "x", "resources": [world.project.id]}, token=ADMIN)
    scoped = await world.made("/v1/user/tokens", {"name": "x", "scopes": ["apps:*"]}, token=ADMIN)
    for token in (narrow["secret"], scoped["secret"]):
        assert (await set_password(world, token=token)).status == 403
        assert (await world.post("/v1/user/totp", {}, token=token)).status == 403
        assert (await world.call("PATCH", "/v1/user", {"name": "x"}, token=token)).status == 403


async def test_a_name_is_changed_and_nothing_else_is(world: World) -> None:
    assert (await world.call("PATCH", "/v1/user", {"name": "Ann"})).json["name"] == "Ann"
    for extra in ({"email": "x@y"}, {"id": "usr_x"}, {"disabled_at": None}, {"password_hash": "x"}):
        answer = await world.call("PATCH", "/v1/user", {"name": "Bob", **extra})
        assert (answer.status, answer.json["errors"][0]["field"]) == (400, next(iter(extra)))
    assert (await world.get("/v1/user")).json["name"] == "Ann"


# One-time codes


async def test_with_codes_signing_in_takes_one_and_each_only_once(world: World) -> None:
    secret, _ = await enrolled(world)
    assert (await sign_in(world)).status == 401
    now = code(world, secret)
    assert (await sign_in(world, totp=now)).status == 201
    assert (await sign_in(world, totp=now)).status == 401
    assert (await sign_in(world, totp=code(world, secret, -1))).status == 401, "an earlier one than the last"
    assert (await sign_in(world, totp=code(world, secret, 2))).status == 401, "too far ahead"
    await later(world, 30.0)
    assert (await sign_in(world, totp=code(world, secret))).status == 201


async def test_of_two_sign_ins_with_one_code_one_wins(tmp_path: Path) -> None:
    clock = VirtualClock()
    world = await make_world(tmp_path / "spool", clock=clock, store=open_sqlite(tmp_path / "state.db", clock))
    try:
        secret, _ = await enrolled(world)
        answers = await asyncio.gather(*(sign_in(world, totp=code(world, secret)) for _ in range(5)))
        assert sorted(answer.status for answer in answers) == [201, 401, 401, 401, 401]
    finally:
        await world.control.store.close()


async def test_a_recovery_code_is_used_once_also_under_concurrency(world: World) -> None:
    _, recovery = await enrolled(world)
    assert len(set(recovery)) == 10
    answers = await asyncio.gather(*(sign_in(world, totp=recovery[3].upper()) for _ in range(3)))
    assert sorted(answer.status for answer in answers) == [201, 401, 401]
    assert (await sign_in(world, totp=recovery[4])).status == 201


async def test_codes_are_on_only_when_one_was_seen(world: World) -> None:
    await set_password(world)
    made = await world.made("/v1/user/totp", {}, token=ADMIN)
    assert made["uri"].startswith("otpauth://totp/ShellWeGo:admin%40localhost?secret=")
    assert (await sign_in(world)).status == 201, "an enrolment that was begun locks nobody out"
    answer = await world.post("/v1/user/totp/confirm", {"code": "000000"}, token=ADMIN)
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, "code")
    confirmed = await world.post("/v1/user/totp/confirm", {"code": code(world, made["secret"])}, token=ADMIN)
    assert confirmed.status == 200
    assert (await sign_in(world, totp=code(world, made["secret"]))).status == 401, "the confirming code is used up"
    for path, body in (("totp", {}), ("totp/confirm", {"code": "000000"})):
        assert (await world.post(f"/v1/user/{path}", body, token=ADMIN)).status == 409


async def test_disabling_codes_takes_password_and_code(world: World) -> None:
    secret, recovery = await enrolled(world)
    token = (await sign_in(world, totp=code(world, secret))).json["secret"]
    path = "/v1/user/totp/disable"
    for body in ({}, {"password": PASSWORD}, {"password": "wrong", "code": recovery[0]}):
        assert (await world.post(path, body, token=token)).status == 422
    assert (await world.post(path, {"password": PASSWORD, "code": recovery[0]}, token=token)).json == {"enabled": False}
    assert (await sign_in(world)).status == 201


async def test_nothing_secret_is_stored_in_clear_or_told_again(world: World) -> None:
    secret, recovery = await enrolled(world)
    signed_in = (await sign_in(world, totp=code(world, secret))).json["secret"]
    stored = await world.control.read(
        lambda tx: "".join(
            str([vars_of(row) for row in table.select()])
            for table in (tx.users, tx.credentials, tx.tokens, tx.events, tx.audit, tx.idempotency)
        )
    )
    for each in (PASSWORD, secret, signed_in, *recovery):
        assert each not in stored
    for path in ("/v1/user", "/v1/user/tokens", "/v1/users", "/v1/audit", "/v1/events"):
        told = (await world.get(path, token=ADMIN)).content.decode()
        assert not any(each in told for each in (PASSWORD, secret, signed_in, "kept:", "1$", *recovery)), path


def vars_of(row: Any) -> dict[str, Any]:
    """All fields, also those that `repr` keeps to itself."""
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


async def test_with_the_platforms_own_hasher_it_is_the_same(world: World) -> None:
    world.app.state.context.identity = make_identity(world.control, Argon2Hasher(), world.sealer)
    secret, recovery = await enrolled(world)
    assert (await sign_in(world, "wrong", totp=code(world, secret))).status == 401
    assert (await sign_in(world, totp=code(world, secret))).status == 201
    stored = await world.control.read(lambda tx: tx.credentials.select()[0])
    assert stored.password_hash.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert secret not in str(stored.totp_sealed)
    other = Sealer(world.control, MemoryKms())
    world.app.state.context.identity = make_identity(world.control, Argon2Hasher(), other)
    await later(world, 60.0)
    assert (await sign_in(world, totp=code(world, secret))).status == 401, "its key is lost"
    assert (await sign_in(world, totp=recovery[0])).status == 201


async def test_users_are_the_operators_alone(world: World) -> None:
    listed = (await world.get("/v1/users", token=ADMIN)).json["data"]
    assert [user["email"] for user in listed] == [ADMIN_EMAIL, "foreign@x", "owner@x", "viewer@x"]
    assert not {"password_hash", "totp_sealed"} & set(listed[0])
    for token in (OWNER, VIEWER, FOREIGN):
        assert (await world.get("/v1/users", token=token)).status == 403
        for ref in (listed[0]["id"], "owner@x", f"usr_{'0' * 26}", "nobody@x"):
            assert (await world.get(f"/v1/users/{ref}", token=token)).status == 404, "whether there is one is not told"
            answer = await world.call("PATCH", f"/v1/users/{ref}", {"disabled": True}, token=token)
            assert (answer.status, answer.code) == (404, "user-not-found")
    assert (await world.get("/v1/users/nobody@x", token=ADMIN)).status == 404
    assert (await world.get("/v1/users/Owner@X", token=ADMIN)).json["email"] == "owner@x"


@pytest.mark.parametrize("name", ["password", "old_password", "new_password", "totp", "code", "invitation"])
async def test_a_secret_field_is_never_repeated_by_a_refusal(world: World, name: str) -> None:
    at = [
        (method.upper(), path)
        for path, operations in DOCUMENT["paths"].items()
        for method, operation in operations.items()
        if "{" not in path and name in _body_fields(operation)
    ]
    assert at
    for method, path in at:
        for value in (7_654_321, "canary" * 400):
            answer = await world.call(method, path, {name: value}, token=ADMIN)
            assert answer.status in (400, 422)
            assert str(value)[:40] not in answer.content.decode(), path


def _body_fields(operation: Any) -> Any:
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return DOCUMENT["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {}).get("properties", {})


def test_every_field_that_is_written_only_is_known_as_secret() -> None:
    found = {
        name
        for schema in DOCUMENT["components"]["schemas"].values()
        for name, field in schema.get("properties", {}).items()
        if any(each.get("writeOnly") for each in (field, *field.get("anyOf", ())))
    }
    assert {"password", "old_password", "new_password", "totp", "code", "invitation"} <= found
    assert found <= SECRET_FIELDS | {"value"}, "operations with a secret's value repeat nothing at all"
