"""What of an instance's course is told at once, and what may wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.agent.report import TAIL_AGAIN_S, Reports, Sight
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
        report = reports.build(node_id="node_1", epoch=1, sequence=1, facts=FACTS, seen=sight, now=0.0)
        reports.confirm(report, sight)
    return reports


def test_that_a_start_has_begun_may_wait() -> None:
    assert told().has_news(Sight(instances={"ins_1": BEGUN}), 0.0)
    assert not told().is_urgent(Sight(instances={"ins_1": BEGUN}), 0.0)


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
    assert told(before).is_urgent(Sight(instances={"ins_1": now}), 0.0)


def test_how_full_a_volume_is_may_wait_but_not_that_it_is_there() -> None:
    seen = ObservedVolume(presence=Presence.PRESENT, size_bytes=100, used_bytes=1)
    reports = Reports()
    assert reports.is_urgent(Sight(volumes={"vol_1": seen}), 0.0)
    sight = Sight(volumes={"vol_1": seen})
    reports.confirm(reports.build(node_id="n", epoch=1, sequence=1, facts=FACTS, seen=sight, now=0.0), sight)
    assert not reports.has_news(sight, 0.0)
    fuller = Sight(volumes={"vol_1": replace(seen, used_bytes=2)})
    assert reports.has_news(fuller, 0.0)
    assert not reports.is_urgent(fuller, 0.0)
    assert reports.is_urgent(Sight(volumes={"vol_1": replace(seen, presence=Presence.ABSENT)}), 0.0)


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
    reports.confirm(reports.build(node_id="n", epoch=1, sequence=1, facts=FACTS, seen=awake, now=0.0), awake)
    reports.unanswered(reports.build(node_id="n", epoch=1, sequence=2, facts=FACTS, seen=asleep, now=0.0))
    again = reports.build(node_id="n", epoch=1, sequence=3, facts=FACTS, seen=awake, now=0.0)
    assert reports.is_urgent(awake, 0.0)
    assert [*again.instances, *again.volumes, *again.replicas, *again.backups] == ["ins_1", "vol_1", "rep_1", "bak_1"]


UNWELL = Observed(phase=Phase.UNHEALTHY, attempt=1, vm_id="vm_1", reason="status 500", log_tail=("one",))


class TestTails:
    """An instance that is not well and writes without end."""

    def test_the_lines_alone_are_told_seldom(self) -> None:
        reports = told(UNWELL)
        newer = Sight(instances={"ins_1": replace(UNWELL, log_tail=("two",))})
        for now in (0.0, TAIL_AGAIN_S - 0.1):
            assert not reports.has_news(newer, now)
            beat = reports.build(node_id="n", epoch=1, sequence=2, facts=FACTS, seen=newer, now=now)
            assert not beat.instances
            reports.confirm(beat, newer)
        assert reports.is_urgent(newer, TAIL_AGAIN_S)
        report = reports.build(node_id="n", epoch=1, sequence=3, facts=FACTS, seen=newer, now=TAIL_AGAIN_S)
        reports.confirm(report, newer)
        assert report.instances["ins_1"].log_tail == ("two",)
        assert not reports.has_news(Sight(instances={"ins_1": UNWELL}), TAIL_AGAIN_S + 1)

    def test_what_a_start_says_comes_soon_and_what_goes_on_and_on_ever_more_seldom(self) -> None:
        """A deployment that fails within half a minute shows what was written by then."""
        reports, moments = told(UNWELL), list[int]()
        for now in range(200):
            newer = Sight(instances={"ins_1": replace(UNWELL, log_tail=(str(now),))})
            report = reports.build(node_id="n", epoch=1, sequence=now + 2, facts=FACTS, seen=newer, now=float(now))
            reports.confirm(report, newer)
            moments += [now] * bool(report.instances)
        assert moments == [2, 6, 14, 30, 60, 90, 120, 150, 180]

    @pytest.mark.parametrize(
        "seen",
        [
            replace(UNWELL, phase=Phase.HEALTHY, reason="", log_tail=()),
            replace(UNWELL, phase=Phase.FAILED, log_tail=("two",)),
            replace(UNWELL, reason="status 503", log_tail=("two",)),
            replace(UNWELL, attempt=2, log_tail=("two",)),
        ],
    )
    def test_with_anything_else_they_are_told_at_once(self, seen: Observed) -> None:
        assert told(UNWELL).is_urgent(Sight(instances={"ins_1": seen}), 0.0)

    def test_the_first_lines_are_told_at_once(self) -> None:
        assert told(replace(UNWELL, log_tail=())).is_urgent(Sight(instances={"ins_1": UNWELL}), 0.0)

    def test_lines_whose_report_got_no_answer_are_told_again(self) -> None:
        reports, sight = told(UNWELL), Sight(instances={"ins_1": replace(UNWELL, log_tail=("two",))})
        report = reports.build(node_id="n", epoch=1, sequence=2, facts=FACTS, seen=sight, now=TAIL_AGAIN_S)
        reports.unanswered(report)
        assert reports.is_urgent(sight, TAIL_AGAIN_S)
