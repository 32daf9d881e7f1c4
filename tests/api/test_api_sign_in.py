"""Signing in: who may, what a refusal tells, how guessing is slowed, and what a browser's session may."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pyotp import TOTP

from shellwego.control.identity import make_identity
from shellwego.core.errors import UnavailableError
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.passwords.memory import MemoryHasher
from shellwego.drivers.sealing.memory import MemorySealer
from shellwego.drivers.store.sqlite import open_sqlite
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, Answer, World, make_world

ADMIN_EMAIL = "admin@localhost"
PASSWORD = "correct horse battery"
NEW = "staple battery correct"
HOST = {"host": "cloud.example", "origin": "https://cloud.example"}


async def sign_in(world: World, password: str = PASSWORD, *, email: str = ADMIN_EMAIL, **more: Any) -> Answer:
    options = {name: more.pop(name) for name in ("client", "headers") if name in more}
    return await world.post("/v1/auth/token", {"email": email, "password": password, **more}, token=None, **options)


async def set_password(world: World, new: str = PASSWORD, *, token: str = ADMIN, **more: Any) -> Answer:
    return await world.call("PUT", "/v1/user/password", {"new_password": new, **more}, token=token)


async def later(world: World, seconds: float) -> None:
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(seconds)


def code(world: World, secret: str, steps: int = 0) -> str:
    return str(TOTP(secret).generate_otp(int(world.clock.now() // 30) + steps))


async def enrolled(world: World) -> tuple[str, list[str]]:
    """The administrator with a password and one-time codes: the secret and the recovery codes."""
    await set_password(world)
    secret = (await world.made("/v1/user/totp", {}, token=ADMIN))["secret"]
    confirmed = await world.made("/v1/user/totp/confirm", {"code": code(world, secret, -1)}, token=ADMIN)
    return secret, confirmed["recovery_codes"]


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
    world.app.state.context.identity = make_identity(world.control, counting, MemorySealer())
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


async def test_ten_megabytes_of_password_are_refused(world: World) -> None:
    assert (await sign_in(world, "x" * 9_000_000)).status == 422
    assert (await sign_in(world, "x" * 10_000_001)).status == 413


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


# Guessing


async def test_guessing_at_an_account_waits_longer_and_longer_from_wherever(world: World) -> None:
    await set_password(world)
    for number in range(6):
        assert (await sign_in(world, "wrong", client=f"192.0.2.{number}")).status == 401
    answer = await sign_in(world, client="192.0.2.99")
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "too-many-attempts", "1")
    await later(world, 1.0)
    assert (await sign_in(world, "wrong", client="192.0.2.7")).status == 401
    assert (await sign_in(world, client="192.0.2.8")).headers["retry-after"] == "2"
    await later(world, 2.0)
    assert (await sign_in(world, client="192.0.2.8")).status == 201
    assert (await sign_in(world, "wrong", client="192.0.2.9")).status == 401, "success forgets the failures"


async def test_an_account_that_does_not_exist_waits_as_one_that_does(world: World) -> None:
    await set_password(world)
    told = []
    for email in (ADMIN_EMAIL, "nobody@x"):
        answers = [await sign_in(world, "wrong", email=email, client=f"192.0.2.{n}") for n in range(8)]
        told.append([answer.status for answer in answers])
    assert told[0] == told[1] == [401] * 6 + [429] * 2


async def test_strangers_do_not_lock_out_a_device_that_signed_in_before(world: World) -> None:
    await set_password(world)
    assert (await sign_in(world, client="198.51.100.7")).status == 201
    for number in range(7):
        await sign_in(world, "wrong", client=f"192.0.2.{number}")
    assert (await sign_in(world, client="203.0.113.1")).status == 429, "a stranger"
    assert (await sign_in(world, client="198.51.100.7")).status == 201, "the known device"
    assert (await sign_in(world, client="203.0.113.1")).status == 429, "its sign-in helps no stranger"


async def test_one_source_is_slowed_whatever_it_tries(world: World) -> None:
    answers = [await sign_in(world, "wrong", email=f"user{number}@x") for number in range(22)]
    assert [answer.status for answer in answers].count(429) == 1
    networks = [await sign_in(world, "x", email=f"six{n}@x", client=f"2001:db8::{n}") for n in range(22)]
    assert [answer.status for answer in networks].count(429) == 1, "a network of IPv6 is one source"


async def test_a_thousand_guesses_at_once_are_not_more_than_in_turn(world: World) -> None:
    await set_password(world)
    answers = await asyncio.gather(*(sign_in(world, f"guess {n}", client=f"192.0.2.{n}") for n in range(30)))
    assert sum(answer.status == 401 for answer in answers) <= 6


async def test_guessing_by_a_stolen_token_is_slowed_and_locks_nobody_out(world: World) -> None:
    await set_password(world)
    token = (await sign_in(world)).json["secret"]
    statuses = [(await set_password(world, NEW, token=token, old_password=f"guess {n}")).status for n in range(8)]
    assert statuses == [422] * 6 + [429] * 2
    assert (await sign_in(world, client="192.0.2.1")).status == 201


async def test_attempts_are_audited_without_what_was_typed(world: World) -> None:
    await set_password(world)
    await sign_in(world, "wrong secret", email="typed-my-password-here@x")
    await sign_in(world, "wrong secret")
    await sign_in(world)
    records = (await world.get("/v1/audit?filter[action]=auth:sign-in", token=ADMIN)).json["data"]
    admin = (await world.get("/v1/user", token=ADMIN)).json["id"]
    told = {(record["actor"], record["allowed"]) for record in records}
    assert told == {("anonymous", False), (admin, False), (admin, True)}
    assert all("from 127.0.0.1" in record["detail"] for record in records)
    assert "typed" not in str(records)


async def test_who_comes_when_too_many_hash_is_told_to_come_again(world: World) -> None:
    passwords = world.app.state.context.identity.passwords
    passwords._held = passwords._most
    with pytest.raises(UnavailableError):
        await passwords.hash("x")
    answer = await sign_in(world)
    assert (answer.status, answer.code) == (503, "busy")


async def test_a_hash_of_weaker_parameters_is_made_anew_at_the_next_sign_in(world: World) -> None:
    await set_password(world)
    world.app.state.context.identity = make_identity(world.control, MemoryHasher(2), MemorySealer())
    assert (await sign_in(world)).status == 201
    stored = await world.control.read(lambda tx: [each.password_hash for each in tx.credentials.select()])
    assert [each.partition("$")[0] for each in stored] == ["2"]
    assert (await sign_in(world)).status == 201


# Sessions of browsers


async def session(world: World) -> str:
    await set_password(world)
    answer = await sign_in(world, kind="session", headers=HOST)
    assert answer.json["secret"] is None
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert cookie.startswith("__Host-shellwego-session=ses_")
    assert {each.lower() for each in attributes} == {
        "max-age=86400",
        "path=/",
        "secure",
        "httponly",
        "samesite=strict",
    }
    return cookie


async def test_a_session_reads_and_changes_things_from_its_own_host(world: World) -> None:
    headers = {**HOST, "cookie": await session(world)}
    assert (await world.get("/v1/user", token=None, headers={"cookie": headers["cookie"]})).status == 200
    assert (await world.call("PATCH", "/v1/user", {"name": "x"}, token=None, headers=headers)).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        {},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": "https://cloud.example.evil.example"},
        {"origin": "https://cloud.example:8443"},
        {"origin": "https://[cloud.example"},
        {"origin": "https://x@cloud.example"},
    ],
)
async def test_another_site_changes_nothing_with_a_session(world: World, origin: Mapping[str, str]) -> None:
    headers = {"host": "cloud.example", "cookie": await session(world), **origin}
    answer = await world.call("PATCH", "/v1/user", {"name": "x"}, token=None, headers=headers)
    assert (answer.status, answer.code) == (403, "cross-site")
    assert (await world.get("/v1/user", token=ADMIN)).json["name"] == ""


async def test_another_site_does_not_sign_its_visitors_in(world: World) -> None:
    await set_password(world)
    answer = await sign_in(world, kind="session", headers={**HOST, "origin": "https://evil.example"})
    assert answer.status == 403
    assert "set-cookie" not in answer.headers


async def test_only_a_session_is_taken_from_a_cookie(world: World) -> None:
    for secret in (ADMIN, "ses_" + "x" * 43, "", "ses_short"):
        headers = {**HOST, "cookie": f"__Host-shellwego-session={secret}"}
        assert (await world.get("/v1/user", token=None, headers=headers)).status == 401


async def test_a_bad_token_is_not_helped_by_a_good_cookie(world: World) -> None:
    headers = {**HOST, "cookie": await session(world), "authorization": "Bearer pat_x"}
    assert (await world.get("/v1/user", token=None, headers=headers)).status == 401


async def test_a_session_ends_after_a_day_used_or_not(world: World) -> None:
    headers = {"cookie": await session(world)}
    for _ in range(4):
        await later(world, 6 * 3600 - 1)
        assert (await world.get("/v1/user", token=None, headers=headers)).status == 200
    await later(world, 5.0)
    assert (await world.get("/v1/user", token=None, headers=headers)).status == 401


async def test_signing_out_ends_the_token_and_what_it_made_and_forgets_the_cookie(world: World) -> None:
    headers = {**HOST, "cookie": await session(world)}
    child = await world.made("/v1/user/tokens", {"name": "child"}, token=None, headers=headers)
    answer = await world.call("DELETE", "/v1/auth/token/current", token=None, headers=headers)
    assert answer.status == 200
    assert "Max-Age=0" in answer.headers["set-cookie"]
    await later(world, 1.0)
    assert (await world.get("/v1/user", token=None, headers=headers)).status == 401
    assert (await world.get("/v1/user", token=child["secret"])).status == 401


async def test_any_token_may_end_itself_and_by_this_no_other(world: World) -> None:
    scoped = await world.made("/v1/user/tokens", {"name": "x", "scopes": ["apps:read"]})
    own = (await world.get("/v1/user")).json["token_id"]
    for id_ in (own, f"tok_{'0' * 26}"):
        answer = await world.call("DELETE", f"/v1/auth/token/{id_}", token=scoped["secret"])
        assert (answer.status, answer.code) == (404, "token-not-found")
    assert (await world.call("DELETE", f"/v1/auth/token/{scoped['id']}", token=scoped["secret"])).status == 200


async def test_users_are_the_operators_alone(world: World) -> None:
    listed = (await world.get("/v1/users", token=ADMIN)).json["data"]
    assert [user["email"] for user in listed] == [ADMIN_EMAIL, "foreign@x", "owner@x", "viewer@x"]
    assert not {"password_hash", "totp_sealed"} & set(listed[0])
    for token in (OWNER, VIEWER, FOREIGN):
        assert (await world.get("/v1/users", token=token)).status == 403
        for ref in (listed[0]["id"], "owner@x", f"usr_{'0' * 26}", "nobody@x"):
            assert (await world.get(f"/v1/users/{ref}", token=token)).status == 403, "whether there is one is not told"
            answer = await world.call("PATCH", f"/v1/users/{ref}", {"disabled": True}, token=token)
            assert answer.status == 403
    assert (await world.get("/v1/users/nobody@x", token=ADMIN)).status == 404
