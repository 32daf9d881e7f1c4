"""Emptying a node: what has to leave it next, and what the rest waits for. Pure; `now` is an argument.

Theory. A node is emptied by evicting its instances, a few at a time; what an eviction means is the rollout planner's
(`core.slots`): another one comes elsewhere first, so no app has less than is wanted of it. Here is decided only whose turn
it is. An instance for which no node fits is not evicted: it stays and serves, and the filters' own words are what it waits
for. One-off runs are waited for, because half of one may be done.

Evicted instances that cannot go on (their apps are deployed, what came in their place failed, or their apps have too few
elsewhere) hold up no other: only those that move count towards the number that may move at a time.

The volumes of the node stay where they are, unless they are to leave, too: then each is moved by itself, and whoever has one
follows it.

After its deadline the rest is told once, and stopped where that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shellwego.core.fleet import Fleet
from shellwego.core.instances import SERVING, Desired, Eviction, Instance, OwnerKind, Phase
from shellwego.core.nodes import DrainOrder, Node
from shellwego.core.placement import NodeUsage, PlacementRequest, Refusal
from shellwego.core.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainFacts:
    """A node with what is on it, and whatever may come in its place."""

    order: DrainOrder
    instances: tuple[Instance, ...]
    """What lives on the node, of every owner."""
    relatives: Mapping[str, Sequence[Instance]] = field(default_factory=dict)
    """By app: all instances of the apps that have evicted ones here, wherever they are."""
    deploying: frozenset[str] = frozenset()
    """Apps with a deployment that is not finished."""
    aims: Mapping[str, Target] = field(default_factory=dict)
    """By app that has evicted ones here: what it runs while it is not deployed. What was rolled back is not of it."""
    requests: Mapping[str, PlacementRequest] = field(default_factory=dict)
    """By instance that is not evicted yet: what it needs of a node."""
    nodes: tuple[Node, ...] = ()
    usage: Mapping[str, NodeUsage] = field(default_factory=dict)
    volumes: tuple[VolumeLeft, ...] = ()
    """What is there of volumes, where they are to leave, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Why an instance is still there."""

    instance: Instance
    reason: str
    moves: bool = False
    """It is on its way, by itself."""


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
    told = {i.id: _told(facts, i) for i in left if i.owner is OwnerKind.RUN or i.evicted or not _serves(i)}
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
        other = _successor(instance, relatives.get(instance.app_id, ()))
        if other is None or other.phase is Phase.PENDING:
            stay.append(instance.id)
            unneeded += [other.id] if other else []
    return stay, unneeded


def _serves(instance: Instance) -> bool:
    return instance.desired is Desired.SERVE


def _may_be_stopped(instance: Instance) -> bool:
    return _serves(instance) and instance.eviction is not Eviction.FORCED


def _told(facts: DrainFacts, instance: Instance) -> Waiting:
    """Of what is not asked any more: it has begun to leave, or ends by itself."""
    if not _serves(instance):
        doing = "drains" if instance.desired is Desired.DRAIN else "stops"
        return Waiting(instance=instance, reason=doing, moves=True)
    if instance.owner is OwnerKind.RUN:
        return Waiting(instance=instance, reason="is a one-off run that has not ended")
    return _told_of_move(facts, instance, facts.relatives.get(instance.app_id, ()))


def _told_of_move(facts: DrainFacts, instance: Instance, relatives: Sequence[Instance]) -> Waiting:
    """Of what was evicted, and serves until another one does."""
    other = _successor(instance, relatives)
    if other is None and instance.app_id in facts.deploying:
        return Waiting(instance=instance, reason="its app is being deployed")
    other = other or _heir(instance, relatives)
    if other is not None:
        return _told_of_other(instance, other, relatives)
    failed = _failure(instance, relatives)
    if failed is not None:
        why = failed.observed.reason or "it ended"
        return Waiting(instance=instance, reason=f"what came in its place failed: {why}")
    aim = facts.aims.get(instance.app_id)
    if aim is not None and not aim.matches(instance) and (why := _missing(instance, relatives)):
        return _needed(instance, why)
    return Waiting(instance=instance, reason="moves now", moves=True)


def _told_of_other(instance: Instance, other: Instance, relatives: Sequence[Instance]) -> Waiting:
    """Of what another one comes for."""
    if other.phase is Phase.PENDING and other.placement_reason:
        return Waiting(instance=instance, reason=f"another one cannot be placed: {other.placement_reason}")
    if other.phase in SERVING and (why := _missing(instance, [i for i in relatives if i.process == instance.process])):
        return _needed(instance, why)
    if other.memory_of == instance.id:
        return Waiting(instance=instance, reason="its memory goes to another node", moves=True)
    return Waiting(instance=instance, reason=f"another one is {other.phase.value} in its place", moves=True)


def _successor(instance: Instance, relatives: Iterable[Instance]) -> Instance | None:
    """What is meant to serve in the place of an evicted instance."""
    return next((i for i in relatives if _in_place(i, instance) and _comes(i)), None)


def _heir(instance: Instance, relatives: Iterable[Instance]) -> Instance | None:
    """What is meant to serve for its slot: of another release, where its own is not what the app runs any more."""
    return next((i for i in relatives if _for_its_slot(i, instance) and _comes(i)), None)


def _comes(instance: Instance) -> bool:
    return instance.live and _serves(instance) and not instance.evicted


def _failure(instance: Instance, relatives: Iterable[Instance]) -> Instance | None:
    """The last one that was to serve in its place and failed."""
    failed = [i for i in relatives if _in_place(i, instance) and i.phase is Phase.FAILED and _serves(i)]
    later = [i for i in failed if i.created_at >= instance.created_at]
    return max(later, key=lambda i: (i.phase_since, i.id), default=None)


def _needed(instance: Instance, why: str) -> Waiting:
    return Waiting(instance=instance, reason=f"serves until another one of its app does: {why}")


def _missing(instance: Instance, relatives: Iterable[Instance]) -> str:
    """Why there are too few of these without it: for some slot none comes. Empty: they come."""
    beside = [i for i in relatives if i.owner is instance.owner and i.id != instance.id and _serves(i)]
    coming = {(i.process, i.slot) for i in beside if _comes(i)}
    unplaced = [i.placement_reason for i in beside if _comes(i) and i.phase is Phase.PENDING and i.placement_reason]
    failed = [
        i.observed.reason or "it ended"
        for i in beside
        if i.phase is Phase.FAILED and (i.process, i.slot) not in coming and i.created_at >= instance.created_at
    ]
    return next(iter((*unplaced, *failed)), "")


def _in_place(other: Instance, instance: Instance) -> bool:
    """Of the same content, for the same slot."""
    content = (instance.content_hash, instance.generation)
    return _for_its_slot(other, instance) and content == (other.content_hash, other.generation)


def _for_its_slot(other: Instance, instance: Instance) -> bool:
    place = (instance.owner, instance.process, instance.slot)
    return other.id != instance.id and place == (other.owner, other.process, other.slot)


def _obstacle(fleet: Fleet, request: PlacementRequest) -> str:
    """Why the instance could not be elsewhere; empty where it could, which is then counted in."""
    outcome = fleet.place(request)
    if isinstance(outcome, Refusal):
        return outcome.reason
    fleet.take(outcome.node_id, request)
    return ""
