"""Edges: their tables, their leases, and what they confirm."""

from __future__ import annotations

import pytest

from shellwego.control.edges import LEASE_S, MAX_SESSIONS_TOLD, Edges
from shellwego.core.errors import ForbiddenError, InvalidError
from shellwego.core.instances import Instance, Phase
from shellwego.core.routing import Departed, Edge, EdgeReport, RouteState
from shellwego.ports.store import eq
from tests.control.rollout_world import FakeEdge, World


def row(world: World, edge_id: str) -> Edge:
    found = world.peek(lambda tx: tx.edges.get(edge_id))
    assert found is not None
    return found


async def report(edges: Edges, edge_id: str, version: int, **sessions: int) -> None:
    await edges.report_edge(EdgeReport(edge_id=edge_id, applied_version=version, open_sessions=sessions))


async def test_an_edge_gets_the_table_then_only_what_is_newer(world: World) -> None:
    edge_id = await world.edges.register_edge("edge-1")
    await world.clock.advance(1)
    table = await world.edges.routes(edge_id, -1)
    assert table is not None
    assert [(route.host, route.state) for route in table.routes] == [("shop.localhost", RouteState.STOPPED)]
    assert await world.edges.routes(edge_id, table.version) is None


async def test_every_change_of_a_route_gives_the_table_a_higher_number(world: World) -> None:
    edge = await world.edge()
    await world.node()
    await world.finished(await world.deploy("hello:v1"))
    await world.finished(await world.deploy("hello:v2"))
    await world.clock.advance(5)
    versions = [table.version for table in edge.tables]
    assert versions == sorted(set(versions))
    assert len(edge.endpoints()) == 1


async def test_a_table_at_rest_keeps_its_number(world: World) -> None:
    edge = await world.edge()
    await world.node()
    await world.finished(await world.deploy("hello:v1"))
    await world.clock.advance(5)
    before = edge.table.version
    await world.clock.advance(120)
    assert edge.table.version == before


async def test_an_edge_that_registers_again_is_the_same_and_confirms_nothing_yet(world: World) -> None:
    first = await world.edges.register_edge("edge-1")
    await world.clock.advance(1)
    await report(world.edges, first, 1, ins_x=2)
    assert row(world, first).applied_version == 1
    assert await world.edges.register_edge("edge-1") == first
    assert (row(world, first).applied_version, row(world, first).open_sessions) == (0, {})


async def test_a_report_renews_the_lease(world: World) -> None:
    edge_id = await world.edges.register_edge("edge-1")
    await world.clock.advance(LEASE_S + 5)
    await report(world.edges, edge_id, 0)
    assert row(world, edge_id).lease_until == world.clock.now() + LEASE_S


async def test_equal_reports_are_not_written_each_time(world: World) -> None:
    edge_id = await world.edges.register_edge("edge-1")
    before = row(world, edge_id).version
    for _ in range(10):
        await report(world.edges, edge_id, 0)
        await world.clock.advance(0.1)
    assert row(world, edge_id).version == before


async def test_an_edge_cannot_confirm_what_does_not_exist_yet(world: World) -> None:
    edge_id = await world.edges.register_edge("edge-1")
    await world.clock.advance(1)
    await report(world.edges, edge_id, 10**9)
    newest = world.peek(lambda tx: tx.counters.get("routes"))
    assert newest is not None
    assert row(world, edge_id).applied_version == newest.value


async def test_an_unknown_edge_is_refused(world: World) -> None:
    with pytest.raises(ForbiddenError):
        await world.edges.routes("edg_none", 0)
    with pytest.raises(ForbiddenError):
        await report(world.edges, "edg_none", 0)


async def test_a_report_of_too_many_sessions_is_refused(world: World) -> None:
    edge_id = await world.edges.register_edge("edge-1")
    many = {f"ins_{number}": 1 for number in range(MAX_SESSIONS_TOLD + 1)}
    with pytest.raises(InvalidError):
        await world.edges.report_edge(EdgeReport(edge_id=edge_id, applied_version=0, open_sessions=many))


@pytest.mark.parametrize("name", ["", "x" * 254, "a\tb"])
async def test_an_edge_name_must_be_usable(world: World, name: str) -> None:
    with pytest.raises(InvalidError):
        await world.edges.register_edge(name)


async def one_that_serves(world: World) -> tuple[FakeEdge, Instance]:
    edge = await world.edge()
    await world.finished(await world.deploy("hello:v1"))
    await world.clock.until(lambda: bool(edge.endpoints()))
    (instance,) = world.serving()
    return edge, instance


def departed(edge: FakeEdge) -> tuple[Departed, ...]:
    return tuple(departed for route in edge.table.routes for departed in route.departed)


async def test_an_edge_with_sessions_to_a_vm_that_ended_is_told_so_within_a_moment(world: World) -> None:
    node = await world.node()
    edge, instance = await one_that_serves(world)
    node.boots_fail = True
    node.kill_all()
    await world.clock.until(lambda: not edge.endpoints(), 1)
    assert departed(edge) == ()
    edge.open_sessions = {instance.id: 2}
    await world.clock.until(lambda: departed(edge) == (Departed(instance_id=instance.id),), 1)
    edge.open_sessions = {}
    await world.clock.advance(60)
    assert departed(edge) == ()


async def test_it_is_told_so_also_of_an_instance_that_is_given_up(world: World) -> None:
    node = await world.node()
    edge, instance = await one_that_serves(world)
    node.boots_fail = True
    node.kill_all()
    await world.clock.until(lambda: instance.id not in {i.id for i in world.live()}, 30)
    edge.open_sessions = {instance.id: 2}
    await world.clock.until(lambda: departed(edge) == (Departed(instance_id=instance.id),), 1)


async def test_sessions_of_an_instance_that_is_unhealthy_or_drains_are_never_called_ended(world: World) -> None:
    node = await world.node()
    edge, instance = await one_that_serves(world)
    edge.open_sessions = {instance.id: 2}
    node.failing.add(instance.id)
    await world.clock.until(lambda: not edge.endpoints(), 5)
    assert row_of(world, instance).phase is Phase.UNHEALTHY
    await world.clock.advance(5)
    node.failing.clear()
    await world.deploy("hello:v2")
    await world.clock.until(lambda: bool(edge.endpoints()) and instance.id not in edge.endpoints(), 5)
    await world.clock.advance(5)
    assert [told for table in edge.tables for route in table.routes for told in route.departed] == []


async def test_sessions_of_an_instance_lost_with_its_node_are_called_ended_once_one_that_drains_would_be_stopped(
    world: World,
) -> None:
    node = await world.node()
    edge, instance = await one_that_serves(world)
    edge.open_sessions = {instance.id: 1}
    node.silent = True
    await world.clock.until(lambda: row_of(world, instance).phase is Phase.LOST, 10)
    await world.clock.advance(29)
    assert departed(edge) == ()
    await world.clock.until(lambda: departed(edge) == (Departed(instance_id=instance.id),), 32)


def row_of(world: World, instance: Instance) -> Instance:
    found = world.peek(lambda tx: tx.instances.get(instance.id))
    assert found is not None
    return found


async def test_whoever_has_a_version_has_a_table_without_what_that_version_unrouted(world: World) -> None:
    """Asked of every table that the edge ever got, for every instance that ever left the routes."""
    edge = await world.edge()
    await world.node()
    for number in range(4):
        await world.finished(await world.deploy(f"hello:v{number}"))
    gone = world.peek(lambda tx: tx.instances.select(eq("app_id", world.app_id)))
    unrouted = {i.id: i.unrouted_version for i in gone if i.unrouted_version is not None}
    assert len(unrouted) == 3
    for table in edge.tables:
        routed = {endpoint.instance_id for route in table.routes for endpoint in route.endpoints}
        assert not any(instance in routed and table.version >= version for instance, version in unrouted.items())
