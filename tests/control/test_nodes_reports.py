"""What is believed of what a node says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.control.nodes import MAX_EPOCH, MAX_INSTANCES, MAX_LOG_LINES, Nodes
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control, Unit
from shellwego.core.assignments import NodeReport, Registration
from shellwego.core.errors import ForbiddenError, InvalidError
from shellwego.core.instances import Desired, Instance, Observed, Phase
from shellwego.core.liveness import BEAT_S
from shellwego.core.nodes import DISK_STEP, MAX_IMAGES, Backend, Node, NodeFacts, NodeHealth
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import eq
from tests.contract.sqlite_statements import watched
from tests.control.rollout_world import World, node_facts


class Reporter:
    """A node by hand: one instance is assigned to it, and nobody but the test speaks for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes = Nodes(world.control, Sealer(world.control, MemoryKms()))
        self.node_id = ""
        self.instance_id = ""
        self.epoch = 1
        self.sequence = 0

    async def begin(self) -> None:
        answer = await self.nodes.register(Registration(name="one", facts=node_facts()))
        self.node_id = answer.node_id
        await self.world.deploy("hello:v1")
        await self.world.clock.until(lambda: bool(self.world.live()), 5)
        (instance,) = self.world.live()
        self.instance_id = instance.id

    async def say(
        self,
        observed: Observed,
        *,
        sequence: int | None = None,
        epoch: int | None = None,
        facts: NodeFacts | None = None,
    ) -> Instance:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        self.answer = await self.nodes.report(
            NodeReport(
                node_id=self.node_id,
                epoch=self.epoch if epoch is None else epoch,
                sequence=self.sequence,
                facts=facts or node_facts(),
                instances={self.instance_id: observed},
            )
        )
        return self.instance

    @property
    def instance(self) -> Instance:
        return next(i for i in self.world.instances() if i.id == self.instance_id)


@pytest.fixture
async def node() -> AsyncIterator[Reporter]:
    world = World()
    await world.begin()
    reporter = Reporter(world)
    await reporter.begin()
    yield reporter
    await world.end()


def healthy(address: str = "10.64.0.9") -> Observed:
    return Observed(phase=Phase.HEALTHY, address=address, attempt=1)


async def test_a_report_moves_the_judged_phase(node: Reporter) -> None:
    assert (await node.say(Observed(phase=Phase.STARTING, detail="boot"))).phase is Phase.STARTING
    assert (await node.say(healthy())).phase is Phase.HEALTHY


async def test_an_older_or_repeated_sequence_is_ignored(node: Reporter) -> None:
    await node.say(healthy(), sequence=7)
    for sequence in (7, 6):
        assert (await node.say(Observed(phase=Phase.UNHEALTHY), sequence=sequence)).phase is Phase.HEALTHY
    assert (await node.say(Observed(phase=Phase.UNHEALTHY), sequence=8)).phase is Phase.UNHEALTHY


@pytest.mark.parametrize("epoch", [0, -1])
async def test_a_report_of_a_past_epoch_changes_nothing_and_is_told_the_right_one(node: Reporter, epoch: int) -> None:
    assert (await node.say(healthy(), epoch=epoch)).phase is Phase.ASSIGNED
    assert node.answer == 1


async def test_a_node_that_is_ahead_of_us_has_to_register_again(node: Reporter) -> None:
    with pytest.raises(ForbiddenError):
        await node.say(healthy(), epoch=2)
    assert node.instance.phase is Phase.ASSIGNED


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.ASSIGNED, Phase.LOST])
async def test_a_node_cannot_say_what_only_the_control_plane_judges(node: Reporter, phase: Phase) -> None:
    assert (await node.say(Observed(phase=phase))).phase is Phase.ASSIGNED


async def test_a_move_that_the_table_forbids_is_refused(node: Reporter) -> None:
    await node.say(Observed(phase=Phase.STOPPING))
    assert (await node.say(healthy())).phase is Phase.STOPPING


async def test_what_ended_is_never_brought_back(node: Reporter) -> None:
    await node.say(Observed(phase=Phase.FAILED, reason="no such command"))
    assert (await node.say(healthy())).phase is Phase.FAILED


NOT_OF_A_VM = [
    "127.0.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "0.0.0.0",  # noqa: S104
    "::1",
    "a;b",
    "10.64.0.9 x",
    "unix:/run/shellwego/abc/edge/admin.sock",
    "unix:/run/shellwego/abc/vm/../vm/abcdefghijkl/http.sock",
    "unix:/var/run/docker.sock",
    "unix:/run/shellwego/abc/vm/abcdefghijkl/ctl.sock",
]


@pytest.mark.parametrize("address", NOT_OF_A_VM)
async def test_an_address_that_no_vm_can_have_never_reaches_the_routes(node: Reporter, address: str) -> None:
    seen = await node.say(healthy(address))
    assert (seen.phase, seen.observed.address) == (Phase.ASSIGNED, "")


@pytest.mark.parametrize(
    "address",
    [*NOT_OF_A_VM, "10.64.32.9", "192.0.2.9", "10.0.0.5", "unix:/run/shellwego/abc/vm/abcdefghijkl/http.sock"],
)
async def test_a_node_that_joined_can_lead_the_edges_to_its_own_vms_only(node: Reporter, address: str) -> None:
    def join(unit: Unit) -> None:
        joined = unit.tx.nodes.get(node.node_id)
        assert joined is not None
        unit.tx.nodes.update(replace(joined, subnet="10.64.16.0/20"))

    await node.world.control.commit(join)
    assert (await node.say(healthy(address))).observed.address == ""
    assert (await node.say(healthy("10.64.16.9"))).observed.address == "10.64.16.9"


async def test_what_a_node_says_is_bounded(node: Reporter) -> None:
    flood = Observed(phase=Phase.STARTING, reason="x" * 10**6, log_tail=("y" * 10**5,) * 200, detail="z" * 999)
    seen = (await node.say(flood)).observed
    assert len(seen.reason) == 1000
    assert (len(seen.log_tail), len(seen.log_tail[0]), len(seen.detail)) == (MAX_LOG_LINES, 1000, 64)


async def test_what_a_node_promises_of_itself_is_bounded(node: Reporter) -> None:
    facts = node_facts(cpu_overcommit=10**9, disk_overcommit=-1)
    await node.nodes.register(Registration(name="two", facts=facts))
    told = node.world.peek(lambda tx: tx.nodes.select(eq("name", "two")))[0].facts
    assert (told.cpu_overcommit, told.disk_overcommit) == (64, 1)


async def test_of_the_images_that_a_node_tells_so_many_are_kept_and_only_what_is_a_digest(node: Reporter) -> None:
    digests = [f"sha256:{number:064x}" for number in range(MAX_IMAGES)]
    for told, kept in (([*digests[::-1], "sha256:" + "f" * 64], digests), (["x" * 10**6, "", digests[0]], digests[:1])):
        await node.nodes.register(Registration(name="two", facts=node_facts(images=tuple(told))))
        assert list(node.world.peek(lambda tx: tx.nodes.select(eq("name", "two")))[0].facts.images) == kept


async def test_what_a_node_says_of_its_backends_is_bounded(node: Reporter) -> None:
    long = "x" * 10**5
    backend = Backend(
        name=long,
        status=long,
        acceleration=long,
        isolation=long,
        reason=long,
        max_vcpus=-1,
        max_memory_bytes=-1,
        snapshot_host=(("program", long),),
    )
    await node.say(healthy(), facts=node_facts(backends=(backend,) * 100, confinement=long))
    told = node.world.peek(lambda tx: tx.nodes.select())[0].facts
    assert (len(told.backends), len(told.confinement)) == (16, 64)
    shown = told.backends[0]
    assert shown.snapshot_host == ()
    assert {len(text) for text in (shown.name, shown.status, shown.acceleration, shown.isolation)} == {64}
    assert (len(shown.reason), shown.max_vcpus, shown.max_memory_bytes) == (1000, 0, 0)


async def test_a_node_that_joined_and_was_removed_is_not_made_anew(node: Reporter) -> None:
    with pytest.raises(ForbiddenError):
        await node.nodes.register(Registration(name="gone", facts=node_facts(), joined=True))
    assert node.world.peek(lambda tx: tx.nodes.select(eq("name", "gone"))) == []


async def test_a_report_of_too_many_instances_is_refused(node: Reporter) -> None:
    many = {f"ins_{number}": healthy() for number in range(MAX_INSTANCES + 1)}
    report = NodeReport(node_id=node.node_id, epoch=1, sequence=1, facts=node_facts(), instances=many)
    with pytest.raises(InvalidError):
        await node.nodes.report(report)


async def test_a_report_is_taken_whatever_else_it_names(node: Reporter) -> None:
    strangers = {f"ins_{number}": healthy() for number in range(1000)}
    report = NodeReport(
        node_id=node.node_id,
        epoch=1,
        sequence=1,
        facts=node_facts(),
        instances={**strangers, node.instance_id: healthy()},
    )
    await node.nodes.report(report)
    assert node.instance.phase is Phase.HEALTHY


async def test_a_report_costs_no_look_for_each_thing_that_it_makes_up(tmp_path: Path) -> None:
    """While one report is taken no other is: whoever names thousands would have all other nodes judged silent."""
    clock = SystemClock()
    control = Control(open_sqlite(tmp_path / "state.db", clock), MemoryBus(), clock)
    nodes = Nodes(control, Sealer(control, MemoryKms()))
    node_id = (await nodes.register(Registration(name="one", facts=node_facts()))).node_id
    made_up = {f"ins_{number}": healthy() for number in range(MAX_INSTANCES)}
    looks: list[str] = []
    with watched(looks.append):
        await nodes.report(NodeReport(node_id=node_id, epoch=1, sequence=1, facts=node_facts(), instances=made_up))
    await control.store.close()
    assert len(looks) < 50


async def test_a_node_speaks_for_its_own_instances_only(node: Reporter) -> None:
    other = await node.nodes.register(Registration(name="two", facts=node_facts()))
    report = NodeReport(
        node_id=other.node_id,
        epoch=1,
        sequence=99,
        facts=node_facts(),
        instances={node.instance_id: healthy("10.64.0.66")},
    )
    await node.nodes.report(report)
    assert node.instance.phase is Phase.ASSIGNED


async def test_an_unknown_node_is_refused(node: Reporter) -> None:
    with pytest.raises(ForbiddenError):
        await node.nodes.assignments("node_none")
    with pytest.raises(ForbiddenError):
        await node.nodes.report(NodeReport(node_id="node_none", epoch=1, sequence=1, facts=node_facts()))


async def test_a_node_that_registers_again_is_the_same_with_the_same_epoch(node: Reporter) -> None:
    again = await node.nodes.register(
        Registration(name="one", facts=node_facts(), known_node_id=node.node_id, known_epoch=1)
    )
    assert (again.node_id, again.epoch) == (node.node_id, 1)
    assert [item.instance_id for item in again.items] == [node.instance_id]


async def test_a_node_that_forgot_its_id_is_known_by_its_name_and_may_count_from_one(node: Reporter) -> None:
    await node.say(healthy(), sequence=500)
    again = await node.nodes.register(Registration(name="one", facts=node_facts()))
    assert again.node_id == node.node_id
    assert (await node.say(Observed(phase=Phase.UNHEALTHY), sequence=1)).phase is Phase.UNHEALTHY


async def test_a_node_that_knows_a_higher_epoch_raises_ours(node: Reporter) -> None:
    """The store was restored from a backup: the node would refuse our epoch for ever."""
    again = await node.nodes.register(
        Registration(name="one", facts=node_facts(), known_node_id=node.node_id, known_epoch=5)
    )
    assert again.epoch == 5


async def test_a_node_cannot_claim_an_epoch_that_no_further_one_follows(node: Reporter) -> None:
    """Else it could never be judged down, and the judge of all nodes would fail at it."""
    for epoch in (MAX_EPOCH + 1, (1 << 31) - 1, 1 << 40, (1 << 64) - 1):
        claim = Registration(name="one", facts=node_facts(), known_node_id=node.node_id, known_epoch=epoch)
        with pytest.raises(InvalidError) as refused:
            await node.nodes.register(claim)
        assert refused.value.errors[0].field == "known_epoch"
    assert (await node.nodes.assignments(node.node_id)).epoch == 1
    claim = Registration(name="one", facts=node_facts(), known_node_id=node.node_id, known_epoch=MAX_EPOCH)
    await node.nodes.register(claim)
    await node.world.clock.advance(40)
    assert node.world.peek(lambda tx: tx.nodes.select())[0].epoch == MAX_EPOCH + 1


@pytest.mark.parametrize("name", ["", "x" * 254, "a\nb"])
async def test_a_node_name_must_be_usable(node: Reporter, name: str) -> None:
    with pytest.raises(InvalidError):
        await node.nodes.register(Registration(name=name, facts=node_facts()))


async def test_an_assignment_says_everything_that_a_vm_needs(node: Reporter) -> None:
    (item,) = (await node.nodes.assignments(node.node_id)).items
    work = item.workload
    assert item.present
    assert (work.image_digest, work.port, work.process, work.release) == ("sha256:hello:v1", 8080, "web", 1)
    assert (work.network_id, work.organization_id) == ("net_x", "org_x")
    assert work.env["PORT"] == "8080"


async def test_variables_of_a_process_come_before_the_app_s_and_those_before_the_platform_s(node: Reporter) -> None:
    world = node.world
    release = await world.release_of(world.peek(lambda tx: tx.deployments.select()[0].id))
    process = replace(release.config.processes[0], env={"SAID": "process", "OWN": "1"})
    config = replace(release.config, env={"SAID": "app", "PORT": "1"}, processes=(process,))
    await world.control.commit(lambda unit: unit.tx.releases.update(replace(release, config=config)))
    (item,) = (await node.nodes.assignments(node.node_id)).items
    assert {name: item.workload.env[name] for name in ("SAID", "OWN", "PORT")} == {
        "SAID": "process",
        "OWN": "1",
        "PORT": "1",
    }


async def test_what_is_to_stop_is_assigned_as_absent_until_the_node_says_that_it_is_gone(node: Reporter) -> None:
    await node.world.change_app(stopped=True)
    await node.world.clock.until(lambda: node.instance.desired is Desired.STOP, 10)
    (item,) = (await node.nodes.assignments(node.node_id)).items
    assert not item.present
    await node.say(Observed(phase=Phase.STOPPED))
    assert (await node.nodes.assignments(node.node_id)).items == ()
    assert node.instance.stopped_at is not None


async def test_a_heart_beat_is_written_at_most_twice_a_beat(node: Reporter) -> None:
    def version() -> int:
        found = node.world.peek(lambda tx: tx.nodes.get(node.node_id))
        assert found is not None
        return found.version

    await node.world.clock.advance(1.5)
    before = version()
    for sequence in range(10, 20):
        await node.say(Observed(phase=Phase.STARTING), sequence=sequence)
    assert version() == before + 1


@pytest.mark.parametrize("free", [10 * DISK_STEP, 10 * DISK_STEP + 17])
async def test_a_disk_whose_free_space_jitters_is_no_news_and_one_that_fills_up_is(node: Reporter, free: int) -> None:
    def stored() -> Node:
        found = node.world.peek(lambda tx: tx.nodes.get(node.node_id))
        assert found is not None
        return found

    def facts(moved: int) -> NodeFacts:
        return node_facts(disk_bytes=free * 10 + moved, disk_free_bytes=free + moved)

    await node.say(healthy(), facts=facts(0))
    before, begun = stored().version, node.world.clock.now()
    for step in range(200):
        await node.world.clock.advance(0.1)
        await node.say(healthy(), facts=facts((-1) ** step * 4096))
    beats = (node.world.clock.now() - begun) / (BEAT_S / 2)
    assert stored().version - before <= beats
    await node.say(healthy(), facts=facts(-DISK_STEP))
    assert stored().facts == facts(-DISK_STEP)


async def test_every_end_is_an_event(node: Reporter) -> None:
    await node.say(healthy())
    await node.say(Observed(phase=Phase.STARTING, ends=1, reason="killed by signal 9"))
    (event,) = node.world.peek(lambda tx: tx.events.select(eq("type", "instance.ended")))
    assert event.resource == node.instance_id
    assert event.data["reason"] == "killed by signal 9"


async def test_a_node_that_was_suspect_is_ready_by_its_next_report(node: Reporter) -> None:
    await node.world.clock.advance(4.5)

    def health() -> NodeHealth:
        found = node.world.peek(lambda tx: tx.nodes.get(node.node_id))
        assert found is not None
        return found.health

    assert health() is NodeHealth.SUSPECT
    await node.say(replace(healthy()))
    assert health() is NodeHealth.READY
