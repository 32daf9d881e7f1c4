"""What happens to one request at the edge, with a real HAProxy on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from shellwego.core.routing import Endpoint, RouteState
from tests.edge.rig import (
    Backend,
    Rig,
    backends,
    eventually,
    fresh_rig,
    read_answer,
    reload,
    route,
)

pytestmark = pytest.mark.real


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: hello.localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with fresh_rig() as made:
        yield made


async def test_a_host_reaches_its_app_and_a_change_of_routes_reaches_the_next_request(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        assert (await client.get()).text == "a"
        await rig.serve(route(b.endpoint()))
        assert (await client.get()).text == "b"


async def test_what_the_client_says_about_itself_is_replaced_by_what_is_true(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        forged = (
            "GET / HTTP/1.1\r\nHost: hello.localhost:8080\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\n"
            "X_Forwarded_Host: evil\r\nX-Forwarded-Port: 1\r\nX-Real-IP: 6.6.6.6\r\nx_real-ip: 6.6.6.6\r\n"
            "Forwarded: for=6.6.6.6\r\nProxy: evil\r\nX-Other: kept\r\n\r\n"
        )
        assert (await client.raw(forged.encode())).status == 200
        seen = a.requests[-1]
        assert seen.headers["x-forwarded-for"] == "127.0.0.1"
        assert seen.headers["x-forwarded-proto"] == "http"
        assert seen.headers["x-forwarded-host"] == "hello.localhost:8080"
        assert sorted(seen.names) == ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-other"]


async def test_every_request_of_a_connection_tells_its_own_client(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run(), rig.client(source="127.0.0.2") as one, rig.client() as other:
        await rig.serve(route(a.endpoint()))
        for _ in range(2):
            for client in (one, other):
                await client.get()
        seen = [request.headers["x-forwarded-for"] for request in a.requests]
        assert seen == ["127.0.0.2", "127.0.0.1"] * 2


async def test_a_host_is_matched_without_port_case_and_last_dot(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        for host in ("hello.localhost:8080", "HELLO.LocalHost", "hello.localhost.", "hello.localhost.:80"):
            assert (await client.get(host=host)).text == "a", host


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nHost: other.localhost\r\n\r\n", 400),
        ("GET http://other.localhost/ HTTP/1.1\r\nHost: hello.localhost\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: evil,hello.localhost\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost,evil\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: *\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost evil\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost/evil\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost:80@evil\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\0evil\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost:" + "8" * 240 + "\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost:" + "8" * 9_000 + "\r\n\r\n", 400),
        ("CONNECT hello.localhost:80 HTTP/1.1\r\nHost: hello.localhost:80\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: swg_b0000\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-Long: " + "x" * 20_000 + "\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\n" + "a: b\r\n" * 200 + "\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: x\r\n\r\n", 400),
        ("POST / HTTP/1.0\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: xchunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX Y: z\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: a\rContent-Length: 5\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        ("nonsense\r\n\r\n", 400),
    ],
)
async def test_a_request_with_tricks_reaches_no_app(rig: Rig, request_head: str, status: int) -> None:
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        answer = await client.raw(request_head.encode())
        assert (answer.status, a.requests) == (status, [])


async def test_the_same_host_given_twice_reaches_the_app_once(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        doubled = b"GET / HTTP/1.1\r\nHost: hello.localhost\r\nHost: hello.localhost\r\n\r\n"
        assert (await client.raw(doubled)).status == 200
        assert a.requests[-1].names.count("host") == 1


async def test_each_state_of_an_app_has_its_page(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        await rig.serve(
            route(app="stopped", state=RouteState.STOPPED),
            route(app="starting", state=RouteState.STARTING),
            route(app="failing", state=RouteState.FAILING),
            route(app="none"),
            route(a.endpoint(weight=0), app="zero"),
        )
        expected = {
            "nobody": (404, "no-such-app"),
            "stopped": (503, "app-stopped"),
            "starting": (503, "app-starting"),
            "failing": (503, "app-failing"),
            "none": (503, "no-server-ready"),
            "zero": (503, "no-server-ready"),
        }
        for app, outcome in expected.items():
            answer = await client.get(host=f"{app}.localhost")
            assert (answer.status, answer.error) == outcome
            assert answer.text.startswith("<!doctype html>")
        head = await client.request("HEAD", host="nobody.localhost")
        assert (head.status, head.error) == (404, "no-such-app")


async def test_an_app_that_breaks_off_or_is_gone_gives_the_edges_own_page(rig: Rig) -> None:
    async with backends("a", "gone") as (a, gone), rig.run():
        await rig.serve(route(a.endpoint()), route(gone.endpoint(), app="gone"))
        await gone.stop()
        async with rig.client() as client:
            broken = await client.get("/drop")
            assert (broken.status, broken.error) == (502, "bad-gateway")
            dead = await client.get(host="gone.localhost")
            assert (dead.status, dead.error) == (503, "no-server-ready")


async def test_a_dead_instance_costs_no_request_while_another_lives(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.run():
        await rig.serve(route(a.endpoint(), b.endpoint()))
        await a.stop()
        async with rig.client() as client:
            assert {(await client.post(b"once")).text for _ in range(20)} == {"b"}
        assert len(b.requests) == 20


async def test_a_request_that_was_sent_is_never_sent_again(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint(), b.endpoint()))
        assert (await client.post(b"once", "/drop")).status == 502
        assert len(a.requests) + len(b.requests) == 1


async def test_weights_share_the_requests(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint(weight=0), b.endpoint(weight=100)))
        assert {(await client.get()).text for _ in range(10)} == {"b"}
        await rig.serve(route(a.endpoint(weight=100), b.endpoint(weight=0)))
        assert {(await client.get()).text for _ in range(10)} == {"a"}


@pytest.mark.parametrize("clients", [1, 16])
async def test_a_tenth_is_a_tenth_however_few_or_many_ask_at_a_time(rig: Rig, clients: int) -> None:
    async with backends("new", "old") as (new, old), rig.run():
        await rig.serve(route(new.endpoint(weight=1), old.endpoint(weight=9)))

        async def ask() -> None:
            async with rig.client() as client:
                for _ in range(1600 // clients):
                    assert (await client.get()).status == 200

        await asyncio.gather(*(ask() for _ in range(clients)))
        assert 80 <= len(new.requests) <= 240
        assert len(new.requests) + len(old.requests) == 1600


async def test_each_of_three_idle_servers_gets_its_part(rig: Rig) -> None:
    async with backends("a", "b", "c") as three, rig.run():
        for count in (1, 2, 3):  # as an app grows
            await rig.serve(route(*(each.endpoint() for each in three[:count])))
        before = [len(each.requests) for each in three]
        for _ in range(30):
            async with rig.client() as client:
                await client.get()
        assert min(len(each.requests) - start for each, start in zip(three, before, strict=True)) >= 5


async def test_an_endpoint_may_be_a_unix_socket(rig: Rig) -> None:
    backend = Backend("u")
    path = rig.run_dir / "app.sock"
    await backend.start(path)
    async with rig.run(), rig.client() as client:
        await rig.serve(route(Endpoint(instance_id="ins_u", address=f"unix:{path}")))
        assert (await client.get()).text == "u"
        await rig.serve(route(state=RouteState.STOPPED))
        assert (await client.get()).error == "app-stopped"
    await backend.stop()


async def test_a_websocket_passes_and_outlives_a_swap_and_a_reload(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        assert (await client.raw(UPGRADE)).status == 101
        reader, writer = await client.connection()

        async def echoed(data: bytes) -> bytes:
            writer.write(data)
            return await asyncio.wait_for(reader.readexactly(len(data)), 5)

        assert await echoed(b"before") == b"before"
        await rig.serve(route(b.endpoint()))
        assert await echoed(b"swapped") == b"swapped"
        await reload(rig)
        assert await echoed(b"reloaded") == b"reloaded"
        await eventually(lambda: rig.control.last.open_sessions == {"ins_a": 1})
        client.close()
        await eventually(lambda: rig.control.last.open_sessions == {})


@pytest.mark.parametrize(
    "upgrades",
    [("h2c",), ("websocket", "h2c"), ("h2c", "websocket"), ("h2c, websocket",), ("websocket, h2c",), ("websockets",)],
    ids=" then ".join,
)
async def test_only_websockets_may_leave_http(rig: Rig, upgrades: tuple[str, ...]) -> None:
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        fields = "".join(f"Upgrade: {name}\r\n" for name in upgrades)
        tunnel = f"GET /ws HTTP/1.1\r\nHost: hello.localhost\r\n{fields}Connection: Upgrade, HTTP2-Settings\r\n\r\n"
        await client.raw(tunnel.encode())
        assert not any("upgrade" in seen.headers for seen in a.requests)


async def test_a_client_cannot_have_the_next_hop_drop_what_the_edge_says(rig: Rig) -> None:
    """A proxy in the app drops every header that `Connection` names (RFC 9110, 7.6.1)."""
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        named = b"GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close, X-Forwarded-For\r\n\r\n"
        assert (await client.raw(named)).status == 200
        assert a.requests[-1].headers["x-forwarded-for"] == "127.0.0.1"
        assert "forwarded" not in a.requests[-1].headers.get("connection", "").lower()


async def test_a_client_that_sends_half_a_head_is_cut_off(rig: Rig) -> None:
    rig.timeouts = replace(rig.timeouts, request=1)
    async with rig.run(), rig.client() as client:
        reader, writer = await client.connection()
        writer.write(b"GET / HTTP/1.1\r\nHost: hel")
        answer = await asyncio.wait_for(read_answer(reader), 5)
        assert answer.status == 408
