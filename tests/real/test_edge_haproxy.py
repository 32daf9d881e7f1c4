"""The edge with a real HAProxy on loopback: swaps, reloads, and what is killed in between."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.core.routing import Departed, RouteState, RouteTable
from shellwego.edge.haproxy import HaproxyError
from shellwego.edge.processes import haproxy_processes
from shellwego.edge.runtime import ask
from tests.edge.rig import (
    Rig,
    admin,
    backends,
    bind,
    eventually,
    fresh_rig,
    is_alive,
    kill,
    layout,
    read_answer,
    reload,
    route,
    steady_load,
)
from tests.forks import in_child

pytestmark = pytest.mark.real


@pytest.fixture
def rig() -> Iterator[Rig]:
    with fresh_rig() as made:
        yield made


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


async def test_an_upload_of_100_mb_finishes_across_a_swap_and_a_reload(rig: Rig) -> None:
    piece, pieces = b"x" * 1_000_000, 100
    async with backends("a", "b") as (a, b), rig.run(), rig.client() as client, rig.client() as other:
        await rig.serve(route(a.endpoint()))
        reader, writer = await client.connection()
        writer.write(
            f"POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: {len(piece) * pieces}\r\n\r\n".encode()
        )
        for sent in range(pieces):
            writer.write(piece)
            await writer.drain()
            if sent == pieces // 3:
                await rig.serve(route(b.endpoint()))
                assert (await other.get()).text == "b"
                await eventually(lambda: rig.control.last.open_sessions == {"ins_a": 1})
            if sent == pieces // 2:
                await reload(rig)
        assert (await read_answer(reader)).text == "a"
        assert [len(request.body) for request in a.requests] == [len(piece) * pieces]
        await eventually(lambda: rig.control.last.open_sessions == {})


async def test_a_request_that_waits_for_the_dead_vm_of_a_restarted_instance_is_answered_soon(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.run(), rig.client() as client:
        await rig.serve(route(a.endpoint()))
        waiting = asyncio.create_task(client.get("/slow?30"))
        await eventually(lambda: len(a.requests) == 1)
        await rig.serve(route(replace(b.endpoint(), instance_id="ins_a")))
        answer = await asyncio.wait_for(waiting, 5)
        assert answer.status in (502, 503, 504)
        assert answer.error


async def test_what_waits_for_a_vm_that_ended_is_answered_at_once_and_what_drains_is_served(rig: Rig) -> None:
    async with backends("a", "b") as (a, b), rig.run(), rig.client() as waiting, rig.client() as served:
        await rig.serve(route(a.endpoint()), route(b.endpoint(), app="other"))
        cut = asyncio.create_task(waiting.get("/slow?30"))
        kept = asyncio.create_task(served.get("/slow?2", host="other.localhost"))
        await eventually(lambda: len(a.requests) == len(b.requests) == 1)
        await rig.serve(route(), route(app="other"))
        await eventually(lambda: rig.control.last.open_sessions == {"ins_a": 1, "ins_b": 1})
        await rig.control.set(replace(route(), departed=(Departed(instance_id="ins_a"),)), route(app="other"))
        answer = await asyncio.wait_for(cut, 1)
        assert (answer.status, answer.error) == (502, "bad-gateway")
        assert (await kept).text == "b"
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

    def as_nobody(rig: Rig) -> int:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        asyncio.run(life(rig))
        return 0

    with fresh_rig(NOBODY) as rig:
        rig.pool_size = 2
        assert in_child(lambda: as_nobody(rig)) == 0


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
