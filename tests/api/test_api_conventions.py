"""The conventions of the API: problems, trace ids, bounds, idempotency, entity tags, pages, rates."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shellwego.core.errors import UnavailableError
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.store import Transaction
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, World, add_user, call_asgi, make_world


async def test_an_unknown_path_and_an_unknown_method_are_problems(world: World) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/", 404), ("PUT", "/v1/apps", 405)):
        answer = await world.call(method, path)
        assert answer.status == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["trace_id"] == answer.headers["x-trace-id"]
        assert answer.json["instance"] == path
    slash = await world.get("/v1/apps/a/b")
    assert slash.json["detail"] == "the API has nothing at this path"
    assert "no slash" in slash.json["resolution"]


async def test_the_trace_id_of_the_caller_is_kept(world: World) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await world.get("/healthz", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert answer.headers["x-trace-id"] == trace
    answer = await world.get("/healthz", headers={"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"})
    assert answer.headers["x-trace-id"].strip("0")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"shop"', 400),
        (b"\xff\xfe", 400),
        (b'{"name": "\xff"}', 400),
        (b'{"name": "a\\ud800"}', 400),
        (b'{"name": 1}', 400),
        (b'{"name": true}', 400),
        (b'{"name": "a", "nme": "b"}', 400),
        (b"{}", 400),
        (b'{"name": "a", "counts": {"web": "1"}}', 400),
        (b'{"name": "a", "counts": {"web": 1.5}}', 400),
        (b'{"name": "a", "counts": {"web": false}}', 400),
        (b'{"name": "a", "counts": {"web": ' + b"9" * 5000 + b"}}", 400),
        (b'{"name": "a", "config": {"drain_timeout": NaN}}', 422),
        (b'{"name": "a", "config": {"drain_timeout": 1e999}}', 422),
        (b"[" * 100_000, 400),
        (b'{"name": "a", "env": {"A": null}}', 400),
        (b'{"name": "a", "env": {"1A": "b"}}', 422),
        (b'{"name": "a", "env": {"A": "b\\u0000"}}', 422),
        (b'{"name": "a", "env": {"SHELLWEGO_APP": "b"}}', 422),
        (b'{"name": "A"}', 422),
        (b'{"name": "$(id)"}', 422),
        (b'{"name": "../x"}', 422),
        (b'{"name": "a\\nb"}', 422),
        (b'{"name": "a", "counts": {"nope": 1}}', 422),
        (b'{"name": "a", "config": {"processes": {"w/x": {}}}}', 422),
        (b'{"name": "a", "config": {"processes": {"web": {"memory": "1 zb"}}}}', 422),
        (b'{"name": "a", "config": {"processes": {"web": {"memory": "1m"}}}}', 422),
        (b'{"name": "a", "config": {"processes": {"web": {"cpu": "-1"}}}}', 422),
    ],
)
async def test_a_bad_body_is_named_and_nothing_is_stored(world: World, raw: bytes, status: int) -> None:
    answer = await world.post("/v1/apps", raw=raw)
    assert answer.status == status, answer.content
    assert (await world.get("/v1/apps")).json["data"] == []


async def test_a_body_in_another_form_than_json_is_refused(world: World) -> None:
    answer = await world.post("/v1/apps", raw=b"name=shop", headers={"content-type": "text/plain"})
    assert answer.status == 400


@pytest.mark.parametrize(
    ("raw", "headers", "field"),
    [
        (b'{"name": "shop", "name": "other"}', {}, "name"),
        (b'{"name": "shop", "env": {"A": "1", "B": "2", "A": "3"}}', {}, "A"),
        (b'{"name": "shop"}', {"content-encoding": "gzip"}, "Content-Encoding"),
        (b'{"name": "shop"}', {"content-encoding": "identity, gzip"}, "Content-Encoding"),
        ('{"name": "shop"}'.encode("utf-16"), {}, None),
        ('{"name": "shop"}'.encode("utf-32-le"), {}, None),
    ],
)
async def test_a_body_that_another_reader_could_take_for_something_else_is_refused(
    world: World, raw: bytes, headers: dict[str, str], field: str | None
) -> None:
    answer = await world.post("/v1/apps", raw=raw, headers=headers)
    assert (answer.status, answer.code) == (400, "malformed")
    assert field is None or [each["field"] for each in answer.json["errors"]] == [field]
    assert (await world.get("/v1/apps")).json["data"] == []
    as_it_is = await world.post("/v1/apps", raw=b'{"name": "shop"}', headers={"content-encoding": "Identity"})
    assert as_it_is.status == 201


async def test_a_name_doubled_in_many_objects_is_found_in_little_time(world: World) -> None:
    """Looking for it costs no more than the body."""
    many = ", ".join(f'"N{number}": "x"' for number in range(100_000))
    answer = await world.post("/v1/apps", raw=f'{{"name": "a", "env": {{{many}, "N99999": "y"}}}}'.encode())
    assert (answer.status, answer.json["errors"][0]["field"]) == (400, "N99999")


async def test_a_problem_names_each_field(world: World) -> None:
    body = {"name": "shop", "env": {"1": "x", "B C": "y"}, "counts": {}}
    answer = await world.post("/v1/apps", body)
    assert {error["field"] for error in answer.json["errors"]} == {"env.1", "env.B C"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": ""}, "at most 40 characters"),
        ({"name": "a" * 64}, "at most 40 characters"),
        ({"name": "a", "config": {"processes": {"": {}}}}, "is empty"),
        ({"name": "a", "config": {"processes": {"web": {"stop_signal": "x" * 17}}}}, "at most 16 characters"),
        ({"name": "a", "counts": {"web": -1}}, "counts.web: must be 0 or more"),
        ({"name": "a", "counts": {"web": 1001}}, "counts.web: must be 1000 or less"),
        ({"name": "a", "counts": {f"p{each}": 1 for each in range(17)}}, "counts: at most 16 entries"),
        (
            {"name": "a", "config": {"mounts": [{"source": "data", "destination": "x"}]}},
            "destination: does not match ^/",
        ),
        ({"name": "a", "config": {"processes": {"web": {"memory": "lots"}}}}, "a size is a whole number"),
    ],
)
async def test_a_fault_is_told_in_words_for_people(world: World, body: object, words: str) -> None:
    detail = (await world.post("/v1/apps", body)).json["detail"]
    assert words in detail
    assert "String should" not in detail
    assert "Value error" not in detail


async def test_an_unknown_query_parameter_is_refused(world: World) -> None:
    answer = await world.get("/v1/apps?limt=3")
    assert (answer.status, answer.code) == (400, "unknown-parameter")


async def test_a_query_parameter_that_comes_twice_is_refused(world: World) -> None:
    mine, other = world.project.id, world.foreign.id
    answer = await world.get(f"/v1/apps?project={mine}&limit=1&project={other}")
    assert (answer.status, answer.json["errors"][0]["field"]) == (400, "project")


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_ten_megabytes_is_refused(world: World, declared: bool) -> None:
    headers = {} if declared else {"content-length": "0"}
    answer = await world.post("/v1/apps", raw=b" " * 10_000_001, headers=headers)
    assert (answer.status, answer.code) == (413, "body-too-large")


@pytest.mark.parametrize("path", ["/v1/auth/token", "/v1/auth/register"])
async def test_a_stranger_may_not_send_as_much_as_a_user(world: World, path: str) -> None:
    answer = await world.post(path, raw=b" " * (64 * 1024 + 1), headers={"content-length": "0"})
    assert (answer.status, answer.code) == (413, "body-too-large")
    answer = await world.post(path, raw=b"{" + b" " * 60_000 + b"}")
    assert answer.status in (400, 422), "so much is read"


async def test_a_huge_header_value_is_refused_before_it_is_used(world: World) -> None:
    answer = await world.post("/v1/apps", {"name": "shop"}, headers={"idempotency-key": "k" * 300})
    assert answer.status == 400
    answer = await world.call("DELETE", "/v1/apps/shop", headers={"if-match": "x" * 600})
    assert answer.status == 422


class _FailingStore(MemoryStore):
    """Fails when told to, as a defect of ours would."""

    error: Exception | None = None

    async def read(self, fn: Callable[[Transaction], Any]) -> Any:
        if self.error is not None:
            raise self.error
        return await super().read(fn)


async def test_a_defect_of_ours_tells_a_trace_id_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = VirtualClock()
    store = _FailingStore(clock)
    world = await make_world(tmp_path, clock=clock, store=store)
    store.error = RuntimeError("the secret is hunter2")
    answer = await call_asgi(world.app, "GET", "/v1/apps", headers={"authorization": f"Bearer {OWNER}"})
    assert answer.status == 500
    assert b"hunter2" not in answer.content
    logged = capsys.readouterr().out
    assert answer.headers["x-trace-id"] in logged
    assert OWNER not in logged


async def test_a_store_that_does_not_answer_is_503_and_not_ready(tmp_path: Path) -> None:
    clock = VirtualClock()
    store = _FailingStore(clock)
    world = await make_world(tmp_path, clock=clock, store=store)
    store.error = UnavailableError("store-full", "the disk is full")
    answer = await world.get("/v1/apps")
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "store-full", "1")
    assert (await world.get("/readyz", token=None)).status == 503


async def test_readiness_tells_the_state_of_backends(world: World) -> None:
    answer = await world.get("/readyz", token=None)
    assert answer.json == {"status": "ready", "nodes": 1, "backends": {"kvm": "ready"}}


@pytest.mark.databases
async def test_a_write_asked_twice_with_its_key_happens_once(world: World) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await world.post("/v1/apps", {"name": "shop"}, headers=headers)
    again = await world.post("/v1/apps", {"name": "shop"}, headers=headers)
    assert (first.status, first.content, first.headers["etag"]) == (again.status, again.content, again.headers["etag"])
    assert len((await world.get("/v1/apps")).json["data"]) == 1


@pytest.mark.databases
async def test_writes_at_once_with_one_key_happen_once(world: World) -> None:
    headers = {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(*(world.post("/v1/apps", {"name": "shop"}, headers=headers) for _ in range(10)))
    assert {(answer.status, answer.content) for answer in answers} == {(201, answers[0].content)}


async def test_a_key_used_for_another_request_is_refused(world: World) -> None:
    headers = {"Idempotency-Key": "k1"}
    await world.post("/v1/apps", {"name": "shop"}, headers=headers)
    answer = await world.post("/v1/apps", {"name": "other"}, headers=headers)
    assert (answer.status, answer.code) == (409, "idempotency-key-reused")


async def test_a_key_belongs_to_its_user_and_is_forgotten_after_a_day(world: World) -> None:
    headers = {"Idempotency-Key": "k1"}
    await world.post("/v1/apps", {"name": "shop"}, headers=headers)
    assert (await world.post("/v1/apps", {"name": "other"}, headers=headers, token=FOREIGN)).status == 201
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(24 * 3600 + 1)
    answer = await world.post("/v1/apps", {"name": "shop"}, headers=headers)
    assert (answer.status, answer.code) == (409, "app-exists")


@pytest.mark.databases
async def test_a_failed_write_keeps_no_answer(world: World) -> None:
    headers = {"Idempotency-Key": "k1"}
    assert (await world.post("/v1/apps/shop/actions/stop", headers=headers)).status == 404
    await world.made("/v1/apps", {"name": "shop"})
    assert (await world.post("/v1/apps/shop/actions/stop", headers=headers)).status == 202


@pytest.mark.databases
async def test_a_stale_tag_changes_nothing(world: World) -> None:
    created = await world.post("/v1/apps", {"name": "shop"})
    tag = created.headers["etag"]
    assert (await world.post("/v1/apps/shop/scale", {"counts": {"web": 2}}, headers={"If-Match": tag})).status == 202
    answer = await world.post("/v1/apps/shop/scale", {"counts": {"web": 3}}, headers={"If-Match": tag})
    assert (answer.status, answer.code) == (412, "etag-mismatch")
    assert (await world.get("/v1/apps/shop")).json["counts"] == {"web": 2}
    answer = await world.post("/v1/apps/shop/scale", {"counts": {"web": 3}}, headers={"If-Match": '"0", *'})
    assert answer.status == 202


async def _names(world: World, query: str) -> tuple[list[str], Any]:
    answer = (await world.get(f"/v1/apps?{query}")).json
    return [app["name"] for app in answer["data"]], answer["pagination"]


@pytest.mark.databases
async def test_pages_walk_forwards_and_backwards_without_gap_or_double(world: World) -> None:
    for name in "abcdefg":
        await world.made("/v1/apps", {"name": name})
    seen: list[str] = []
    cursor = ""
    while True:
        names, frame = await _names(world, f"limit=3&sort=name:desc&cursor={cursor}")
        seen += names
        if not frame["has_more"]:
            break
        cursor = frame["next_cursor"]
    assert seen == list("gfedcba")
    names, frame = await _names(world, f"limit=3&sort=name:desc&cursor={frame['prev_cursor']}")
    assert names == list("dcb")
    names, frame = await _names(world, f"limit=3&sort=name:desc&cursor={frame['prev_cursor']}")
    assert (names, frame["prev_cursor"], frame["has_more"]) == (list("gfe"), None, True)


async def test_rows_that_come_and_go_between_pages_disturb_no_other(world: World) -> None:
    for name in "bdfh":
        await world.made("/v1/apps", {"name": name})
    names, frame = await _names(world, "limit=2&sort=name")
    await world.made("/v1/apps", {"name": "a"})
    await world.commit(lambda unit: unit.tx.apps.delete(next(a.id for a in unit.tx.apps.select() if a.name == "d")))
    rest, _ = await _names(world, f"limit=9&sort=name&cursor={frame['next_cursor']}")
    assert (names, rest) == (["b", "d"], ["f", "h"])


async def test_the_total_is_counted_on_request_only(world: World) -> None:
    await world.made("/v1/apps", {"name": "a"})
    assert (await _names(world, ""))[1]["total"] is None
    assert (await _names(world, "include=total&limit=1"))[1]["total"] == 1


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "sort=secret",
        "sort=name:up",
        "include=everything",
        "cursor=nonsense",
        "cursor=%00",
        "cursor=W10",
        "cursor=bnVsbA",
        "cursor=" + "a" * 2000,
        "project=",
        "project=nope",
        "filter%5Bq%5D=" + "x" * 100,
    ],
)
async def test_a_bad_list_query_is_refused(world: World, query: str) -> None:
    answer = await world.get(f"/v1/apps?{query}")
    assert answer.status in ((200,) if query == "project=" else (400, 404, 422)), answer.content


async def test_a_cursor_with_values_of_another_type_is_refused(world: World) -> None:
    names: tuple[object, ...] = (1, None, [], {}, True, "\ud800", 1e400)
    for value in names:
        cursor = base64.urlsafe_b64encode(json.dumps(["name:asc", False, value, "x"]).encode()).decode().rstrip("=")
        assert (await world.get(f"/v1/apps?sort=name&cursor={cursor}")).status == 400
    times: tuple[object, ...] = ("x", 10**400, float("nan"), True)
    for value in times:
        text = json.dumps(["created_at:asc", False, value, "x"])
        cursor = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
        assert (await world.get(f"/v1/apps?sort=created_at&cursor={cursor}")).status == 400


async def test_a_cursor_of_another_order_is_refused(world: World) -> None:
    for name in "abc":
        await world.made("/v1/apps", {"name": name})
    _, frame = await _names(world, "limit=1&sort=name")
    assert (await world.get(f"/v1/apps?limit=1&sort=name:desc&cursor={frame['next_cursor']}")).status == 400


async def test_a_token_beyond_its_rate_is_told_when_to_come_again(world: World) -> None:
    limited = [await world.get("/v1/user", token=FOREIGN) for _ in range(21)]
    assert [answer.status for answer in limited] == [200] * 20 + [429]
    assert limited[0].headers["ratelimit-limit"] == "20"
    assert limited[0].headers["ratelimit-remaining"] == "19"
    wait = int(limited[-1].headers["retry-after"])
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(wait)
    assert (await world.get("/v1/user", token=FOREIGN)).status == 200


async def test_the_first_organization_has_no_rate(world: World) -> None:
    answers = [await world.get("/v1/user") for _ in range(200)]
    assert {answer.status for answer in answers} == {200}
    assert "ratelimit-limit" not in answers[0].headers


@pytest.mark.databases
async def test_a_revoked_token_is_refused_within_a_second(world: World) -> None:
    user = (await world.get("/v1/user")).json
    assert (await world.call("DELETE", f"/v1/user/tokens/{user['token_id']}")).status == 200
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(1.0)
    assert (await world.get("/v1/user")).status == 401


async def test_an_expired_token_is_refused(world: World) -> None:
    made = await world.made("/v1/user/tokens", {"name": "short", "expires_in": 60})
    assert (await world.get("/v1/user", token=made["secret"])).status == 200
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(61)
    assert (await world.get("/v1/user", token=made["secret"])).status == 401


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic eDp5", f"Bearer {OWNER}x", f"Bearer {OWNER[:-1]}", OWNER, "Bearer \xe4"]
)
async def test_anything_else_than_a_known_bearer_token_is_refused(world: World, header: str) -> None:
    answer = await world.get("/v1/user", token=None, headers={"authorization": header})
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_token_in_the_query_is_not_taken(world: World) -> None:
    assert (await world.get(f"/v1/user?token={OWNER}", token=None)).status == 401
    assert (await world.get(f"/v1/user?token={OWNER}")).status == 400


async def test_credentials_are_judged_before_the_body(world: World) -> None:
    assert (await world.post("/v1/apps", raw=b"{", token=None)).status == 401


async def test_a_token_makes_only_weaker_tokens(world: World) -> None:
    scoped = await world.made("/v1/user/tokens", {"name": "ci", "scopes": ["apps:read", "tokens:*"]})
    secret = scoped["secret"]
    assert (await world.post("/v1/apps", {"name": "x"}, token=secret)).status == 403
    assert (await world.get("/v1/apps", token=secret)).status == 200
    answer = await world.post("/v1/user/tokens", {"name": "more", "scopes": ["apps:write"]}, token=secret)
    assert (answer.status, answer.code) == (422, "token-refused")
    answer = await world.post("/v1/user/tokens", {"name": "more", "scopes": ["apps:*"]}, token=secret)
    assert answer.status == 422
    child = await world.made("/v1/user/tokens", {"name": "same"}, token=secret)
    assert child["scopes"] == ["apps:read", "tokens:*"]
    short = await world.made("/v1/user/tokens", {"name": "short", "expires_in": 60})
    child = await world.made("/v1/user/tokens", {"name": "child"}, token=short["secret"])
    assert child["expires_at"] <= short["expires_at"]


async def test_a_secret_is_shown_once_and_never_kept(world: World) -> None:
    made = await world.made("/v1/user/tokens", {"name": "ci"})
    listed = await world.get("/v1/user/tokens")
    assert made["secret"].encode() not in listed.content
    tokens = await world.control.read(lambda tx: tx.tokens.select())
    assert made["secret"] not in repr(tokens)
    answer = await world.post("/v1/user/tokens", {"name": "ci"}, headers={"Idempotency-Key": "k"})
    assert (answer.status, answer.code) == (409, "not-repeatable")


async def test_a_name_is_resolved_in_the_only_project_or_the_one_given(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    assert (await world.get("/v1/apps/shop")).status == 200
    answer = await world.get("/v1/apps/shop", token=ADMIN)
    assert (answer.status, answer.code) == (400, "project-needed")
    assert (await world.get(f"/v1/apps/shop?project={world.project.id}", token=ADMIN)).status == 200
    assert (await world.get("/v1/apps/shop?project=default", token=ADMIN)).status == 200
    assert (await world.get("/v1/apps/shop?project=theirs", token=ADMIN)).status == 404


async def test_the_documents_are_served(world: World) -> None:
    document = (await world.get("/v1/openapi.json", token=None)).json
    assert document["openapi"].startswith("3.1")
    assert (await world.get("/docs", token=None)).status == 200


async def test_metrics_count_answers_by_operation(world: World) -> None:
    await world.get("/v1/apps")
    text = (await world.get("/metrics", token=ADMIN)).content.decode()
    assert 'shellwego_http_requests_total{operation="list_apps",status="200"} 1' in text
    assert (await world.get("/metrics", token=VIEWER)).status == 403


async def test_a_service_without_grants_sees_nothing(world: World) -> None:
    lonely = "pat_" + "L" * 43
    await world.commit(lambda unit: add_user(unit, "lonely@x", "nonsense", world.project.id, lonely))
    assert (await world.get(f"/v1/apps?project={world.project.id}", token=lonely)).status == 404
    assert (await world.post("/v1/apps", {"name": "x"}, token=lonely)).status == 404


async def test_a_method_that_is_not_there_is_told_with_all_that_are(world: World) -> None:
    for path, methods in (
        ("/v1/apps", "GET, POST"),
        ("/v1/apps/shop", "DELETE, GET, PATCH"),
        ("/v1/audit", "GET"),
        ("/v1/images/uploads", "POST"),
    ):
        answer = await world.call("OPTIONS", path)
        assert (answer.status, answer.headers["allow"]) == (405, methods)
