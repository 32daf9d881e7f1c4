"""Emptying a node: what has to leave it next, and what the rest waits for. Pure; `now` is an argument.

Theory. A node is emptied by evicting its instances, a few at a time; what an eviction means is the rollout planner's
(`core.slots`): another one comes elsewhere first, so no app has less than is wanted of it. Here is decided only whose turn
it is. An instance for which no node fits is not evicted: it stays and serves, and the filters' own words are what it waits
for. One-off runs are waited for, because half of one may be done.

Only what moves counts towards the number that may move at a time: an evicted instance that cannot go on (`core.evicted`),
and a volume whose move waits for something, hold up no other.

The volumes of the node stay where they are, unless they are to leave, too: then each is moved by itself, and whoever has one
follows it.

After its deadline the rest is told once, and stopped where that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shellwego.core.evicted import EvictedFacts, Waiting, successor, waits_for
from shellwego.core.fleet import Fleet
from shellwego.core.instances import Desired, Eviction, Instance, OwnerKind, Phase
from shellwego.core.nodes import DrainOrder, Node
from shellwego.core.placement import NodeUsage, PlacementRequest, Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainFacts:
    """A node with what is on it, and whatever may come in its place."""

    order: DrainOrder
    instances: tuple[Instance, ...]
    """What lives on the node, of every owner."""
    evicted: EvictedFacts = field(default_factory=EvictedFacts)
    requests: Mapping[str, PlacementRequest] = field(default_factory=dict)
    """By instance that is not evicted yet: what it needs of a node."""
    nodes: tuple[Node, ...] = ()
    usage: Mapping[str, NodeUsage] = field(default_factory=dict)
    volumes: tuple[VolumeLeft, ...] = ()
    """What is there of volumes, where they are to leave, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLeft:
    """A volume that is to leave the node as well, with the instance that has it."""

    volume_id: str
    name: str
    instance_id: str = ""
    target: str = ""
    """Where it could go now; empty: nowhere, or it is on its way."""
    moving: bool = False
    """It is on its way, by itself."""
    reason: str = ""
    """What it waits for."""

    def told(self, reason: str, *, moving: bool = False, target: str = "") -> VolumeLeft:
        """The volume with what is known of its way."""
        return replace(self, reason=reason, moving=moving, target=target)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainPlan:
    evict: tuple[str, ...] = ()
    """Instances whose turn it is."""
    stop: tuple[str, ...] = ()
    """Instances and one-off runs that go now, though nothing may have come in their place."""
    waiting: tuple[Waiting, ...] = ()
    """Everything that is left: what does not move first, then by app and place."""
    move: tuple[VolumeLeft, ...] = ()
    """Volumes whose turn it is."""
    volumes: tuple[VolumeLeft, ...] = ()
    """All that are left."""
    overdue: bool = False
    """The deadline has passed."""

    @property
    def done(self) -> bool:
        return not self.waiting and not self.volumes


def plan_drain(facts: DrainFacts, now: float) -> DrainPlan:
    """Whose turn it is, and what everything that is left waits for."""
    order = facts.order
    overdue = order.deadline is not None and now >= order.deadline
    left = sorted(facts.instances, key=lambda i: (i.app_id, i.process, i.slot, i.id))
    told = {i.id: _told(facts, i, now) for i in left if i.owner is OwnerKind.RUN or i.evicted or not _serves(i)}
    volumes, move = _volumes(facts)
    told |= {i.id: waiting for i in left if i.id not in told and (waiting := _held_by_volume(i, volumes)) is not None}
    staying = [i for i in left if i.id not in told]
    room = max(0, order.parallel - sum(waiting.moves for waiting in told.values()))
    evict: list[str] = []
    fleet = Fleet(facts.nodes, facts.usage)
    for instance in staying:
        obstacle = _obstacle(fleet, facts.requests[instance.id])
        moves = not obstacle and len(evict) < room
        if moves:
            evict.append(instance.id)
        turn = "moves now" if moves else f"waits for its turn: {order.parallel} move at a time"
        told[instance.id] = Waiting(instance=instance, reason=obstacle or turn, moves=moves)
    return DrainPlan(
        evict=tuple(evict),
        stop=tuple(i.id for i in left if _may_be_stopped(i)) if overdue and order.force else (),
        waiting=tuple(sorted((told[i.id] for i in left), key=lambda waiting: waiting.moves)),
        move=move,
        volumes=volumes,
        overdue=overdue,
    )


def _volumes(facts: DrainFacts) -> tuple[tuple[VolumeLeft, ...], tuple[VolumeLeft, ...]]:
    """All that are left, and of them those whose turn it is."""
    room = max(0, facts.order.parallel - sum(volume.moving for volume in facts.volumes))
    turn = [volume for volume in facts.volumes if volume.target and not volume.moving][:room]
    return tuple(replace(v, reason="moves now", moving=True) if v in turn else v for v in facts.volumes), tuple(turn)


def _held_by_volume(instance: Instance, volumes: Iterable[VolumeLeft]) -> Waiting | None:
    """An instance whose volume leaves follows that."""
    own = next((volume for volume in volumes if volume.instance_id == instance.id), None)
    if own is None:
        return None
    return Waiting(instance=instance, reason=f"its volume {own.name} {own.reason}", moves=own.moving)


def released(instances: Iterable[Instance], relatives: Mapping[str, Sequence[Instance]]) -> tuple[list[str], list[str]]:
    """Where a node is not to be emptied any more: the evicted instances that may stay, and those that would have come in
    their place and have no node yet, so that nobody needs them. What has begun to move elsewhere goes on, and so does what
    makes room for another."""
    stay, unneeded = [], []
    for instance in instances:
        if not instance.live or not _serves(instance) or not instance.evicted or instance.preempted:
            continue
        other = successor(instance, relatives.get(instance.app_id, ()))
        if other is None or other.phase is Phase.PENDING:
            stay.append(instance.id)
            unneeded += [other.id] if other else []
    return stay, unneeded


def _serves(instance: Instance) -> bool:
    return instance.desired is Desired.SERVE


def _may_be_stopped(instance: Instance) -> bool:
    return _serves(instance) and instance.eviction is not Eviction.FORCED


def _told(facts: DrainFacts, instance: Instance, now: float) -> Waiting:
    """Of what is not asked any more: it has begun to leave, or ends by itself."""
    if _serves(instance) and instance.owner is OwnerKind.RUN:
        return Waiting(instance=instance, reason="is a one-off run that has not ended")
    return waits_for(facts.evicted, instance, now)


def _obstacle(fleet: Fleet, request: PlacementRequest) -> str:
    """Why the instance could not be elsewhere; empty where it could, which is then counted in."""
    outcome = fleet.place(request)
    if isinstance(outcome, Refusal):
        return outcome.reason
    fleet.take(outcome.node_id, request)
    return ""
