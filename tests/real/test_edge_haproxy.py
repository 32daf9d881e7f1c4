"""The edge with a real HAProxy on loopback: requests, swaps, reloads, and what is killed in between."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.core.routing import Endpoint, RouteState, RouteTable
from shellwego.edge.haproxy import HaproxyError
from shellwego.edge.processes import haproxy_processes
from shellwego.edge.runtime import ask
from shellwego.edge.settings import Layout
from tests.edge.rig import (
    Backend,
    Rig,
    backends,
    bind,
    eventually,
    free_port,
    is_alive,
    kill,
    read_answer,
    route,
    steady_load,
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


@contextmanager
def fresh_rig(owner: int = 0) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="swg-edge-") as directory:
        run_dir, state_dir = Path(directory, "run"), Path(directory, "state")
        Path(directory).chmod(0o711)
        for path in (run_dir, state_dir):
            path.mkdir(mode=0o700)
            os.chown(path, owner or os.geteuid(), -1)
        yield Rig(run_dir, state_dir, free_port())
        for process in haproxy_processes(Layout(run_dir)):
            os.kill(process.pid, signal.SIGKILL)


def layout(rig: Rig) -> Layout:
    return Layout(rig.run_dir)


async def admin(rig: Rig, command: str) -> str:
    return await ask(layout(rig).admin_socket, command)


async def reload(rig: Rig) -> None:
    """A reload without our doing; the edge must find its way."""
    await ask(layout(rig).master_socket, "reload")


# --- requests


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
        ("GET / HTTP/1.1\r\nHost: evil,hello.localhost\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: hello.localhost,evil\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: *\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: hello.localhost evil\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: hello.localhost/evil\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: swg_b0000\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-Long: " + "x" * 20_000 + "\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: hello.localhost\r\n" + "a: b\r\n" * 200 + "\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: x\r\n\r\n", 400),
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


async def test_only_websockets_may_leave_http(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        tunnel = (
            b"GET /ws HTTP/1.1\r\nHost: hello.localhost\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n"
        )
        await client.raw(tunnel)
        assert "upgrade" not in a.requests[-1].headers


# --- swaps and reloads under load


async def test_forty_swaps_fail_no_request(rig: Rig) -> None:
    async with backends("a", "b") as pair, rig.run():
        await rig.serve(route(pair[0].endpoint()))
        async with steady_load(rig, 24) as failures:
            for number in range(1, 41):
                await rig.serve(route(pair[number % 2].endpoint()))
                await eventually(lambda: rig.control.last.open_sessions == {})
        assert failures == []
        assert min(len(backend.requests) for backend in pair) > 100
        assert (await admin(rig, "show servers conn swg_b0001")).count("ins_") == 0


async def test_twenty_reloads_fail_no_request(rig: Rig) -> None:
    """As twenty upgrades of the platform: each edge adopts HAProxy, and finds that its configuration is another's."""
    async with backends("a", "b") as (a, b):
        async with rig.run(keep=True) as edge:
            await rig.serve(route(a.endpoint(), b.endpoint()))
            first = edge.process
        async with steady_load(rig, 24) as failures:
            for number in range(20):
                rig.timeouts = replace(rig.timeouts, hard_stop=61 + number)
                async with rig.run(keep=True) as edge:
                    assert edge.process is not None
                    assert first is not None
                    assert edge.process.pid == first.pid
                    await rig.serve(route(a.endpoint(), b.endpoint()))
                    assert f"hard-stop-after {61 + number}s" in layout(rig).config.read_text()
        assert failures == []
        assert "20 [failed: 0]" in await ask(layout(rig).master_socket, "show proc")


async def test_the_pool_grows_under_load_without_a_failed_request(rig: Rig) -> None:
    rig.pool_size = 2
    async with backends("a", "b") as (a, b), rig.run():
        await rig.serve(route(a.endpoint()))
        async with steady_load(rig, 12) as failures:
            for count in (2, 3, 9):
                others = [route(b.endpoint(), app=f"other{number}") for number in range(count)]
                await rig.serve(route(a.endpoint()), *others)
                async with rig.client(f"other{count - 1}.localhost") as client:
                    assert (await client.get()).text == "b"
        assert failures == []
        assert (await admin(rig, "show backend")).count("swg_b") == 16


async def test_a_pool_that_may_not_grow_serves_what_fits_and_says_so_to_the_others(rig: Rig) -> None:
    rig.pool_size = rig.pool_limit = 2
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        await rig.serve(*(route(a.endpoint(), app=f"app{number}") for number in range(3)))
        answers = [await client.get(host=f"app{number}.localhost") for number in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 503]
        assert answers[2].error == "no-server-ready"


async def test_a_long_request_finishes_across_a_swap_and_is_told_until_then(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        slow = asyncio.create_task(client.get("/slow?2"))
        await eventually(lambda: len(a.requests) == 1)
        await rig.serve(route(b.endpoint()))
        assert rig.control.last.open_sessions == {"ins_a": 1}
        assert (await slow).text == "a"
        await eventually(lambda: rig.control.last.open_sessions == {})


async def test_a_long_request_is_still_told_after_a_reload_and_a_restart_of_the_edge(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.client() as client:
        async with rig.run(keep=True):
            await rig.serve(route(a.endpoint()))
            slow = asyncio.create_task(client.get("/slow?4"))
            await eventually(lambda: len(a.requests) == 1)
        rig.timeouts = replace(rig.timeouts, hard_stop=61)
        async with rig.run():
            await rig.serve(route(b.endpoint()))
            assert rig.control.last.open_sessions == {"ins_a": 1}
            assert (await slow).text == "a"
            await eventually(lambda: rig.control.last.open_sessions == {})


async def test_a_connection_from_before_a_reload_follows_the_routes_of_after_it(rig: Rig) -> None:
    """An idle connection of the old worker may send one more request, when its old servers are long gone."""
    async with backends("a", "b") as (a, b), rig.client() as client:
        async with rig.run(keep=True):
            await rig.serve(route(a.endpoint()))
            assert (await client.get()).text == "a"
        rig.timeouts = replace(rig.timeouts, hard_stop=61)
        async with rig.run():
            await rig.serve(route(b.endpoint()))
            await a.stop()
            assert (await client.get()).text == "b"
            assert b.requests[-1].headers["x-forwarded-for"] == "127.0.0.1"


# --- what is killed


async def test_an_edge_that_was_killed_comes_back_to_the_same_haproxy(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.client() as client:
        async with rig.run(keep=True) as edge:
            await rig.serve(route(a.endpoint()))
            before = edge.process
        assert (await client.get()).text == "a"
        async with rig.run() as edge:
            assert edge.process is not None
            assert before is not None
            assert (edge.process.pid, edge.process.start_time) == (before.pid, before.start_time)
            assert rig.listened == 1
            await rig.serve(route(b.endpoint()))
            assert (await client.get()).text == "b"
            assert "ins_" not in await admin(rig, "show servers conn swg_b0001")


async def test_an_app_keeps_its_backend_over_deploys_and_restarts_of_the_edge(rig: Rig) -> None:
    async with backends("a", "b", "c") as (a, b, c):
        for backend in (b, c):
            async with rig.run(keep=True):
                await rig.serve(route(a.endpoint(), app="first"), route(backend.endpoint()))
                assert "hello.localhost swg_b0001" in await admin(rig, f"show map {layout(rig).hosts_map}")


async def test_a_killed_haproxy_is_built_anew_from_the_last_routes_without_the_control_plane(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run() as edge:
        await rig.serve(route(a.endpoint()), route(app="off", state=RouteState.STOPPED))
        before = edge.process
        assert before is not None
        rig.control.reachable = False
        kill(before.pid)
        await eventually(lambda: edge.process is not None and edge.process.pid != before.pid, 3)
        async with rig.client() as client:
            assert (await client.get()).text == "a"
            assert (await client.get(host="off.localhost")).error == "app-stopped"
        assert rig.listened == 1, "the socket was kept, so that connections waited instead of being refused"


async def test_a_killed_worker_takes_its_master_along_and_both_are_built_anew(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run() as edge:
        await rig.serve(route(a.endpoint()))
        master, worker = haproxy_processes(layout(rig))
        kill(worker.pid)
        await eventually(lambda: edge.process is not None and edge.process.pid != master.pid, 3)
        async with rig.client() as client:
            assert (await client.get()).text == "a"


async def test_edge_and_haproxy_both_killed_serve_the_last_routes_again_at_once(rig: Rig) -> None:
    async with backends("a") as (a,):
        async with rig.run(keep=True) as edge:
            await rig.serve(route(a.endpoint()))
            assert edge.process is not None
            kill(edge.process.pid)
        rig.control.reachable = False
        async with rig.run(), rig.client() as client:
            assert (await client.get()).text == "a"


async def test_a_haproxy_that_does_not_answer_is_replaced_and_never_adopted(rig: Rig) -> None:
    async with backends("a") as (a,):
        async with rig.run(keep=True) as edge:
            await rig.serve(route(a.endpoint()))
            stopped = [process.pid for process in haproxy_processes(layout(rig))]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        rig.answer_s = 1.0
        async with rig.run() as edge, rig.client() as client:
            assert edge.process is not None
            assert edge.process.pid not in stopped
            assert (await client.get()).text == "a"
        assert not any(is_alive(pid) for pid in stopped)


async def test_a_haproxy_that_stops_answering_is_replaced(rig: Rig) -> None:
    rig.answer_s = 1.0
    async with backends("a") as (a,), rig.run() as edge:
        await rig.serve(route(a.endpoint()))
        stopped = [process.pid for process in haproxy_processes(layout(rig))]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: edge.process is not None and edge.process.pid not in stopped, 30)
        async with rig.client() as client:
            assert (await client.get()).text == "a"


async def test_what_was_planted_among_our_servers_and_hosts_is_removed(rig: Rig) -> None:
    async with backends("a", "evil") as (a, evil):
        async with rig.run(keep=True):
            await rig.serve(route(a.endpoint()))
        hosts = layout(rig).hosts_map
        pages = layout(rig).pages_map
        for command in (
            f"add server swg_b0000/planted 127.0.0.1:{evil.port}",
            "set server swg_b0000/planted state ready",
            f"add server swg_b0007/planted 127.0.0.1:{evil.port}",
            "set server swg_b0007/planted state ready",
            f"add map {hosts} planted.localhost swg_b0007",
            f"add map {pages} * retired",
        ):
            assert "No such" not in await admin(rig, command)
        async with rig.run():
            await rig.applied(rig.control.table.version)
            deadline = asyncio.get_running_loop().time() + 10
            while "planted" in await admin(rig, "show servers conn") + await admin(rig, f"show map {hosts}"):
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.05)
            assert "*" not in await admin(rig, f"show map {pages}")
            async with rig.client() as client:
                assert {(await client.get()).text for _ in range(10)} == {"a"}


async def test_an_edge_stopped_for_good_leaves_no_process_and_a_free_port(rig: Rig) -> None:
    async with backends("a") as (a,), rig.client() as client:
        async with rig.run():
            await rig.serve(route(a.endpoint()))
            slow = asyncio.create_task(client.get("/slow?0.5"))
            await eventually(lambda: len(a.requests) == 1)
        assert (await slow).text == "a", "a request in flight was let finish"
    assert haproxy_processes(layout(rig)) == ()
    bind(rig.port).close()


# --- starts that fail, and surroundings


async def test_a_taken_port_is_an_error(rig: Rig) -> None:
    with bind(rig.port), pytest.raises(OSError, match="in use"):
        await rig.edge().open()
    assert haproxy_processes(layout(rig)) == ()


async def test_a_configuration_that_haproxy_refuses_is_told_in_its_words(rig: Rig) -> None:
    rig.timeouts = replace(rig.timeouts, connect=-1)
    with pytest.raises(HaproxyError, match="timeout connect"):
        await rig.edge().open()
    assert haproxy_processes(layout(rig)) == ()


async def test_a_full_disk_or_a_foreign_directory_is_told_with_its_path(rig: Rig) -> None:
    layout(rig).pages_dir.write_text("in the way")
    with pytest.raises(HaproxyError, match="pages"):
        await rig.edge().open()


async def test_a_record_of_routes_that_cannot_be_written_stops_no_route(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        rig.state_dir.rename(rig.state_dir.with_name("moved"))
        await rig.serve(route(a.endpoint()))
        assert (await client.get()).text == "a"


async def test_two_edges_side_by_side_never_touch_each_other(rig: Rig) -> None:
    with fresh_rig() as other:
        async with backends("a", "b") as (a, b), rig.run() as edge:
            async with other.run() as second:
                await rig.serve(route(a.endpoint()))
                await other.serve(route(b.endpoint()))
                assert edge.process != second.process
                async with rig.client() as client, other.client() as stranger:
                    assert ((await client.get()).text, (await stranger.get()).text) == ("a", "b")
            async with rig.client() as client:
                assert (await client.get()).text == "a"


NOBODY = 65534


def owner(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="already unprivileged: every other test shows it")
def test_the_edge_works_as_an_unprivileged_user() -> None:
    """In a child that gave up root for good: start, serve, grow, adopt, stop."""

    async def life(rig: Rig) -> None:
        async with backends("a", "b") as (a, b), rig.client() as client:
            async with rig.run(keep=True):
                await rig.serve(route(a.endpoint()))
                await rig.serve(*(route(a.endpoint(), app=f"app{number}") for number in range(5)))
            async with rig.run():
                await rig.serve(route(b.endpoint()))
                assert (await client.get()).text == "b"
                assert {owner(process.pid) for process in haproxy_processes(layout(rig))} == {NOBODY}
        assert haproxy_processes(layout(rig)) == ()

    with fresh_rig(NOBODY) as rig:
        rig.pool_size = 2
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                asyncio.run(life(rig))
                code = 0
            except BaseException:  # noqa: BLE001 - the child must not go on as a second pytest
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- the control plane


async def test_an_edge_started_without_control_plane_serves_and_catches_up(rig: Rig) -> None:
    rig.control.reachable = False
    async with backends("a") as (a,), rig.run(), rig.client() as client:
        assert (await client.get()).error == "no-such-app"
        version = await rig.control.set(route(a.endpoint()))
        rig.control.reachable = True
        await rig.applied(version)
        assert (await client.get()).text == "a"


async def test_an_edge_that_the_control_plane_forgot_registers_again(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run():
        await rig.serve(route(a.endpoint()))
        rig.control.forget()
        await eventually(lambda: rig.control.registered == ["edge-test"])
        await rig.serve(route(a.endpoint()))


async def test_the_edge_reports_every_second_and_at_once_after_a_change(rig: Rig) -> None:
    async with backends("a") as (a,), rig.run():
        started = time.monotonic()
        await rig.serve(route(a.endpoint()))
        assert time.monotonic() - started < 0.5
        before = len(rig.control.reports)
        await eventually(lambda: len(rig.control.reports) >= before + 2, 4)


async def test_routes_of_a_restored_older_control_plane_are_served(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        await rig.serve(route(a.endpoint()))
        rig.control.table = RouteTable(version=1, routes=(route(b.endpoint()),))
        await rig.applied(1)
        assert (await client.get()).text == "b"


async def test_master_and_worker_are_put_into_the_edges_group(rig: Rig) -> None:
    async with rig.run():
        assert {process.pid for process in haproxy_processes(layout(rig))} == set(rig.placed)


async def test_a_client_that_sends_half_a_head_is_cut_off(rig: Rig) -> None:
    rig.timeouts = replace(rig.timeouts, request=1)
    async with rig.run(), rig.client() as client:
        reader, writer = await client.connection()
        writer.write(b"GET / HTTP/1.1\r\nHost: hel")
        answer = await asyncio.wait_for(read_answer(reader), 5)
        assert answer.status == 408
