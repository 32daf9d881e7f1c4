"""What of an instance's course is told at once, and what may wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.agent.report import Reports, Sight
from shellwego.core.backups import BackupPhase, ObservedBackup
from shellwego.core.instances import Observed, Phase
from shellwego.core.nodes import NodeFacts
from shellwego.core.replicas import ObservedReplica
from shellwego.core.volumes import ObservedVolume, Presence

FACTS = NodeFacts(hostname="a", version="1", cpu_milli=1, memory_bytes=1, disk_bytes=1)
BEGUN = Observed(phase=Phase.STARTING, attempt=1, vm_id="vm_1", detail="image")


def told(*seen: Observed) -> Reports:
    """Reports of which these were confirmed."""
    reports = Reports()
    for observed in seen:
        sight = Sight(instances={"ins_1": observed})
        report = reports.build(node_id="node_1", epoch=1, sequence=1, facts=FACTS, seen=sight)
        reports.confirm(report, sight)
    return reports


def test_that_a_start_has_begun_may_wait() -> None:
    assert told().has_news(Sight(instances={"ins_1": BEGUN}))
    assert not told().is_urgent(Sight(instances={"ins_1": BEGUN}))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (BEGUN, Observed(phase=Phase.HEALTHY, attempt=1, vm_id="vm_1")),
        (BEGUN, Observed(phase=Phase.FAILED, attempt=1, vm_id="vm_1", ends=1)),
        (Observed(phase=Phase.HEALTHY, vm_id="vm_1"), Observed(phase=Phase.STARTING, vm_id="vm_2", ends=1)),
        (Observed(phase=Phase.ASLEEP, vm_id="vm_1"), BEGUN),
    ],
)
def test_whatever_takes_from_or_adds_to_what_serves_is_told_at_once(before: Observed, now: Observed) -> None:
    assert told(before).is_urgent(Sight(instances={"ins_1": now}))


def test_how_full_a_volume_is_may_wait_but_not_that_it_is_there() -> None:
    seen = ObservedVolume(presence=Presence.PRESENT, size_bytes=100, used_bytes=1)
    reports = Reports()
    assert reports.is_urgent(Sight(volumes={"vol_1": seen}))
    sight = Sight(volumes={"vol_1": seen})
    reports.confirm(reports.build(node_id="n", epoch=1, sequence=1, facts=FACTS, seen=sight), sight)
    assert not reports.has_news(sight)
    fuller = Sight(volumes={"vol_1": replace(seen, used_bytes=2)})
    assert reports.has_news(fuller)
    assert not reports.is_urgent(fuller)
    assert reports.is_urgent(Sight(volumes={"vol_1": replace(seen, presence=Presence.ABSENT)}))


def test_what_got_no_answer_is_told_again_also_where_it_is_as_it_was_confirmed_last() -> None:
    awake = Sight(
        instances={"ins_1": Observed(phase=Phase.HEALTHY, vm_id="vm_1")},
        volumes={"vol_1": ObservedVolume(presence=Presence.PRESENT, size_bytes=100)},
        replicas={"rep_1": ObservedReplica(presence=Presence.PRESENT, round=1)},
        backups={"bak_1": ObservedBackup(phase=BackupPhase.RUNNING)},
    )
    asleep = Sight(
        instances={"ins_1": Observed(phase=Phase.ASLEEP, vm_id="vm_1")},
        volumes={"vol_1": ObservedVolume(presence=Presence.ABSENT)},
        replicas={"rep_1": ObservedReplica(presence=Presence.ABSENT)},
        backups={"bak_1": ObservedBackup(phase=BackupPhase.DONE)},
    )
    reports = Reports()
    reports.confirm(reports.build(node_id="n", epoch=1, sequence=1, facts=FACTS, seen=awake), awake)
    reports.unanswered(reports.build(node_id="n", epoch=1, sequence=2, facts=FACTS, seen=asleep))
    again = reports.build(node_id="n", epoch=1, sequence=3, facts=FACTS, seen=awake)
    assert reports.is_urgent(awake)
    assert [*again.instances, *again.volumes, *again.replicas, *again.backups] == ["ins_1", "vol_1", "rep_1", "bak_1"]
