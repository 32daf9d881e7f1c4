"""What a loop keeps of the fleet is a guide; every choice is checked where it is stored."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from shellwego.control.placer import Placer
from shellwego.control.unit import Control, Unit
from shellwego.core.fleet import Peers
from shellwego.core.instances import Instance, Phase
from shellwego.core.nodes import Backend, Node, NodeFacts, NodeHealth, Scheduling
from shellwego.core.placement import Placement, PlacementRequest, Refusal
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from tests.contract.store_databases import Database
from tests.control.rollout_world import World

GIB = 1 << 30
REQUEST = PlacementRequest(cpu_milli=100, memory_bytes=GIB, disk_bytes=GIB)


class SlowReads(VirtualClock):
    """Time passes whenever it is asked for, so that reading the fleet takes some."""

    def monotonic(self) -> float:
        self.asked = getattr(self, "asked", 0) + 1
        return super().monotonic() + self.asked / 1000


def node(name: str, memory: int = 4) -> Node:
    facts = NodeFacts(
        hostname=name,
        version="1",
        cpu_milli=4000,
        memory_bytes=memory * GIB,
        disk_bytes=100 * GIB,
        backends=(Backend(name="kvm", status="ready"),),
    )
    return Node(id=f"node_{name}", name=name, facts=facts, last_heard_at=0.0, created_at=0.0)


def put(unit: Unit, node_id: str, memory: int = 1) -> Instance:
    """As the rollout loop stores a placement."""
    return unit.tx.instances.insert(
        Instance(
            id=unit.new_id("ins"),
            app_id="app_1",
            process="web",
            slot=0,
            release_id="rel_1",
            content_hash="",
            generation=0,
            memory_bytes=memory * GIB,
            cpu_milli=100,
            disk_bytes=GIB,
            node_id=node_id,
            phase=Phase.ASSIGNED,
            created_at=unit.now(),
            phase_since=unit.now(),
        )
    )


@pytest.fixture
async def control() -> Control:
    control = Control(MemoryStore(VirtualClock()), MemoryBus(), SlowReads())
    await control.commit(lambda unit: [unit.tx.nodes.insert(node(name)) for name in "ab"])
    return control


@pytest.fixture
async def placer(control: Control) -> Placer:
    """It has read the fleet as it was empty, and will not do so again soon."""
    placer = Placer(control.clock)
    await control.read(placer.read)
    assert placer.due_in_s() > 0
    return placer


async def place(control: Control, placer: Placer, *, store: bool = True) -> Placement | Refusal:
    def work(unit: Unit) -> Placement | Refusal:
        placer.begin(unit.tx)
        outcome = placer.place(unit.tx, REQUEST, Peers())
        if isinstance(outcome, Placement) and store:
            put(unit, outcome.node_id)
        return outcome

    return await control.commit(work)


async def test_room_that_another_server_took_is_not_taken_again(control: Control, placer: Placer) -> None:
    await control.commit(lambda unit: put(unit, "node_a", 4))
    assert await place(control, placer) == Placement("node_b")
    await control.commit(lambda unit: put(unit, "node_b", 3))
    assert isinstance(await place(control, placer), Refusal)


@pytest.mark.parametrize("change", [{"health": NodeHealth.DOWN}, {"scheduling": Scheduling.CORDONED}])
async def test_a_node_that_is_no_place_any_more_is_passed_over(
    control: Control, placer: Placer, change: dict[str, NodeHealth | Scheduling]
) -> None:
    await control.commit(lambda unit: unit.tx.nodes.update(replace(node("a"), **change)))  # type: ignore[arg-type]
    assert await place(control, placer) == Placement("node_b")


async def test_a_node_that_was_removed_is_passed_over(control: Control, placer: Placer) -> None:
    await control.commit(lambda unit: unit.tx.nodes.delete("node_a"))
    assert await place(control, placer) == Placement("node_b")


async def test_what_was_placed_in_vain_is_free_again(control: Control, placer: Placer) -> None:
    for _ in range(9):
        assert await place(control, placer, store=False) == Placement("node_a")


async def test_within_one_transaction_room_is_given_once(control: Control, placer: Placer) -> None:
    def work(unit: Unit) -> list[Placement | Refusal]:
        placer.begin(unit.tx)
        return [placer.place(unit.tx, REQUEST, Peers()) for _ in range(9)]

    *placed, last = await control.commit(work)
    assert sorted(each.node_id for each in placed if isinstance(each, Placement)) == ["node_a"] * 4 + ["node_b"] * 4
    assert isinstance(last, Refusal)


async def test_a_node_that_joined_is_seen_once_the_fleet_is_read_again(control: Control, placer: Placer) -> None:
    await control.commit(lambda unit: [unit.tx.nodes.delete(f"node_{name}") for name in "ab"])
    await control.commit(lambda unit: unit.tx.nodes.insert(node("c")))
    assert isinstance(await place(control, placer), Refusal)
    while placer.due_in_s() > 0:
        pass  # each question takes a while
    await control.read(placer.read)
    assert await place(control, placer) == Placement("node_c")


async def test_of_equal_nodes_the_one_that_has_the_image_gets_the_instance() -> None:
    world = World()
    await world.begin()
    digest = f"sha256:{1:064x}"
    await world.node("one")
    holding = await world.node("two", images=(digest,))
    await world.finished(await world.deploy("hello:v1", digest=digest))
    assert [i.node_id for i in world.serving()] == [holding.node_id]
    await world.end()


@pytest.mark.databases("sqlite", "postgres")
async def test_two_servers_never_fill_a_node_beyond_what_it_has(database: Database) -> None:
    clock = SlowReads()
    servers = [Control(database.open(), MemoryBus(), clock) for _ in range(2)]
    await servers[0].commit(lambda unit: [unit.tx.nodes.insert(node(name, 3)) for name in "ab"])

    async def work(control: Control, placer: Placer) -> list[str]:
        await control.read(placer.read)
        told = [await place(control, placer) for _ in range(6)]
        return [outcome.node_id for outcome in told if isinstance(outcome, Placement)]

    placed = await asyncio.gather(*(work(control, Placer(control.clock)) for control in servers))
    assert sorted(placed[0] + placed[1]) == ["node_a"] * 3 + ["node_b"] * 3
