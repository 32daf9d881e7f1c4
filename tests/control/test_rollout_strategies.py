"""Strategies and release commands through the real loops: what ends well, what does not, and what comes in between.

What must hold whatever the database is played on every store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shellwego.control.apps import scale_app
from shellwego.control.deployments import cancel, find_deployment
from shellwego.core.deployments import CanaryPlan, DeploymentState, Share, Stage
from shellwego.core.instances import OwnerKind
from shellwego.core.routing import EVEN_WEIGHT
from shellwego.core.vms import VmPhase
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.store.postgres import open_postgres
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import Store, eq
from tests.contract.postgres_server import PostgresServer
from tests.control.blocking_store import BlockingStore
from tests.control.rollout_world import FakeEdge, FakeNode, World

S = DeploymentState
MIGRATE = ("migrate",)
TENTH = CanaryPlan(weights=(10, 50), pause_s=5.0)


def memory(_: pytest.FixtureRequest) -> Callable[[VirtualClock], Store]:
    return MemoryStore


def sqlite(request: pytest.FixtureRequest) -> Callable[[VirtualClock], Store]:
    directory: Path = request.getfixturevalue("tmp_path")
    return lambda clock: BlockingStore(lambda: open_sqlite(directory / "state.db", clock))


def postgresql(request: pytest.FixtureRequest) -> Callable[[VirtualClock], Store]:
    server: PostgresServer = request.getfixturevalue("postgres")
    return lambda clock: BlockingStore(lambda: open_postgres(server.emptied_database(), clock=clock))


on_every_store = pytest.mark.parametrize(
    "world", [memory, sqlite, postgresql], indirect=True, ids=lambda make: make.__name__
)


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    make = getattr(request, "param", memory)
    world = World(make(request))
    await world.begin()
    yield world
    await world.end()
    await world.store.close()


async def deployed(world: World, count: int = 1) -> tuple[FakeNode, FakeEdge]:
    """The app at v1, served by the edge."""
    node, edge = await world.node(), await world.edge()
    await world.finished(await world.deploy("hello:v1"))
    await world.ask(lambda unit, app: scale_app(unit, app, {"web": count}))
    await world.clock.until(lambda: len(edge.endpoints()) == count, 10)
    return node, edge


async def served_until_finished(
    world: World, edge: FakeEdge, deployment: str, least: int = 1, look: Callable[[], None] = lambda: None
) -> None:
    """At every moment until it is over the edge has so many endpoints, and each has a VM that runs."""
    for _ in range(4000):
        endpoints = edge.endpoints()
        assert len(endpoints) >= least
        look()
        if world.deployment(deployment).finished_at is not None:
            return
        await world.clock.advance(0.05)
    pytest.fail("it did not come to an end")


async def at_rest(world: World, node: FakeNode, edge: FakeEdge, image: str, count: int) -> None:
    """The app serves so many instances of an image, all routed alike, and nothing else runs or is meant to."""
    await world.clock.until(lambda: node.images_running() == [f"sha256:{image}"] * count and not others(node), 60)
    await world.clock.advance(5)
    assert node.images_running() == [f"sha256:{image}"] * count
    assert {i.id for i in world.live()} == edge.endpoints() == {i.id for i in world.serving()}
    assert {e.weight for route in edge.table.routes for e in route.endpoints} == {EVEN_WEIGHT}


def others(node: FakeNode) -> list[str]:
    """VMs that stop, or wait to be removed."""
    return [vm.vm_id for vm in node.vms.values() if vm.phase is not VmPhase.RUNNING]


def share_of(edge: FakeEdge, ids: set[str]) -> float:
    """Percent of the requests that these get, as the newest table says."""
    weights = {e.instance_id: e.weight for route in edge.table.routes for e in route.endpoints}
    return 100 * sum(weights.get(id_, 0) for id_ in ids) / sum(weights.values())


def command_runs(world: World) -> list[str]:
    return [i.deployment_id for i in world.instances() if i.owner is OwnerKind.RUN]


# --- release commands ---


async def test_a_release_command_ends_well_before_anything_of_the_new_release_is_started(world: World) -> None:
    node, edge = await deployed(world)
    node.commands_end = None
    newer = await world.deploy("hello:v2", release_command=MIGRATE)
    await world.clock.until(lambda: node.commands == ["sha256:hello:v2"], 10)
    await world.clock.advance(10)
    waiting = world.deployment(newer)
    assert (waiting.state, waiting.stage, waiting.reason) == (
        S.PENDING,
        Stage.RELEASE_COMMAND,
        "runs the release command",
    )
    assert node.boots == 2, "the old instance and the command"
    (run,) = [vm for vm in node.vms.values() if node.images[vm.vm_id] == "sha256:hello:v2"]
    node.end(run.vm_id, 0)
    await served_until_finished(world, edge, newer)
    assert world.deployment(newer).state is S.SUCCEEDED
    assert command_runs(world) == [newer]
    passed = [record.stage for record in world.deployment(newer).stages]
    assert passed.index(Stage.RELEASE_COMMAND) < passed.index(Stage.STARTING)
    await at_rest(world, node, edge, "hello:v2", 1)


@on_every_store
async def test_a_release_command_that_fails_ends_the_deployment_and_nothing_of_the_old_is_touched(world: World) -> None:
    node, edge = await deployed(world, 2)
    old, tables = edge.endpoints(), len(edge.tables)
    node.commands_end = 3
    done = await world.finished(await world.deploy("hello:v2", release_command=MIGRATE))
    assert (done.state, done.stage, done.reason_code) == (S.FAILED, Stage.RELEASE_COMMAND, "release-command-failed")
    assert done.reason == "the release command failed: the workload ended with exit code 3"
    assert done.log_tail == ("migrating", "done")
    await at_rest(world, node, edge, "hello:v1", 2)
    assert (edge.endpoints(), len(edge.tables)) == (old, tables), "no route was touched"
    assert node.commands == ["sha256:hello:v2"], "it is tried once"


async def test_a_release_command_that_does_not_end_is_stopped_at_the_deadline(world: World) -> None:
    node, edge = await deployed(world)
    node.commands_end = None
    done = await world.finished(await world.deploy("hello:v2", release_command=MIGRATE, wait_timeout_s=20))
    assert (done.state, done.reason_code) == (S.FAILED, "timed-out")
    await at_rest(world, node, edge, "hello:v1", 1)


@on_every_store
async def test_a_cancelled_deployment_stops_its_release_command(world: World) -> None:
    node, edge = await deployed(world)
    node.commands_end = None
    newer = await world.deploy("hello:v2", release_command=MIGRATE)
    await world.clock.until(lambda: bool(node.commands), 10)
    await world.ask(lambda unit, app: cancel(unit, app, find_deployment(unit.tx, app, newer)))
    await at_rest(world, node, edge, "hello:v1", 1)
    assert world.deployment(newer).state is S.CANCELLED


async def test_two_release_commands_never_run_at_a_time(world: World) -> None:
    node, edge = await deployed(world)
    node.commands_end, node.slow_to_stop = None, True
    second = await world.deploy("hello:v2", release_command=MIGRATE)
    await world.clock.until(lambda: bool(node.commands), 10)
    third = await world.deploy("hello:v3", release_command=MIGRATE)

    def one_at_a_time() -> None:
        assert len(set(node.images_running()) - {"sha256:hello:v1"}) <= 1

    for _ in range(40):
        await world.clock.advance(0.05)
        one_at_a_time()
    assert node.commands == ["sha256:hello:v2", "sha256:hello:v3"]
    assert world.deployment(second).state is S.SUPERSEDED
    node.end(next(vm.vm_id for vm in node.vms.values() if node.images[vm.vm_id] == "sha256:hello:v3"), 0)
    await served_until_finished(world, edge, third)
    await at_rest(world, node, edge, "hello:v3", 1)


async def test_a_release_command_runs_once_though_server_and_agent_start_anew_meanwhile(world: World) -> None:
    node, edge = await deployed(world)
    node.commands_end = None
    newer = await world.deploy("hello:v2", release_command=MIGRATE)
    await world.clock.until(lambda: bool(node.commands), 10)
    await world.restart_loops()
    node.memories = {}
    await world.clock.advance(15)
    node.end(next(vm.vm_id for vm in node.vms.values() if node.images[vm.vm_id] == "sha256:hello:v2"), 0)
    node.memories = {}
    await served_until_finished(world, edge, newer)
    assert (world.deployment(newer).state, node.commands) == (S.SUCCEEDED, ["sha256:hello:v2"])
    await at_rest(world, node, edge, "hello:v2", 1)


async def test_a_release_command_whose_node_is_lost_is_not_run_again(world: World) -> None:
    node, edge = await deployed(world)
    spare = await world.node("spare", memory_bytes=16 << 30)
    spare.commands_end = None
    newer = await world.deploy("hello:v2", release_command=MIGRATE)
    await world.clock.until(lambda: bool(spare.commands), 10)
    spare.silent = True
    done = await world.finished(newer)
    assert (done.state, done.reason_code) == (S.FAILED, "release-command-failed")
    assert "its node was lost" in done.reason
    await at_rest(world, node, edge, "hello:v1", 1)
    assert (node.commands, spare.commands) == ([], ["sha256:hello:v2"])


# --- canaries ---


async def test_a_canary_gets_a_tenth_then_half_then_all(world: World) -> None:
    node, edge = await deployed(world)
    old = edge.endpoints()
    began = world.clock.monotonic()
    newer = await world.deploy("hello:v2", strategy="canary", canary=TENTH)
    shares: list[float] = []

    def note() -> None:
        share = share_of(edge, edge.endpoints() - old)
        if share not in shares[-1:]:
            shares.append(share)

    await served_until_finished(world, edge, newer, look=note)
    assert shares[:3] == [0, 10, 50]
    assert set(shares[3:]) <= {50, 100}
    assert world.clock.monotonic() - began >= 2 * TENTH.pause_s
    assert world.deployment(newer).state is S.SUCCEEDED
    await at_rest(world, node, edge, "hello:v2", 1)
    told = world.peek(lambda tx: tx.events.select(eq("type", "app.deployment.step")))
    assert [event.data["weight"] for event in told] == ["50", "100"]


async def test_until_it_is_promoted_all_the_old_ones_stay_beside_a_canary(world: World) -> None:
    node, edge = await deployed(world, 4)
    old = edge.endpoints()
    newer = await world.deploy("hello:v2", strategy="canary", canary=TENTH)
    await world.clock.until(lambda: world.deployment(newer).step.since is not None, 10)
    assert (len(edge.endpoints() - old), old <= edge.endpoints()) == (1, True)
    assert share_of(edge, edge.endpoints() - old) == pytest.approx(10, abs=1)
    assert world.deployment(newer).reason == "canary step 1 of 2, 10 % of the requests: held for 5 s"
    await world.clock.until(lambda: world.deployment(newer).step.number == 1, 10)
    await world.clock.until(lambda: world.deployment(newer).step.since is not None, 10)
    assert (len(edge.endpoints() - old), old <= edge.endpoints()) == (2, True)
    assert share_of(edge, edge.endpoints() - old) == pytest.approx(50, abs=1)
    await served_until_finished(world, edge, newer, least=4)
    await at_rest(world, node, edge, "hello:v2", 4)


@on_every_store
@pytest.mark.parametrize("fault", ["fails its checks", "ends"])
async def test_a_canary_that_errors_is_given_up_at_once_and_the_old_ones_serve_on(world: World, fault: str) -> None:
    node, edge = await deployed(world, 2)
    old = edge.endpoints()
    newer = await world.deploy("hello:v2", strategy="canary", canary=TENTH)
    await world.clock.until(lambda: bool(edge.endpoints() - old), 10)
    (canary,) = edge.endpoints() - old
    if fault == "ends":
        node.end(next(vm.vm_id for vm in node.vms.values() if vm.instance_id == canary), 1)
    else:
        node.failing.add(canary)
    began = world.clock.monotonic()
    await served_until_finished(world, edge, newer, least=2)
    done = world.deployment(newer)
    assert world.clock.monotonic() - began < 2
    assert (done.state, done.stage, done.reason_code) == (S.ROLLED_BACK, Stage.SHIFTING, "canary-failed")
    assert done.reason.startswith("the canary web.0")
    await at_rest(world, node, edge, "hello:v1", 2)
    assert edge.endpoints() == old


async def test_a_cancelled_canary_leaves_the_old_ones_alone(world: World) -> None:
    node, edge = await deployed(world, 2)
    old = edge.endpoints()
    newer = await world.deploy("hello:v2", strategy="canary", canary=TENTH)
    await world.clock.until(lambda: world.deployment(newer).step.since is not None, 10)
    await world.ask(lambda unit, app: cancel(unit, app, find_deployment(unit.tx, app, newer)))
    await at_rest(world, node, edge, "hello:v1", 2)
    assert edge.endpoints() == old


async def test_a_first_deployment_has_nothing_to_be_a_canary_beside(world: World) -> None:
    await world.node()
    done = await world.finished(await world.deploy("hello:v1", strategy="canary", canary=TENTH), timeout=4)
    assert done.state is S.SUCCEEDED


# --- deploys during deploys ---


@on_every_store
@pytest.mark.parametrize("moment", [0.15, 0.6])
@pytest.mark.parametrize("first", ["bluegreen", "canary"])
async def test_a_deploy_takes_the_place_of_one_that_is_half_done(world: World, first: str, moment: float) -> None:
    node, edge = await deployed(world, 2)
    canary = TENTH if first == "canary" else None
    older = await world.deploy("hello:v2", strategy=first, canary=canary)
    await world.clock.advance(moment)
    newer = await world.deploy("hello:v3", strategy="bluegreen")
    await served_until_finished(world, edge, newer, least=2)
    assert world.deployment(older).state in (S.SUPERSEDED, S.SUCCEEDED)
    assert world.deployment(newer).state is S.SUCCEEDED
    await at_rest(world, node, edge, "hello:v3", 2)


async def test_blue_green_sends_nothing_to_the_new_set_s_place_before_it_is_whole(world: World) -> None:
    node, edge = await deployed(world, 3)
    old = edge.endpoints()
    newer = await world.deploy("hello:v2", strategy="bluegreen")

    def whole() -> None:
        assert old <= edge.endpoints() or len(edge.endpoints() - old) == 3

    await served_until_finished(world, edge, newer, least=3, look=whole)
    await at_rest(world, node, edge, "hello:v2", 3)


@pytest.mark.parametrize(
    ("surge", "max_unavailable", "most", "least"),
    [(Share(), Share(count=1), 3, 2), (Share(count=2), Share(), 5, 3), (Share(percent=100), Share(percent=34), 6, 2)],
)
async def test_a_deployment_keeps_its_own_numbers(
    world: World, surge: Share, max_unavailable: Share, most: int, least: int
) -> None:
    node, edge = await deployed(world, 3)
    newer = await world.deploy("hello:v2", surge=surge, max_unavailable=max_unavailable)

    def bounded() -> None:
        meant = [i for i in world.live() if i.desired.value == "serve"]
        assert len(meant) <= most

    await served_until_finished(world, edge, newer, least=least, look=bounded)
    assert world.deployment(newer).state is S.SUCCEEDED
    await at_rest(world, node, edge, "hello:v2", 3)
