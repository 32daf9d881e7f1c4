"""What the edge does when HAProxy refuses, forgets, falls silent or dies; on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from shellwego.core.routing import Endpoint, Route, RouteState, RouteTable
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.edge.ingress import RELOAD_RETRY_S, Ingress, Status
from shellwego.edge.pool import AddServer, DeleteServer, Server, ServerState, SetState, TurnHost
from shellwego.edge.routes import LastRoutes
from shellwego.edge.settings import EdgeSettings
from tests.edge.fake_haproxy import FakeHaproxy, MemoryRoutes
from tests.edge.rig import route

SETTINGS = EdgeSettings(name="e", run_dir=Path("/run/swg"), state_dir=Path("/var/swg"), pool_size=4, pool_limit=16)


def at(number: int) -> Endpoint:
    return Endpoint(instance_id=f"ins_{number}", address=f"tcp:10.0.0.{number}:80")


def table(version: int, *routes: Route) -> RouteTable:
    return RouteTable(version=version, routes=routes)


class BrokenRoutes(MemoryRoutes):
    """Fails in a way that nobody thought of."""

    async def save(self, routes: LastRoutes) -> None:
        raise ValueError("no such thing")


class Scene:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.haproxy = FakeHaproxy()
        self.file = MemoryRoutes()
        self.settings = SETTINGS
        self.ingress: Ingress

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Ingress]:
        """A running ingress; entered again, a restarted one beside the same HAProxy."""
        self.ingress = Ingress(self.settings, self.haproxy, self.file, self.clock)  # type: ignore[arg-type]
        await self.ingress.open()
        task = asyncio.create_task(self.ingress.run())
        try:
            yield self.ingress
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def serve(self, version: int, *routes: Route, within: float = 1.0) -> None:
        self.ingress.take(table(version, *routes))
        await self.clock.until(lambda: self.version == version, within)

    @property
    def version(self) -> int:
        return self.ingress.status.applied_version if self.ingress.status else -1

    @property
    def sessions(self) -> dict[str, int]:
        assert self.ingress.status is not None
        return dict(self.ingress.status.open_sessions)

    @property
    def instances(self) -> set[str]:
        """Instances that take requests."""
        servers = self.haproxy.worker.held.servers
        return {name.partition(".")[0] for (_, name), server in servers.items() if server.state is ServerState.READY}

    def connect(self, instance: str, count: int) -> None:
        servers = self.haproxy.worker.held.servers
        for key, server in servers.items():
            if key[1].startswith(f"{instance}."):
                servers[key] = replace(server, connections=count)


async def test_a_table_is_served_at_once_and_told() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)), within=0.0)
        assert scene.instances == {"ins_1"}
        assert scene.ingress.status == Status(1)
        assert scene.file.last == LastRoutes(table=table(1, route(at(1))), backends={"app_hello": 0})


async def test_sessions_of_an_instance_that_left_are_told_until_it_is_empty_and_then_it_is_deleted() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
        scene.connect("ins_1", 2)
        await scene.serve(2, route(at(2)))
        assert scene.sessions == {"ins_1": 2}
        await scene.clock.advance(60)
        assert scene.sessions == {"ins_1": 2}
        scene.connect("ins_1", 0)
        await scene.clock.advance(1)
        assert scene.sessions == {}
        assert len(scene.haproxy.worker.held.servers) == 1


async def test_a_refused_server_keeps_the_old_one_and_the_version_waits() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
        scene.haproxy.worker.refuses = {AddServer}
        scene.ingress.take(table(2, route(at(2)), route(at(3), app="other")))
        await scene.clock.advance(10)
        assert (scene.version, scene.instances) == (1, {"ins_1"})
        scene.haproxy.worker.refuses = set()
        await scene.clock.advance(2)
        assert (scene.version, scene.instances) == (2, {"ins_2", "ins_3"})


async def test_a_host_that_cannot_be_turned_keeps_its_old_servers() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1), app="old", host="h.example"))
        scene.haproxy.worker.refuses = {TurnHost}
        scene.ingress.take(table(2, route(at(2), app="new", host="h.example")))
        await scene.clock.advance(5)
        assert "ins_1" in scene.instances
        assert scene.haproxy.worker.held.hosts == {"h.example": "swg_b0000"}


async def test_a_lost_answer_leads_to_a_new_look_and_no_step_is_done_twice() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
        scene.haproxy.worker.loses_answers = 3
        await scene.serve(2, route(at(2)), within=10)
        added = [step for step in scene.haproxy.worker.done if isinstance(step, AddServer)]
        assert len(added) == 2
        assert scene.instances == {"ins_2"}


async def test_a_server_whose_deletion_waits_is_tried_again_and_holds_nothing_up() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
        scene.haproxy.worker.refuses = {DeleteServer}
        await scene.serve(2, route(at(2)))
        looks = scene.haproxy.worker.looks
        await scene.clock.advance(3)
        assert len(scene.haproxy.worker.held.servers) == 2
        assert scene.haproxy.worker.looks - looks <= 1, "it is no reason to doubt what HAProxy holds"
        await scene.serve(3, route(at(2)), within=0.0)
        scene.haproxy.worker.refuses = set()
        await scene.clock.advance(1)
        assert len(scene.haproxy.worker.held.servers) == 1


async def test_what_is_planted_while_we_run_is_found_by_the_next_look() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
        scene.haproxy.worker.held.servers["swg_b0003", "planted"] = Server("6.6.6.6:1", 100, ServerState.READY)
        scene.haproxy.worker.held.hosts["planted.example"] = "swg_b0003"
        await scene.clock.advance(SETTINGS.observe_s + 1)
        assert scene.instances == {"ins_1"}
        assert set(scene.haproxy.worker.held.hosts) == {"hello.localhost"}


async def test_a_haproxy_that_died_is_started_with_the_present_routes_even_if_it_fails_at_first() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)), route(app="off", state=RouteState.STOPPED))
        scene.haproxy.refuses_start = 3
        await scene.haproxy.kill()
        await scene.clock.until(lambda: scene.haproxy.starts == 2, 10)
        assert scene.instances == {"ins_1"}
        await scene.clock.advance(1)
        assert scene.haproxy.worker.held.pages == {"off.localhost": "app-stopped"}


async def test_after_a_new_start_haproxy_is_looked_at_instead_of_remembered() -> None:
    """Backends are given out anew, so what was known of the dead one is wrong."""
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1), app="zoo"))
        await scene.serve(2, route(at(1), app="zoo"), route(at(2), app="alpha"))
        scene.haproxy.worker.done.clear()
        await scene.haproxy.kill()
        await scene.clock.advance(5)
        assert scene.haproxy.worker.held.hosts == {"alpha.localhost": "swg_b0000", "zoo.localhost": "swg_b0001"}
        assert scene.haproxy.worker.done == []


async def test_a_silent_haproxy_is_ended_only_after_its_time() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
        scene.haproxy.worker.silent = True
        await scene.clock.advance(SETTINGS.unresponsive_s - 1)
        assert scene.haproxy.starts == 1
        await scene.clock.advance(SETTINGS.observe_s + 3)
        assert (scene.haproxy.starts, scene.instances) == (2, {"ins_1"})


async def test_one_lost_answer_ends_no_haproxy_that_had_nothing_to_tell_for_long() -> None:
    """Without a table nothing is told, nor while HAProxy refuses a step; and it answers all the same."""
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
        scene.haproxy.worker.refuses = {AddServer}
        scene.ingress.take(table(2, route(at(2))))
        await scene.clock.advance(2 * SETTINGS.unresponsive_s)
        scene.haproxy.worker.loses_answers = 1
        await scene.clock.advance(5)
    scene.file.last = None
    async with scene.running():
        await scene.clock.advance(2 * SETTINGS.unresponsive_s)
        scene.haproxy.worker.silent = True
        await scene.clock.advance(SETTINGS.observe_s)
        scene.haproxy.worker.silent = False
        await scene.clock.advance(5)
    assert (scene.haproxy.starts, scene.instances) == (1, {"ins_1"})


async def test_a_haproxy_that_is_silent_is_ended_without_any_table_too() -> None:
    scene = Scene()
    async with scene.running():
        await scene.clock.advance(1)
        scene.haproxy.worker.silent = True
        await scene.clock.advance(SETTINGS.unresponsive_s + SETTINGS.observe_s + 3)
        assert scene.haproxy.starts == 2


async def test_what_fails_within_the_edge_ends_no_haproxy() -> None:
    scene = Scene()
    scene.file = BrokenRoutes()
    async with scene.running():
        scene.ingress.take(table(1, route(at(1))))
        await scene.clock.advance(5 * SETTINGS.unresponsive_s)
        assert (scene.haproxy.starts, scene.instances) == (1, {"ins_1"})


async def test_nothing_is_told_of_a_version_while_haproxy_is_silent() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
        scene.haproxy.worker.silent = True
        scene.ingress.take(table(2, route(at(2))))
        await scene.clock.advance(5)
        assert scene.version == 1


# --- restarts


async def test_a_restarted_edge_finds_each_app_in_its_backend_and_changes_nothing() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1), app="zoo"))
        await scene.serve(2, route(at(1), app="zoo"), route(at(2), app="alpha"))
    scene.haproxy.worker.done.clear()
    async with scene.running():
        await scene.clock.until(lambda: scene.version == 2)
        assert scene.haproxy.worker.done == []
        assert (scene.haproxy.starts, scene.haproxy.reloads) == (1, 0)


async def test_without_its_record_every_app_moves_to_a_new_backend_before_the_old_one_drains() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
    scene.file.last = None
    async with scene.running():
        await scene.serve(1, route(at(1)))
        assert scene.haproxy.worker.held.hosts == {"hello.localhost": "swg_b0001"}
        kinds = [type(step) for step in scene.haproxy.worker.done[3:]]
        assert kinds[:4] == [AddServer, SetState, TurnHost, SetState]


async def test_a_record_older_than_what_runs_never_mixes_two_apps() -> None:
    """The disk was full: the record still gives the backend to an app that left it to another."""
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1), app="former"))
        scene.file.full = True
        await scene.serve(2)
        await scene.clock.advance(2)
        await scene.serve(3, route(at(2), app="present"))
        assert scene.haproxy.worker.held.hosts == {"present.localhost": "swg_b0000"}
    async with scene.running():
        await scene.serve(4, route(at(1), app="former"), route(at(2), app="present"))
        assert len(set(scene.haproxy.worker.held.hosts.values())) == 2
        assert "swg_b0000" not in scene.haproxy.worker.held.hosts.values()


async def test_without_any_table_a_running_haproxy_is_left_as_it_is() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
    scene.file.last = None
    async with scene.running():
        await scene.clock.advance(30)
        assert scene.instances == {"ins_1"}
        assert scene.ingress.status is None


async def test_a_haproxy_of_another_version_is_reloaded_once_and_keeps_its_routes() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, route(at(1)))
    scene.settings = replace(SETTINGS, max_connections=77)
    async with scene.running():
        await scene.clock.until(lambda: scene.version == 1)
        await scene.clock.advance(30)
        assert (scene.haproxy.starts, scene.haproxy.reloads) == (1, 1)
        assert scene.instances == {"ins_1"}


# --- reloads


def apps(count: int) -> list[Route]:
    return [route(at(number), app=f"app{number:02d}") for number in range(1, count + 1)]


async def test_the_pool_grows_by_one_reload_that_already_holds_all_servers() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, *apps(4))
        await scene.serve(2, *apps(9))
        assert (scene.haproxy.reloads, scene.haproxy.worker.held.size) == (1, 16)
        assert len(scene.instances) == 9
        assert scene.haproxy.master.retired == set(scene.haproxy.master.old)


async def test_sessions_in_an_old_worker_are_told_until_it_has_none() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, *apps(4))
        scene.connect("ins_1", 3)
        await scene.serve(2, *apps(9)[1:])
        assert scene.sessions == {"ins_1": 3}
        scene.haproxy.master.old.clear()
        await scene.clock.advance(1)
        assert scene.sessions == {}


async def test_sessions_of_an_instance_that_still_serves_are_nobodys_business() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, *apps(4))
        scene.connect("ins_1", 3)
        await scene.serve(2, *apps(9))
        assert scene.sessions == {}


async def test_a_worker_that_cannot_be_retired_keeps_the_version_from_being_told() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, *apps(4))
        scene.haproxy.master.cannot_retire = True
        scene.ingress.take(table(2, *apps(9)))
        await scene.clock.advance(5)
        assert scene.version == 1
        scene.haproxy.master.cannot_retire = False
        await scene.clock.advance(2)
        assert scene.version == 2


async def test_a_reload_that_fails_leaves_what_fits_served_and_is_tried_again_later() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, *apps(4))
        scene.haproxy.refuses_reload = True
        await scene.serve(2, *apps(5))
        assert len(scene.instances) == 4
        assert scene.haproxy.worker.held.pages == {"app05.localhost": "no-server-ready"}
        tries = scene.haproxy.reloads_tried
        await scene.serve(3, *apps(5))
        assert scene.haproxy.reloads_tried == tries
        scene.haproxy.refuses_reload = False
        await scene.clock.advance(RELOAD_RETRY_S + SETTINGS.observe_s)
        assert len(scene.instances) == 5


async def test_the_pool_never_grows_beyond_its_limit() -> None:
    scene = Scene()
    async with scene.running():
        await scene.serve(1, *apps(20))
        assert scene.haproxy.worker.held.size == 16
        assert len(scene.instances) == 16
        await scene.clock.advance(120)
        assert scene.haproxy.reloads <= 1


async def test_a_fresh_haproxy_starts_with_a_pool_large_enough_for_the_record() -> None:
    scene = Scene()
    scene.file.last = LastRoutes(table=table(5, *apps(9)))
    async with scene.running():
        assert scene.haproxy.worker.held.size == 16
        assert len(scene.instances) == 9
        assert (scene.haproxy.starts, scene.haproxy.reloads) == (1, 0)
