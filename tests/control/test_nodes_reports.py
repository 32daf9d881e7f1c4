"""What is believed of what a node says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.control.networks import establish, private_prefix
from shellwego.control.nodes import Nodes
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control, Unit
from shellwego.core.addresses import private_address
from shellwego.core.assignments import NodeReport, Registration
from shellwego.core.claims import MAX_EPOCH, MAX_INSTANCES, MAX_LOG_LINES
from shellwego.core.convergence import vm_id
from shellwego.core.errors import ForbiddenError, InvalidError
from shellwego.core.instances import SUSPEND_FAILED, Observed, Phase, Sleep
from shellwego.core.liveness import BEAT_S
from shellwego.core.nodes import DISK_STEP, MAX_OVERCOMMIT, Node, NodeFacts, NodeHealth
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import eq
from tests.contract.sqlite_statements import watched
from tests.control.reporter import Reporter, healthy, reporting
from tests.control.rollout_world import node_facts


@pytest.fixture
async def node() -> AsyncIterator[Reporter]:
    async with reporting() as reporter:
        yield reporter


async def test_a_report_moves_the_judged_phase(node: Reporter) -> None:
    assert (await node.say(Observed(phase=Phase.STARTING, detail="boot"))).phase is Phase.STARTING
    assert (await node.say(healthy())).phase is Phase.HEALTHY


async def test_an_older_or_repeated_sequence_is_ignored(node: Reporter) -> None:
    await node.say(healthy(), sequence=7)
    for sequence in (7, 6):
        assert (await node.say(Observed(phase=Phase.UNHEALTHY), sequence=sequence)).phase is Phase.HEALTHY
    assert (await node.say(Observed(phase=Phase.UNHEALTHY), sequence=8)).phase is Phase.UNHEALTHY


async def test_one_that_comes_late_is_not_believed_though_the_newer_one_said_nothing_new(node: Reporter) -> None:
    await node.say(healthy(), sequence=5)
    await node.say(healthy(), sequence=7)
    assert (await node.say(Observed(phase=Phase.UNHEALTHY), sequence=6)).phase is Phase.HEALTHY


@pytest.mark.parametrize("before", [Phase.ASSIGNED, Phase.ASLEEP])
async def test_checks_that_fail_after_what_was_never_told_are_believed(node: Reporter, before: Phase) -> None:
    if before is not Phase.ASSIGNED:
        assert (await node.say(replace(healthy(), phase=before))).phase is before
    assert (await node.say(replace(healthy(), phase=Phase.UNHEALTHY))).phase is Phase.UNHEALTHY


async def test_a_sleep_that_failed_is_given_up_though_the_next_one_was_asked_for_meanwhile(node: Reporter) -> None:
    await node.say(healthy())

    def doze(unit: Unit) -> None:
        unit.tx.instances.update(replace(node.instance, sleep=Sleep.DOZING))

    await node.world.control.commit(doze)
    assert (await node.say(replace(healthy(), reason_code=SUSPEND_FAILED))).sleep is Sleep.AWAKE


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


async def test_who_gives_an_address_that_no_vm_can_have_is_not_believed_at_all(node: Reporter) -> None:
    seen = await node.say(healthy("169.254.169.254"))
    assert (seen.phase, seen.observed.address) == (Phase.ASSIGNED, "")


async def test_a_private_address_is_that_vms_own_or_none(node: Reporter) -> None:
    def join(unit: Unit) -> None:
        establish(unit)
        joined = unit.tx.nodes.get(node.node_id)
        assert joined is not None
        unit.tx.nodes.update(replace(joined, subnet="10.64.16.0/20"))

    await node.world.control.commit(join)
    work = (await node.nodes.assignments(node.node_id)).items[0].workload
    assert (work.network_number, work.private_prefix) == (1, node.world.peek(private_prefix))

    def address(number: int, subnet: str = "10.64.16.0/20", ipv4: str = "10.64.16.9") -> str:
        return private_address(work.private_prefix, subnet, number, ipv4)

    seen = healthy("10.64.16.9")
    for lie in (address(2), address(1, "10.64.32.0/20"), address(1, ipv4="10.64.16.8"), "fe80::1", "x" * 2000):
        told = await node.say(replace(seen, private_address=lie))
        assert (told.phase, told.observed.private_address) == (Phase.HEALTHY, "")
    assert (await node.say(replace(seen, private_address=address(1)))).observed.private_address == address(1)


async def test_a_node_that_joined_can_lead_the_edges_to_its_own_vms_only(node: Reporter) -> None:
    def join(unit: Unit) -> None:
        joined = unit.tx.nodes.get(node.node_id)
        assert joined is not None
        unit.tx.nodes.update(replace(joined, subnet="10.64.16.0/20"))

    await node.world.control.commit(join)
    assert (await node.say(healthy("10.64.32.9"))).observed.address == ""
    assert (await node.say(healthy("10.64.16.9"))).observed.address == "10.64.16.9"


async def test_a_node_that_names_the_vm_of_another_instance_names_none(node: Reporter) -> None:
    """By its id other nodes find where a published port and a name lead."""
    own, foreign = vm_id(node.instance_id, 1), vm_id("ins_of_a_neighbour", 1)
    assert (await node.say(replace(healthy(), vm_id=foreign))).observed.vm_id == ""
    assert (await node.say(replace(healthy(), vm_id=own))).observed.vm_id == own


async def test_what_a_node_says_is_bounded(node: Reporter) -> None:
    flood = Observed(phase=Phase.STARTING, reason="x" * 10**6, log_tail=("y" * 10**5,) * 200, detail="z" * 999)
    seen = (await node.say(flood)).observed
    assert len(seen.reason) == 1000
    assert (len(seen.log_tail), len(seen.log_tail[0]), len(seen.detail)) == (MAX_LOG_LINES, 1000, 64)


async def test_what_a_node_tells_of_itself_is_bounded_when_it_registers_and_in_each_report(node: Reporter) -> None:
    facts = node_facts(cpu_overcommit=10**9)
    await node.nodes.register(Registration(name="two", facts=facts))
    await node.say(healthy(), facts=facts)
    told = node.world.peek(lambda tx: tx.nodes.select())
    assert {each.name: each.facts.cpu_overcommit for each in told} == {"one": MAX_OVERCOMMIT, "two": MAX_OVERCOMMIT}


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
    assert (again.node_id, again.epoch) == (node.node_id, 2)
    unhealthy = await node.say(Observed(phase=Phase.UNHEALTHY), sequence=1, epoch=again.epoch)
    assert unhealthy.phase is Phase.UNHEALTHY


async def test_what_a_node_said_before_it_forgot_its_id_counts_no_more_when_it_comes_late(node: Reporter) -> None:
    """Nor does what it said before the same registration came a second time: it is told to say all anew."""
    again = await node.nodes.register(Registration(name="one", facts=node_facts()))
    assert (await node.say(healthy(), sequence=1, epoch=again.epoch)).phase is Phase.HEALTHY
    assert (await node.say(Observed(phase=Phase.UNHEALTHY), sequence=500, epoch=1)).phase is Phase.HEALTHY
    await node.nodes.register(Registration(name="one", facts=node_facts()))
    assert (await node.say(Observed(phase=Phase.UNHEALTHY), sequence=1, epoch=again.epoch)).phase is Phase.HEALTHY
    assert node.answer == again.epoch + 1


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
