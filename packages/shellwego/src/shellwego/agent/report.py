"""What to tell the control plane: whatever changed since it last confirmed, and everything once after a registration.

A report that was lost, or whose answer was, is told again under a new sequence. Nobody knows which of the two it was. So
what it told of counts as unknown to the control plane, also where it is again as it was confirmed last: a VM that slept and
woke while an answer was lost would else be asleep there for good.

The last lines of an instance that is not well change all the time. By themselves they are told seldom, since what a node may
send is bounded, and who sends too much is not heard at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from shellwego.core.assignments import NodeReport
from shellwego.core.backups import BackupPhase, ObservedBackup
from shellwego.core.instances import Observed, Phase
from shellwego.core.nodes import NodeFacts
from shellwego.core.replicas import ObservedReplica
from shellwego.core.traffic import NodeTraffic
from shellwego.core.volumes import ObservedVolume

TAIL_AGAIN_S, TAIL_SELDOM_S = 2.0, 30.0
"""Between two reports of an instance of which nothing but its last lines is new: at first, and at most, each time twice as
long. The first lines are told at once, and what a start says comes soon after them."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What was seen at the last look."""

    instances: Mapping[str, Observed] = field(default_factory=dict)
    volumes: Mapping[str, ObservedVolume] = field(default_factory=dict)
    backups: Mapping[str, ObservedBackup] = field(default_factory=dict)
    replicas: Mapping[str, ObservedReplica] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Told:
    at: float
    rest_s: float


class Reports:
    """Builds reports and remembers which were confirmed."""

    def __init__(self) -> None:
        self._confirmed = Sight()
        self._tails: dict[str, _Told] = {}
        """When the last lines of an instance were told."""

    def start_over(self) -> None:
        """Tell everything again: the control plane may have forgotten, or began a new epoch."""
        self._confirmed = Sight()

    def has_news(self, seen: Sight, now: float) -> bool:
        """True where a report is worth sending before the next heart-beat. `now` is monotonic, in seconds."""
        news = self._news(seen, now)
        return bool(news.instances or news.volumes or news.backups or news.replicas)

    def is_urgent(self, seen: Sight, now: float) -> bool:
        """True where it says more than how far a start has come, or how full a volume is, which nothing waits for."""
        news, known = self._news(seen, now), self._confirmed
        return (
            any(_settled(each) != _settled(known.instances.get(id_)) for id_, each in news.instances.items())
            or any(_steady(each) != _steady(known.volumes.get(id_)) for id_, each in news.volumes.items())
            or any(each.phase is not BackupPhase.RUNNING for each in news.backups.values())
            or any(_unmoved(each) != _unmoved(known.replicas.get(id_)) for id_, each in news.replicas.items())
        )

    def build(
        self,
        *,
        node_id: str,
        epoch: int,
        sequence: int,
        facts: NodeFacts,
        seen: Sight,
        now: float,
        traffic: NodeTraffic | None = None,
    ) -> NodeReport:
        """The next report."""
        told = self._news(seen, now)
        self._tails |= {id_: self._telling(id_, each, now) for id_, each in told.instances.items()}
        return NodeReport(
            node_id=node_id,
            epoch=epoch,
            sequence=sequence,
            facts=facts,
            instances={id_: replace(each, epoch=epoch, sequence=sequence) for id_, each in told.instances.items()},
            volumes={id_: replace(each, epoch=epoch, sequence=sequence) for id_, each in told.volumes.items()},
            backups=told.backups,
            replicas={id_: replace(each, epoch=epoch, sequence=sequence) for id_, each in told.replicas.items()},
            traffic=traffic,
        )

    def confirm(self, report: NodeReport, seen: Sight) -> None:
        """The control plane has taken it; `seen` is what is there now."""
        instances = {id_: replace(each, epoch=0, sequence=0) for id_, each in report.instances.items()}
        volumes = {id_: replace(each, epoch=0, sequence=0) for id_, each in report.volumes.items()}
        replicas = {id_: replace(each, epoch=0, sequence=0) for id_, each in report.replicas.items()}
        self._tails = {id_: told for id_, told in self._tails.items() if id_ in seen.instances}
        known = self._confirmed
        self._confirmed = Sight(
            instances={id_: each for id_, each in {**known.instances, **instances}.items() if id_ in seen.instances},
            volumes={id_: each for id_, each in {**known.volumes, **volumes}.items() if id_ in seen.volumes},
            backups={id_: each for id_, each in {**known.backups, **report.backups}.items() if id_ in seen.backups},
            replicas={id_: each for id_, each in {**known.replicas, **replicas}.items() if id_ in seen.replicas},
        )

    def unanswered(self, report: NodeReport) -> None:
        """The control plane may have taken it, or not."""
        known = self._confirmed
        self._confirmed = Sight(
            instances=_without(known.instances, report.instances),
            volumes=_without(known.volumes, report.volumes),
            backups=_without(known.backups, report.backups),
            replicas=_without(known.replicas, report.replicas),
        )

    def _news(self, seen: Sight, now: float) -> Sight:
        """What it does not know yet."""
        known = self._confirmed
        return Sight(
            instances={id_: each for id_, each in seen.instances.items() if self._is_news(id_, each, now)},
            volumes={id_: each for id_, each in seen.volumes.items() if known.volumes.get(id_) != each},
            backups={id_: each for id_, each in seen.backups.items() if known.backups.get(id_) != each},
            replicas={id_: each for id_, each in seen.replicas.items() if known.replicas.get(id_) != each},
        )

    def _is_news(self, id_: str, seen: Observed, now: float) -> bool:
        told = self._tails.get(id_)
        may_wait = told is not None and now < told.at + told.rest_s and self._is_only_tail(id_, seen)
        return self._confirmed.instances.get(id_) != seen and not may_wait

    def _is_only_tail(self, id_: str, seen: Observed) -> bool:
        """Whether nothing but the last lines is other than it knows, and it has some."""
        known = self._confirmed.instances.get(id_)
        return known is not None and bool(known.log_tail) and replace(known, log_tail=seen.log_tail) == seen

    def _telling(self, id_: str, seen: Observed, now: float) -> _Told:
        before = self._tails.get(id_)
        if before is None or not self._is_only_tail(id_, seen):
            return _Told(now, TAIL_AGAIN_S)
        return _Told(now, min(before.rest_s * 2, TAIL_SELDOM_S))


def _without(known: Mapping[str, T], told: Collection[str]) -> Mapping[str, T]:
    return {id_: each for id_, each in known.items() if id_ not in told}


def _settled(seen: Observed | None) -> Observed | None:
    """An observation without what changes in the course of a start; nothing, for an instance that has only just begun."""
    if seen is None or seen.phase is not Phase.STARTING:
        return seen
    return replace(seen, detail="", address="", private_address="") if seen.ends else None


def _unmoved(seen: ObservedReplica | None) -> ObservedReplica | None:
    """An observation without how far a round has come."""
    return None if seen is None else replace(seen, bytes=0)


def _steady(seen: ObservedVolume | None) -> ObservedVolume | None:
    """An observation without what changes in the course of use."""
    if seen is None:
        return None
    snapshots = {id_: replace(each, used_bytes=0) for id_, each in seen.snapshots.items()}
    return replace(seen, used_bytes=0, snapshots=snapshots)
