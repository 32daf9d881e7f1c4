"""May a standby replica become the volume now? Pure.

Theory. A volume's node that is judged down is lost with all that ran there. The judgement raised the node's epoch, so
nothing that it says of the time before counts, and no lease is renewed for it. A VM that may still run there with the
volume had a lease, and has ended once that lease is over. The control plane knows that it is over from a silence that
it listened to itself (`Node.leases_over`), and relies on that only where the node had reported that it enforces leases
(`ObservedVolume.leased`). Then, in one transaction, the volume moves to where its replica is, under a higher epoch of
its own. What the old node still has becomes a copy that was left behind: nothing is sent to it, no VM begins with it,
and it is deleted only when somebody says so, because what was written last is nowhere else.

What is lost is what was written after the round that the replica holds: at most the time from the request for that
round until the node was last heard and, where the node was cut off but lived, what it wrote until its lease ran out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shellwego.core.nodes import Node, NodeHealth
from shellwego.core.replicas import Replica, ReplicaPurpose
from shellwego.core.volumeleases import OVER_S
from shellwego.core.volumes import Volume


@dataclass(frozen=True, slots=True)
class PromotionFault:
    """Why not."""

    code: str
    message: str


def standby_of(replicas: Iterable[Replica]) -> Replica | None:
    """A volume's standby replica, wherever it is; None: it has none, or none that is to stay."""
    return next((each for each in replicas if each.purpose is ReplicaPurpose.STANDBY and not each.dropping), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionFacts:
    """All that it depends on."""

    volume: Volume
    standby: Replica | None
    home: Node | None
    """The volume's node."""
    place: Node | None
    """That of the standby."""
    now: float


def promotion_fault(facts: PromotionFacts) -> PromotionFault | None:
    """Why the standby cannot become the volume; None: it can."""
    return next((fault for look in (_of_volume, _of_home, _of_standby) for fault in look(facts)), None)


def _of_volume(facts: PromotionFacts) -> Iterator[PromotionFault]:
    if facts.volume.deleting or facts.volume.lost:
        how = "being deleted" if facts.volume.deleting else "lost"
        yield PromotionFault("volume-gone", f"the volume is {how}")
    if facts.standby is None:
        yield PromotionFault("no-standby", "it has no standby copy")


def _of_home(facts: PromotionFacts) -> Iterator[PromotionFault]:
    home = facts.home
    if home is None or home.health is not NodeHealth.DOWN:
        told = f"the node {home.name} is {home.health.value}" if home else "it lives on no node"
        yield PromotionFault("home-lives", f"its node is not down: {told}")
    elif not facts.volume.observed.leased:
        yield PromotionFault("never-fenced", f"the node {home.name} did not say that it ends what has the volume there")
    elif not home.leases_over:
        wait_s = max(home.last_heard_at + OVER_S - facts.now, 1.0)
        told = f"what runs on the node {home.name} may have the volume for about {wait_s:.0f} s more"
        yield PromotionFault("lease-runs", told)


def _of_standby(facts: PromotionFacts) -> Iterator[PromotionFault]:
    place = facts.place
    if facts.standby is not None and facts.standby.taken_at is None:
        yield PromotionFault("standby-empty", "its standby copy holds nothing whole yet")
    if place is None or place.health is not NodeHealth.READY:
        told = f"on {place.name}, which is {place.health.value}" if place else "on no node"
        yield PromotionFault("standby-away", f"its standby copy is {told}")


def lost_s(standby: Replica, home: Node) -> float:
    """How many seconds of what was written the standby has not, as far as the node was heard."""
    return 0.0 if standby.taken_at is None else max(home.last_heard_at - standby.taken_at, 0.0)
