"""What the session of a browser may, and what another site cannot do with it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from starlette.requests import HTTPConnection

from shellwego.api.rest.cookies import refuse_cross_site
from shellwego.core.errors import ForbiddenError
from tests.api.api_world import ADMIN, World
from tests.api.identity_world import HOST, later, set_password, sign_in


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


@pytest.mark.parametrize(
    ("origin", "passes"), [(None, False), ("https://evil.example", False), ("https://cloud.example", True)]
)
def test_a_page_of_another_site_opens_no_socket_with_a_session(origin: str | None, passes: bool) -> None:
    headers = [(b"host", b"cloud.example"), *([(b"origin", origin.encode())] if origin else [])]
    socket = HTTPConnection({"type": "websocket", "headers": headers})
    if passes:
        refuse_cross_site(socket)
    else:
        with pytest.raises(ForbiddenError):
            refuse_cross_site(socket)
