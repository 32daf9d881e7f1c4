"""What is asked for while something else is under way: the last wish wins, and nothing is left of the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from shellwego.control.apps import destroy_app, scale_app, start_app, stop_app
from shellwego.control.deployments import restart, rollback
from shellwego.core.deployments import DeploymentState
from shellwego.core.images import ImageState
from shellwego.core.instances import Desired
from shellwego.ports.store import Transaction, eq
from tests.contract.store_databases import Database
from tests.control.rollout_world import FakeEdge, FakeNode, World, living_world

S = DeploymentState


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with living_world(database.open_inline) as world:
        yield world


async def scale(world: World, count: int) -> None:
    await world.ask(lambda unit, app: scale_app(unit, app, {"web": count}))


async def deployed(world: World, count: int = 1) -> tuple[FakeNode, FakeEdge]:
    """The app at v1, served by the edge."""
    node, edge = await world.node(), await world.edge()
    await world.finished(await world.deploy("hello:v1"))
    await scale(world, count)
    await world.clock.until(lambda: len(edge.endpoints()) == count, 10)
    return node, edge


async def at_rest(world: World, node: FakeNode, edge: FakeEdge, image: str, count: int) -> None:
    """The app serves so many instances of an image, all routed, and nothing else runs or is meant to."""
    await world.clock.until(lambda: node.running() == count == len(edge.endpoints()), 60)
    await world.clock.advance(60)
    assert node.running() == count
    assert {i.id for i in world.live()} == edge.endpoints() == {i.id for i in world.serving()}
    assert {node.images[vm_id] for vm_id in node.vms} == ({f"sha256:{image}"} if count else set())


async def never_without_an_endpoint(world: World, edge: FakeEdge, until: Callable[[], bool]) -> None:
    for _ in range(10_000):
        assert edge.endpoints()
        if until():
            return
        await world.clock.advance(0.05)
    pytest.fail("it did not come to an end")


async def test_scaled_to_nothing_and_back_while_it_drains_a_new_instance_serves(world: World) -> None:
    node, edge = await deployed(world)
    (old,) = world.serving()
    edge.open_sessions = {old.id: 1}
    await scale(world, 0)
    await world.clock.until(lambda: not edge.endpoints(), 5)
    await scale(world, 1)
    await world.clock.until(lambda: bool(edge.endpoints() - {old.id}), 10)
    assert next(i for i in world.live() if i.id == old.id).desired is Desired.DRAIN
    edge.open_sessions = {}
    await at_rest(world, node, edge, "hello:v1", 1)


async def test_stopped_during_a_deploy_it_stops_and_when_started_runs_what_was_asked_last(world: World) -> None:
    node, edge = await deployed(world, 2)
    newer = await world.deploy("hello:v2")
    await world.clock.advance(0.15)
    await world.ask(stop_app)
    await at_rest(world, node, edge, "hello:v2", 0)
    await world.ask(start_app)
    await at_rest(world, node, edge, "hello:v2", 2)
    assert world.deployment(newer).state is S.SUCCEEDED


@pytest.mark.parametrize("image", [ImageState.READY, ImageState.FETCHING])
@pytest.mark.parametrize("moment", [0.0, 0.05, 0.15, 0.3, 0.6])
async def test_destroyed_while_a_deploy_runs_nothing_is_left(world: World, moment: float, image: ImageState) -> None:
    node, _ = await deployed(world, 2)
    await world.deploy("hello:v2", state=image)
    await world.clock.advance(moment)
    await world.ask(destroy_app)
    await world.clock.until(lambda: world.peek(lambda tx: tx.apps.get(world.app_id)) is None, 60)
    await world.clock.until(lambda: node.vms == {}, 10)

    def left(tx: Transaction) -> int:
        where = eq("app_id", world.app_id)
        return tx.instances.count(where) + tx.releases.count(where) + tx.deployments.count(where)

    assert world.peek(left) == 0


async def test_of_ten_deploys_within_a_second_the_last_is_served_and_no_request_lacks_an_endpoint(world: World) -> None:
    node, edge = await deployed(world, 2)
    asked = []
    for number in range(2, 12):
        asked.append(await world.deploy(f"hello:v{number}"))
        await world.clock.advance(0.1)
        assert edge.endpoints()
        assert node.running() <= 4
    await never_without_an_endpoint(world, edge, lambda: world.deployment(asked[-1]).finished_at is not None)
    states = [world.deployment(id_).state for id_ in asked]
    assert states[-1] is S.SUCCEEDED
    assert set(states[:-1]) <= {S.SUPERSEDED, S.SUCCEEDED}
    await at_rest(world, node, edge, "hello:v11", 2)


async def test_what_was_asked_for_last_wins_also_where_the_clock_of_the_store_was_set_back_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, edge = await deployed(world)
    older = await world.deploy("hello:v2")
    monkeypatch.setattr(world.clock, "_start", world.clock._start - 5)
    newer = await world.ask(restart)
    await world.finished(newer.id)
    assert (world.deployment(older).state, world.deployment(newer.id).state) == (S.SUPERSEDED, S.SUCCEEDED)
    await at_rest(world, node, edge, "hello:v2", 1)


@pytest.mark.parametrize("moment", [0.0, 0.15, 0.3, 0.6])
async def test_restarted_during_a_rollout_the_new_release_is_served_by_instances_of_after_it(
    world: World, moment: float
) -> None:
    node, edge = await deployed(world, 2)
    newer = await world.deploy("hello:v2")
    await world.clock.advance(moment)
    again = await world.ask(restart)
    asked_at = world.clock.now()
    await never_without_an_endpoint(world, edge, lambda: world.deployment(again.id).finished_at is not None)
    assert world.deployment(again.id).state is S.SUCCEEDED
    assert world.deployment(newer).state in (S.SUPERSEDED, S.SUCCEEDED)
    await at_rest(world, node, edge, "hello:v2", 2)
    assert all(instance.created_at >= asked_at for instance in world.live())


async def test_restarted_while_a_deploy_waits_for_its_image_that_deploy_is_not_lost(world: World) -> None:
    node, edge = await deployed(world)
    await world.deploy("hello:v2", state=ImageState.FETCHING)
    await world.clock.advance(1)
    await world.ask(restart)
    await world.clock.advance(1)
    await world.image("hello:v2", ImageState.READY)
    await at_rest(world, node, edge, "hello:v2", 1)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("moment", [0.0, 0.15, 0.3, 0.6])
async def test_scaled_during_a_rollback_it_ends_with_the_new_count_of_the_old_content(
    world: World, moment: float, count: int
) -> None:
    node, edge = await deployed(world, 2)
    await world.finished(await world.deploy("hello:v2"))
    back = await world.ask(lambda unit, app: rollback(unit, app, None))
    await world.clock.advance(moment)
    await scale(world, count)
    await never_without_an_endpoint(world, edge, lambda: world.deployment(back.id).finished_at is not None)
    assert world.deployment(back.id).state is S.SUCCEEDED
    await at_rest(world, node, edge, "hello:v1", count)


async def test_scaled_during_an_automatic_rollback_it_ends_with_the_new_count_of_what_served_before(
    world: World,
) -> None:
    node, edge = await deployed(world, 2)
    node.exits.add("sha256:bad:v2")
    bad = await world.deploy("bad:v2")
    await world.clock.until(lambda: world.deployment(bad).finished_at is not None, 60)
    await scale(world, 3)
    await at_rest(world, node, edge, "hello:v1", 3)
    assert world.deployment(bad).state is S.ROLLED_BACK


async def test_an_upload_outlives_the_deploy_that_replaces_its_instance(world: World) -> None:
    """Its session is told until it ends, however many deploys follow, as long as the drain time-out bears."""
    node, edge = await deployed(world)
    (old,) = world.serving()
    edge.open_sessions = {old.id: 1}
    newer = await world.deploy("hello:v2")
    await world.clock.until(lambda: bool(edge.endpoints() - {old.id}), 10)
    newest = await world.deploy("hello:v3")
    await world.clock.advance(20)
    assert old.id in {instance.id for instance in world.live()}
    edge.open_sessions = {}
    done = await world.finished(newest)
    assert (done.state, done.cut_connections) == (S.SUCCEEDED, 0)
    assert world.deployment(newer).cut_connections == 0
    await at_rest(world, node, edge, "hello:v3", 1)
