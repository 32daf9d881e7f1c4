"""An app that matters more gets its place where others fill the nodes; and those are told, and come again elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shellwego.control import quotas, scheduling
from shellwego.control.facts import node_usage
from shellwego.control.priorities import reprioritize
from shellwego.control.runs import RunWish, create_run
from shellwego.control.unit import Unit
from shellwego.core.apps import App, Process
from shellwego.core.deployments import DeploymentState
from shellwego.core.instances import Desired, Eviction, Instance, Phase
from shellwego.core.nodes import Scheduling
from shellwego.core.placement_rules import PlacementRules
from shellwego.core.preemption import MOST_NODES
from shellwego.core.volumes import Volume
from shellwego.ports.store import eq
from tests.control.rollout_world import GIB, ORG, PRJ, World

LARGE = Process(memory_bytes=4 * GIB)
"""Two fill a node."""
HUGE = Process(memory_bytes=8 * GIB)
LOW, HIGH = PlacementRules(priority=20), PlacementRules(priority=50)


async def another_app(world: World, name: str) -> str:
    """A second app; the world deploys it from now on. Returns the first one's id."""
    first = world.app_id

    def make(unit: Unit) -> str:
        app = unit.tx.apps.get(first)
        assert app is not None
        return unit.tx.apps.insert(
            App(
                id=unit.new_id("app"),
                project_id=app.project_id,
                name=name,
                hostname=f"{name}.localhost",
                config=app.config,
                counts={},
                created_at=unit.now(),
                updated_at=unit.now(),
            )
        ).id

    world.app_id = await world.control.commit(make)
    return first


def of(world: World, app_id: str) -> list[Instance]:
    return [i for i in world.peek(lambda tx: tx.instances.select(eq("app_id", app_id))) if i.live]


def event_data(world: World, type_: str) -> list[dict[str, str]]:
    return [dict(event.data) for event in world.peek(lambda tx: tx.events.select(eq("type", type_)))]


async def filled(world: World, *names: str, count: int = 2, process: Process = LARGE) -> str:
    """Nodes that an app of low priority fills; returns its id, and has the world deploy another one."""
    for name in names:
        await world.node(name)
    await world.change_app(counts={"web": count})
    done = await world.finished(await world.deploy("low:v1", process=process, placement=LOW))
    assert done.state is DeploymentState.SUCCEEDED
    return await another_app(world, "urgent")


def fits_everywhere(world: World) -> Callable[[], None]:
    """No node is ever given more than it has, however much is promised for later."""

    def check() -> None:
        nodes = world.peek(lambda tx: tx.nodes.select())
        placed = world.peek(lambda tx: tx.instances.select())
        for node in nodes:
            assert sum(i.memory_bytes for i in placed if i.live and i.node_id == node.id) <= node.facts.memory_bytes

    return check


async def test_one_of_higher_priority_gets_its_place_and_the_other_one_says_why_it_waits(world: World) -> None:
    low = await filled(world, "one")
    check = fits_everywhere(world)
    deployment = await world.deploy("urgent:v1", process=LARGE, placement=HIGH)

    def served() -> bool:
        check()
        return len(world.serving()) == 1

    await world.clock.until(served, 60)
    assert (await world.finished(deployment)).state is DeploymentState.SUCCEEDED
    stays, waits = sorted(of(world, low), key=lambda i: i.phase is Phase.PENDING)
    assert stays.phase is Phase.HEALTHY
    assert waits.placement_reason == "no node fits: 1 lacks memory (need 4 GiB, best has 0 MiB)"
    (gone,) = [i for i in world.peek(lambda tx: tx.instances.select(eq("app_id", low))) if i.preempted]
    assert (gone.phase, gone.eviction) == (Phase.STOPPED, Eviction.FORCED)
    (evicted,) = event_data(world, "instance.evicted")
    assert (evicted["name"], evicted["how"], evicted["priority"]) == ("shop", "preempted", "20")
    assert "urgent" not in str(evicted), "for whom it went is not theirs to know"
    (told,) = event_data(world, "instance.preempting")
    assert told["evicts"] == "1"
    reasons = [data["reason"] for data in event_data(world, "instance.stopping")]
    assert all("preempted" in reason or reason == "drained" for reason in reasons)


async def test_two_that_make_room_on_one_node_at_once_both_keep_their_places(world: World) -> None:
    edge = await world.edge()
    low = await filled(world, "one", count=3, process=Process(memory_bytes=2 * GIB))
    leave = {i.id for i in of(world, low)}
    await world.clock.until(lambda: edge.endpoints() == leave, 5)
    edge.open_sessions = dict.fromkeys(leave, 1)
    await world.change_app(counts={"web": 2})
    deployment = await world.deploy("urgent:v1", process=Process(memory_bytes=3 * GIB), placement=HIGH)
    await world.clock.advance(3)
    assert {i.makes_room_for for i in of(world, low) if i.id in leave} == {i.id for i in world.live()}
    assert all(i.reserved_node_id for i in world.live()), "nobody goes in vain"
    edge.open_sessions = {}
    assert (await world.finished(deployment)).state is DeploymentState.SUCCEEDED
    assert len(event_data(world, "instance.preempting")) == 2, "nobody has to ask again"


async def test_the_one_that_goes_comes_again_where_there_is_room(world: World) -> None:
    low = await filled(world, "one", "two", count=3)
    await world.finished(await world.deploy("urgent:v1", process=HUGE, placement=HIGH))
    assert len(world.serving()) == 1
    await world.node("three")
    await world.clock.until(lambda: sum(i.serving for i in of(world, low)) == 3, 60)
    assert {i.node_id for i in of(world, low)} & {i.node_id for i in world.live()} == set()


async def test_it_leaves_the_routes_before_it_stops_and_the_place_is_kept_meanwhile(world: World) -> None:
    edge = await world.edge()
    low = await filled(world, "one", count=2)
    (first, second) = of(world, low)
    await world.clock.until(lambda: edge.endpoints() == {first.id, second.id}, 5)
    edge.open_sessions = {first.id: 1, second.id: 1}
    await world.deploy("urgent:v1", process=LARGE, placement=HIGH)
    await world.clock.until(lambda: any(i.desired is Desired.DRAIN for i in of(world, low)), 5)
    await world.clock.advance(3)
    (waits,) = world.live()
    (leaving,) = [i for i in of(world, low) if i.desired is Desired.DRAIN]
    assert (waits.phase, waits.node_id, waits.reserved_node_id) == (Phase.PENDING, "", leaving.node_id)
    assert waits.placement_reason == "room is made on one: 1 of lower priority leaves it"
    assert leaving.id not in edge.endpoints()
    assert world.peek(node_usage)[leaving.node_id].memory_bytes == 12 * GIB, "what leaves, what stays, what comes"
    assert sum(i.preempted for i in of(world, low)) == 1, "nobody else has to go meanwhile"
    edge.open_sessions = {}
    await world.clock.until(lambda: len(world.serving()) == 1, 60)
    assert world.live()[0].reserved_node_id == ""


async def test_nobody_goes_for_one_of_equal_priority_or_where_there_is_room(world: World) -> None:
    low = await filled(world, "one")
    await world.deploy("urgent:v1", process=LARGE, placement=PlacementRules(priority=29))
    await world.clock.advance(10)
    assert not any(i.preempted for i in of(world, low))
    await world.node("two")
    await world.clock.until(lambda: len(world.serving()) == 1, 30)
    assert event_data(world, "instance.evicted") == []


async def holds_a_volume(world: World, instance: Instance) -> None:
    volume = Volume(
        id=f"vol_{instance.id}",
        project_id=PRJ,
        name=instance.id.replace("_", "-"),
        size_bytes=GIB,
        node_id=instance.node_id,
        instance_id=instance.id,
        created_at=0.0,
        created_by="me",
    )
    await world.control.commit(lambda unit: unit.tx.volumes.insert(volume))


async def test_one_that_holds_a_volume_is_never_evicted(world: World) -> None:
    low = await filled(world, "one")
    bound, free = of(world, low)
    await holds_a_volume(world, bound)
    await world.deploy("urgent:v1", process=LARGE, placement=HIGH)
    await world.clock.until(lambda: len(world.serving()) == 1, 60)
    await world.change_app(counts={"web": 2})
    await world.clock.advance(10)
    assert bound.id in {i.id for i in of(world, low) if i.phase is Phase.HEALTHY}
    assert free.id not in {i.id for i in of(world, low)}


async def test_nodes_whose_instances_hold_volumes_keep_none_from_being_looked_at(world: World) -> None:
    names = [f"n{number:02}" for number in range(MOST_NODES + 1)]
    low = await filled(world, *names, count=len(names), process=HUGE)
    *bound, free = sorted(of(world, low), key=lambda instance: instance.node_id)
    for instance in bound:
        await holds_a_volume(world, instance)
    await world.deploy("urgent:v1", process=HUGE, placement=HIGH)
    await world.clock.until(lambda: len(world.serving()) == 1, 60)
    assert world.serving()[0].node_id == free.node_id


async def test_one_that_nothing_makes_room_for_keeps_none_of_its_process_from_it_that_needs_less(world: World) -> None:
    low = await filled(world, "one")
    await world.finished(await world.deploy("urgent:v1", process=LARGE, placement=HIGH))
    await world.deploy("urgent:v2", process=Process(memory_bytes=9 * GIB), placement=HIGH)
    await world.clock.advance(3)
    assert {i.phase for i in of(world, low)} == {Phase.HEALTHY, Phase.PENDING}
    run = await world.ask(lambda unit, app: create_run(unit, app, RunWish(command=("migrate",))))

    def is_placed() -> bool:
        found = world.peek(lambda tx: tx.instances.get(run.id))
        return found is not None and bool(found.node_id)

    await world.clock.until(is_placed, 30)
    assert {i.phase for i in of(world, low)} == {Phase.PENDING}


async def test_a_number_beyond_the_organizations_limit_moves_nobody(world: World) -> None:
    await world.node("one")
    await world.change_app(counts={"web": 2})
    await world.finished(await world.deploy("low:v1", process=LARGE, placement=PlacementRules(priority=50)))
    low = await another_app(world, "greedy")
    await world.deploy("greedy:v1", process=LARGE, placement=PlacementRules(priority=100))
    await world.clock.advance(10)
    assert [i.priority for i in world.live()] == [50]
    assert not any(i.preempted for i in of(world, low))
    await allow(world, 60)
    await world.clock.until(lambda: len(world.serving()) == 1, 60)
    assert [i.priority for i in world.live()] == [60]
    await allow(world, 10)
    assert {i.priority for i in (*world.live(), *of(world, low))} == {10}


async def allow(world: World, limit: int) -> None:
    def work(unit: Unit) -> None:
        organization = unit.tx.organizations.get(ORG)
        assert organization is not None
        quotas.set_organization_quota(unit, organization, None, {"priority": limit})

    await world.control.commit(work)


async def test_a_reservation_lapses_with_its_node(world: World) -> None:
    edge = await world.edge()
    low = await filled(world, "one", "two", count=4)
    edge.open_sessions = {i.id: 1 for i in of(world, low)}
    await world.deploy("urgent:v1", process=LARGE, placement=HIGH)
    await world.clock.until(lambda: any(i.reserved_node_id for i in world.live()), 5)
    kept = world.live()[0].reserved_node_id

    def cordon(unit: Unit) -> None:
        node = unit.tx.nodes.get(kept)
        assert node is not None
        unit.tx.nodes.update(replace(node, scheduling=Scheduling.CORDONED))

    await world.control.commit(cordon)
    await world.clock.until(lambda: world.live()[0].reserved_node_id not in ("", kept), 10)
    edge.open_sessions = {}
    await world.clock.until(lambda: len(world.serving()) == 1, 60)
    assert world.live()[0].node_id != kept


async def test_another_priority_is_a_release_that_replaces_nothing(world: World) -> None:
    await world.node("one")
    await world.finished(await world.deploy("shop:v1", placement=HIGH))
    (before,) = world.serving()
    done = await world.finished(await world.deploy("shop:v1", placement=LOW))
    (after,) = world.serving()
    assert (done.state, after.id, after.priority) == (DeploymentState.SUCCEEDED, before.id, 20)
    version = after.version
    await world.ask(reprioritize)
    assert world.serving()[0].version == version


async def test_a_reservation_that_lapses_keeps_no_room_and_what_had_begun_to_leave_goes_on(world: World) -> None:
    edge = await world.edge()
    low = await filled(world, "one")
    (node,) = world.peek(lambda tx: tx.nodes.select())
    edge.open_sessions = {i.id: 1 for i in of(world, low)}
    await world.deploy("urgent:v1", process=LARGE, placement=HIGH)
    await world.clock.until(lambda: any(i.preempted for i in of(world, low)), 5)
    await world.control.commit(lambda unit: scheduling.cordon(unit, unit.tx.nodes.get(node.id) or node))
    await world.clock.until(lambda: world.live()[0].reserved_node_id == "", 10)
    assert world.live()[0].placement_reason == "no node fits: 1 is cordoned"
    assert world.peek(node_usage)[node.id].memory_bytes == 8 * GIB
    edge.open_sessions = {}
    await world.clock.until(lambda: sum(i.phase is Phase.HEALTHY for i in of(world, low)) == 1, 60)
    await world.control.commit(lambda unit: scheduling.uncordon(unit, unit.tx.nodes.get(node.id) or node))
    await world.clock.until(lambda: sum(i.phase is Phase.HEALTHY for i in (*world.live(), *of(world, low))) == 2, 60)
