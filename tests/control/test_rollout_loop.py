"""The road of a deploy through the real loops, on memory drivers and virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shellwego.control.changes import KEPT_ENDED, prune
from shellwego.control.loops import rollout as rollout_loop
from shellwego.control.loops.hints import CHANGED_EVERY_S, versions
from shellwego.control.loops.rollout import BUSY_EVERY_S, rollout_step
from shellwego.control.runs import RunWish, create_run
from shellwego.control.unit import Unit
from shellwego.core.apps import Process, RestartMode, RestartPolicy
from shellwego.core.deployments import DeploymentState, Stage
from shellwego.core.images import ImageState
from shellwego.core.instances import Desired, Instance, OwnerKind, Phase, Sleep
from shellwego.core.nodes import Backend
from shellwego.core.vms import VmPhase
from shellwego.ports.store import Transaction, eq
from tests.contract.store_databases import Database
from tests.control.rollout_world import GIB, World, drains, living_world


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with living_world(database.open_inline) as world:
        yield world


async def deployed(world: World, image: str = "hello:v1") -> Instance:
    """Deploy, and return the instance that serves."""
    done = await world.finished(await world.deploy(image))
    assert done.state is DeploymentState.SUCCEEDED
    (instance,) = world.serving()
    return instance


async def test_a_first_deploy_ends_in_a_routed_instance(world: World) -> None:
    node, edge = await world.node(), await world.edge()
    instance = await deployed(world)
    await world.clock.until(lambda: edge.endpoints() == {instance.id}, 5)
    assert node.running() == 1


async def test_what_the_end_of_an_app_calls_off_is_given_no_place(database: Database) -> None:
    world = World(database.open_inline)
    await world.begin(loops=False)
    await world.node()
    await world.deploy("hello:v1")
    await rollout_step(world.control, world.app_id)
    run = await world.ask(lambda unit, app: create_run(unit, app, RunWish(command=("migrate",))))
    await world.change_app(deleting=True)
    await rollout_step(world.control, world.app_id)
    told = world.peek(lambda tx: tx.events.select(eq("resource", run.id)))
    assert [event.data["node"] for event in told if event.type == "instance.stopping"] == [""]
    await world.end()


@pytest.mark.databases
async def test_a_second_deploy_replaces_it_and_the_edge_is_never_without_an_endpoint(world: World) -> None:
    node, edge = await world.node(), await world.edge()
    old = await deployed(world)
    await world.clock.until(lambda: edge.endpoints() == {old.id}, 5)
    seen = len(edge.tables)
    new = await deployed(world, "hello:v2")
    assert new.id != old.id
    await world.clock.until(lambda: node.running() == 1, 20)
    served = [{e.instance_id for route in table.routes for e in route.endpoints} for table in edge.tables[seen - 1 :]]
    assert all(served)
    assert served[-1] == {new.id}


async def test_the_old_one_is_stopped_only_when_its_sessions_are_over(world: World) -> None:
    node, edge = await world.node(), await world.edge()
    old = await deployed(world)
    edge.open_sessions = {old.id: 1}
    deployment = await world.deploy("hello:v2")
    await world.clock.until(lambda: world.deployment(deployment).stage is Stage.DRAINING, 20)
    await world.clock.advance(10)
    assert world.deployment(deployment).reason == "web.0 drains: waits for open sessions, at most 30 s"
    assert node.running() == 2
    edge.open_sessions = {}
    assert (await world.finished(deployment)).cut_connections == 0
    await world.clock.until(lambda: node.running() == 1, 20)


async def test_after_the_drain_time_out_sessions_are_cut_and_counted(world: World) -> None:
    await world.node()
    edge = await world.edge()
    old = await deployed(world)
    edge.open_sessions = {old.id: 2}
    began = world.clock.monotonic()
    done = await world.finished(await world.deploy("hello:v2"))
    assert (done.state, done.cut_connections) == (DeploymentState.SUCCEEDED, 2)
    assert 30 <= world.clock.monotonic() - began < 35


async def test_a_silent_edge_holds_the_stop_for_its_time_and_is_named(world: World) -> None:
    node, _ = await world.node(), await world.edge("edge-1")
    silent = await world.edge("edge-2")
    await deployed(world)
    silent.silent = True
    await world.clock.advance(15)
    began = world.clock.monotonic()
    deployment = await world.deploy("hello:v2")
    await world.clock.advance(40)
    assert "edge-2" in world.deployment(deployment).reason
    assert node.running() == 2
    done = await world.finished(deployment)
    assert done.state is DeploymentState.SUCCEEDED
    assert done.reason == "without the edge edge-2, which is silent"
    assert 60 <= world.clock.monotonic() - began < 65


async def test_an_image_that_exits_fails_soon_after_its_third_end_and_the_old_one_serves_on(world: World) -> None:
    node, edge = await world.node(), await world.edge()
    node.exits.add("sha256:bad:v2")
    old = await deployed(world)
    began = world.clock.monotonic()
    done = await world.finished(await world.deploy("bad:v2"))
    assert world.clock.monotonic() - began < 5
    assert (done.state, done.stage, done.reason_code) == (DeploymentState.ROLLED_BACK, Stage.STARTING, "exited")
    assert done.reason == "web.0 failed: the workload ended with exit code 1 (3 times)"
    assert done.log_tail == ("boom",)
    await world.clock.advance(60)
    assert node.boots == 4, "no further one was tried"
    assert [i.id for i in world.serving()] == [old.id]
    assert all(old.id in {e.instance_id for r in table.routes for e in r.endpoints} for table in edge.tables[-1:])
    assert world.app().release_id == world.app().stable_release_id


@pytest.mark.databases
async def test_a_first_deploy_that_fails_leaves_nothing_running(world: World) -> None:
    node = await world.node()
    node.exits.add("sha256:bad:v1")
    done = await world.finished(await world.deploy("bad:v1"))
    assert done.state is DeploymentState.FAILED
    await world.clock.advance(30)
    assert (world.app().release_id, world.live(), node.vms) == ("", [], {})


async def test_one_that_is_never_healthy_fails_at_its_deadline_with_the_check_s_words(world: World) -> None:
    node = await world.node()
    old = await deployed(world)
    node.sick.add("sha256:deaf:v2")
    began = world.clock.monotonic()
    done = await world.finished(await world.deploy("deaf:v2", wait_timeout_s=20))
    assert 20 <= world.clock.monotonic() - began < 21
    assert (done.state, done.stage) == (DeploymentState.ROLLED_BACK, Stage.CHECKING)
    assert "connection refused" in done.reason
    assert [i.id for i in world.serving()] == [old.id]


async def test_it_waits_for_its_image_then_goes_on(world: World) -> None:
    await world.node()
    deployment = await world.deploy("hello:v1", state=ImageState.FETCHING)
    await world.clock.advance(5)
    waiting = world.deployment(deployment)
    assert (waiting.state, waiting.stage) == (DeploymentState.PENDING, Stage.IMAGE)
    assert waiting.reason == "fetches the image hello:v1"
    await world.image("hello:v1", ImageState.READY)
    assert (await world.finished(deployment)).state is DeploymentState.SUCCEEDED


async def test_an_image_that_cannot_be_fetched_fails_it(world: World) -> None:
    await world.node()
    deployment = await world.deploy("hello:v1", state=ImageState.FETCHING)
    await world.image("hello:v1", ImageState.FAILED, "layer 1 is corrupt")
    done = await world.finished(deployment, 5)
    assert (done.state, done.stage) == (DeploymentState.FAILED, Stage.IMAGE)
    assert "layer 1 is corrupt" in done.reason


async def test_while_a_backend_probes_it_waits_in_placing_and_says_so(world: World) -> None:
    node = await world.node(backends=(Backend(name="kvm", status="probing"),))
    deployment = await world.deploy("hello:v1")
    await world.clock.advance(5)
    waiting = world.deployment(deployment)
    assert waiting.stage is Stage.PLACING
    assert waiting.reason == "web.0: no node fits: 1 is still probing (backend kvm)"
    node.facts = replace(node.facts, backends=(Backend(name="kvm", status="ready"),))
    assert (await world.finished(deployment, 5)).state is DeploymentState.SUCCEEDED


async def test_while_the_disk_is_full_it_waits_in_placing_and_goes_on_when_there_is_room(world: World) -> None:
    node = await world.node(disk_free_bytes=GIB)
    deployment = await world.deploy("hello:v1", process=Process(disk_bytes=2 * GIB))
    await world.clock.advance(5)
    waiting = world.deployment(deployment)
    assert waiting.stage is Stage.PLACING
    assert waiting.reason == "web.0: no node fits: 1 lacks disk (need 2 GiB, best has 1 GiB)"
    node.facts = replace(node.facts, disk_free_bytes=3 * GIB)
    assert (await world.finished(deployment, 5)).state is DeploymentState.SUCCEEDED


async def test_what_does_not_fit_is_refused_with_the_filters_words(world: World) -> None:
    await world.node(memory_bytes=GIB)
    done = await world.finished(await world.deploy("big:v1", process=Process(memory_bytes=2 * GIB), wait_timeout_s=10))
    assert (done.state, done.stage, done.reason_code) == (DeploymentState.FAILED, Stage.PLACING, "no-capacity")
    assert "1 lacks memory (need 2 GiB, best has 1 GiB)" in done.reason


async def test_a_killed_vm_is_replaced_by_its_node_within_seconds(world: World) -> None:
    node = await world.node()
    instance = await deployed(world)
    node.kill_all()
    await world.clock.until(lambda: not world.serving(), 3)
    await world.clock.until(lambda: [i.id for i in world.serving()] == [instance.id], 3)
    assert world.serving()[0].observed.attempt == 2


async def test_an_instance_that_fails_for_good_is_replaced_but_never_in_a_hot_loop(world: World) -> None:
    node = await world.node()
    await deployed(world)
    node.exits.add("sha256:hello:v1")
    node.kill_all()
    await world.clock.advance(600)
    ended = [i for i in world.instances() if i.phase is Phase.FAILED]
    assert 5 <= len(ended) <= 8
    node.exits.clear()
    await world.clock.until(lambda: len(world.serving()) == 1, 301)


async def test_scaling_up_and_down_needs_no_deployment(world: World) -> None:
    node = await world.node()
    first = await deployed(world)
    await world.change_app(counts={"web": 3})
    await world.clock.until(lambda: len(world.serving()) == 3, 10)
    await world.change_app(counts={"web": 1})
    await world.clock.until(lambda: node.running() == 1, 60)
    assert [i.id for i in world.serving()] == [first.id]


async def test_stop_and_start(world: World) -> None:
    node, edge = await world.node(), await world.edge()
    await deployed(world)
    await world.change_app(stopped=True)
    await world.clock.until(lambda: node.running() == 0, 60)
    await world.clock.until(lambda: [r.state.value for r in edge.table.routes] == ["stopped"], 5)
    await world.change_app(stopped=False)
    await world.clock.until(lambda: len(world.serving()) == 1, 10)


@pytest.mark.databases
async def test_a_newer_deployment_takes_the_place_of_the_older(world: World) -> None:
    node = await world.node()
    node.sick.add("sha256:deaf:v1")
    older = await world.deploy("deaf:v1")
    await world.clock.advance(2)
    newer = await world.deploy("hello:v2")
    assert (await world.finished(newer)).state is DeploymentState.SUCCEEDED
    assert world.deployment(older).state is DeploymentState.SUPERSEDED
    assert len(world.live()) == 1


async def test_a_rollback_to_what_still_runs_keeps_it(world: World) -> None:
    """Equal content is equal, under whatever number it was released."""
    node = await world.node()
    old = await deployed(world)
    node.sick.add("sha256:deaf:v2")
    await world.deploy("deaf:v2")
    await world.clock.advance(2)
    back = await world.finished(await world.deploy("hello:v1"))
    assert back.state is DeploymentState.SUCCEEDED
    assert [i.id for i in world.serving()] == [old.id]
    assert world.app().stable_release_id == back.release_id


async def test_a_one_off_run_is_placed_and_pruned_but_never_restarted(world: World) -> None:
    node = await world.node()
    node.commands_end = None
    served = await deployed(world)

    def ask(unit: Unit) -> str:
        run = replace(
            served,
            id=unit.new_id("ins"),
            owner=OwnerKind.RUN,
            command=("true",),
            node_id="",
            phase=Phase.PENDING,
            version=1,
        )
        unit.hint(f"app.{world.app_id}")
        return unit.tx.instances.insert(run).id

    run_id = await world.control.commit(ask)
    await world.clock.until(lambda: node.running() == 2, 5)
    run_vm = next(vm for vm in node.vms.values() if vm.instance_id == run_id)
    node.vms[run_vm.vm_id] = replace(run_vm, phase=VmPhase.ENDED, exit_code=0)
    await world.clock.until(lambda: any(i.id == run_id and not i.live for i in world.instances()), 5)
    await world.clock.advance(30)
    assert node.boots == 2
    assert [i.id for i in world.serving()] == [served.id]


async def test_a_destroyed_app_is_drained_stopped_and_forgotten(world: World) -> None:
    node = await world.node()
    await world.edge()
    await deployed(world)
    await world.change_app(deleting=True)
    await world.clock.until(lambda: world.peek(lambda tx: tx.apps.get(world.app_id)) is None, 60)

    def left(tx: Transaction) -> int:
        where = eq("app_id", world.app_id)
        return tx.instances.count(where) + tx.releases.count(where) + tx.deployments.count(where)

    assert world.peek(left) == 0
    await world.clock.until(lambda: node.vms == {}, 10)


async def test_a_job_that_ends_well_is_not_started_again(world: World) -> None:
    node = await world.node()
    job = Process(restart=RestartPolicy(mode=RestartMode.ON_FAILURE))
    await world.finished(await world.deploy("job:v1", port=0, process=job))
    for vm_id, vm in node.vms.items():
        node.vms[vm_id] = replace(vm, phase=VmPhase.ENDED, exit_code=0)
    await world.clock.advance(120)
    assert node.boots == 1
    assert [i.phase for i in world.instances()] == [Phase.STOPPED]


async def test_an_app_at_rest_costs_no_write(world: World) -> None:
    await world.node()
    await deployed(world)
    await world.clock.advance(60)
    before = world.app(), world.instances()
    result = await rollout_step(world.control, world.app_id)
    assert (result.changed, result.wait_s) == (False, None)
    await world.clock.advance(120)
    assert (world.app(), world.instances()) == before


async def test_hints_may_be_lost() -> None:
    """Without any hint every step still comes, by the timers alone."""
    world = World()
    await world.begin()
    try:
        node, _ = await world.node(), await world.edge()
        await world.control.bus.close()
        done = await world.finished(await world.deploy("hello:v1"))
        assert done.state is DeploymentState.SUCCEEDED
        done = await world.finished(await world.deploy("hello:v2"))
        assert done.state is DeploymentState.SUCCEEDED
        await world.clock.until(lambda: node.running() == 1, 60)
    finally:
        await world.end()


async def test_an_instance_that_came_and_went_between_two_looks_is_seen_though_no_hint_came() -> None:
    world = World()
    await world.begin()
    try:
        await world.node()
        served = await deployed(world)
        await world.control.bus.close()
        lost = replace(served, phase=Phase.LOST)
        await world.control.commit(lambda unit: unit.tx.instances.update(lost))
        before = world.peek(versions)
        came_and_went = replace(lost, id="ins_brief", version=1)
        await world.control.commit(lambda unit: unit.tx.instances.insert(came_and_went))
        assert world.peek(versions) != before
        await world.clock.until(lambda: bool(world.serving()), CHANGED_EVERY_S + 5)
    finally:
        await world.end()


async def test_what_is_to_sleep_sleeps_soon_after_the_edges_lead_nobody_to_it_though_no_hint_came() -> None:
    world = World()
    await world.begin()
    try:
        await world.node()
        edge = await world.edge()
        served = await deployed(world)
        await world.control.bus.close()
        edge.silent = True
        dozing = replace(served, sleep=Sleep.DOZING, drain_since=world.clock.now())
        await world.control.commit(lambda unit: unit.tx.instances.update(dozing))
        await world.clock.advance(3 * CHANGED_EVERY_S)
        assert world.live()[0].sleep is Sleep.DOZING
        edge.silent = False
        await world.clock.until(lambda: world.live()[0].sleep is Sleep.ASLEEP, 2 * BUSY_EVERY_S)
    finally:
        await world.end()


async def test_a_step_that_fails_is_tried_again_and_holds_up_no_other_app(world: World) -> None:
    await world.node()

    def break_app(unit: Unit) -> str:
        """A deployment of a release that is not there: a defect that no plan can deal with."""
        whole = unit.tx.apps.get(world.app_id)
        assert whole is not None
        broken = replace(whole, id=unit.new_id("app"), name="broken", hostname="broken.localhost", version=1)
        unit.tx.apps.insert(broken)
        (some,) = unit.tx.deployments.select(eq("app_id", world.app_id))
        unit.tx.deployments.insert(replace(some, id=unit.new_id("dep"), app_id=broken.id, release_id="rel_none"))
        return broken.id

    deployment = await world.deploy("hello:v1", state=ImageState.FETCHING)
    await world.control.commit(break_app)
    await world.clock.advance(5)
    await world.image("hello:v1", ImageState.READY)
    assert (await world.finished(deployment, 10)).state is DeploymentState.SUCCEEDED


@pytest.mark.databases
async def test_two_control_planes_do_not_start_twice(world: World) -> None:
    node = await world.node()
    world.spawn(rollout_loop.run(world.control, holder="second"))
    await deployed(world)
    await world.clock.advance(60)
    assert node.boots == 1


async def test_the_second_control_plane_takes_over_when_the_first_is_gone() -> None:
    world = World()
    await world.begin(loops=False)
    try:
        await world.node()
        first = world.spawn(rollout_loop.run(world.control, holder="first"))
        world.spawn(rollout_loop.run(world.control, holder="second"))
        await world.clock.advance(5)
        first.cancel()
        deployment = await world.deploy("hello:v1")
        assert (await world.finished(deployment, 20)).state is DeploymentState.SUCCEEDED
    finally:
        await world.end()


async def test_a_failure_of_a_clock_that_was_set_back_since_delays_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await world.node()
    await deployed(world)
    node.boots_fail = True
    await world.change_app(counts={"web": 2})
    await world.clock.until(lambda: any(i.phase is Phase.FAILED for i in world.instances()), 60)
    node.boots_fail = False
    monkeypatch.setattr(world.clock, "_start", world.clock._start - 3600)
    await world.clock.until(lambda: len(world.serving()) == 2, 60)


async def test_draining_instances_are_never_in_the_routes_again(world: World) -> None:
    await world.node()
    edge = await world.edge()
    old = await deployed(world)
    edge.open_sessions = {old.id: 1}
    await world.deploy("hello:v2")
    await world.clock.until(lambda: bool(drains(world.instances())), 20)
    await world.change_app(counts={"web": 2})
    await world.clock.advance(20)
    (gone,) = [i for i in world.instances() if i.id == old.id]
    assert gone.desired is Desired.DRAIN
    assert old.id not in edge.endpoints()


async def test_ended_instances_are_forgotten_but_for_the_newest_and_for_jobs_that_fill_a_slot(world: World) -> None:
    await world.node()
    served = await deployed(world)

    def age(unit: Unit) -> None:
        ended = replace(served, version=1, phase=Phase.STOPPED, phase_since=unit.now() - 3601)
        for _ in range(30):
            unit.tx.instances.insert(replace(ended, id=unit.new_id("ins"), desired=Desired.STOP, created_at=2.0))
            run = replace(ended, id=unit.new_id("ins"), owner=OwnerKind.RUN, created_at=2.0)
            unit.tx.instances.insert(run)
        unit.tx.instances.insert(replace(ended, id="ins_job", created_at=1.0))
        unit.tx.instances.insert(replace(ended, id="ins_old_job", content_hash="other", created_at=1.0))
        unit.tx.instances.insert(replace(ended, id="ins_job_before_a_restart", generation=-1, created_at=1.0))

    await world.control.commit(age)
    await world.control.commit(lambda unit: prune(unit, world.app_id))
    left = [i.id for i in world.instances() if not i.live]
    assert len(left) == KEPT_ENDED + 1
    assert "ins_job" in left
