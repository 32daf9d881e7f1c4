"""What an agent does next about the copies that it keeps of other nodes' volumes. Pure, as `core.volume_convergence`.

Theory. What a copy holds is told by its snapshots: the markers of its replica, and the volume's own snapshots that come
along, each before the marker of its round, the oldest first. The next snapshot is fetched on top of the youngest one
that is there; then the marker before is deleted. Snapshots that the volume no longer has are deleted before anything is
fetched, because the youngest one could be among them. A marker that this agent did not receive itself ends the round that is
wanted only after the copy was reset to it, since the process that received it may have ended halfway through what came next;
until then nothing is reported. That of a round before is told at once: it got its name when it was whole, and whoever makes
the copy the volume resets it. Where the volume's node is dead, nothing else will ever be told of this copy.

Where the volume's node no longer has the marker that the copy is based on, or the two markers differ, the copy is
deleted and made anew. A snapshot that the volume's node no longer has was deleted there, and the next order says so.
Data that lies here under the volume's id, but never belonged to this replica, is left alone and reported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from shellwego.core.errors import InvalidError, ShellWeGoError
from shellwego.core.replicas import FOREIGN, ObservedReplica, ReplicaOrder, marked, marker
from shellwego.core.volume_convergence import RETRY_S, DeleteSnapshot
from shellwego.core.volumes import Presence, VolumeView

NO_BASE = "marker-not-found"
"""Code by which the volume's node says that it has not the snapshot any more that the copy is based on."""
_TEMPORARY_RETRY_S = RETRY_S[:-1]
_FOREIGN = "a volume of this id is here that is no copy of this replica"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMemory:
    """What is remembered of one copy between two looks."""

    failures: int = 0
    next_try: float = 0.0
    reason: str = ""
    reason_code: str = ""
    sure: int = 0
    """The round that the copy is known to hold; 0: none is."""
    bytes: int = 0
    """Received in the round under way, or else in the last."""
    digest: str = ""
    anew: bool = False
    """The copy goes, and is made from nothing."""
    tried: ReplicaAction | None = None
    """What failed last; None: nothing did since something succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receive:
    """Fetch a snapshot, as what differs from `since` (empty: whole). One that is here is only made the copy's content."""

    replica_id: str
    volume_id: str
    round: int
    snapshot_id: str
    since: str
    held: int
    """The last round that the copy holds; 0: it is only being made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """Remove the copy, with all that it has: at once, for what is left of half of one would be nobody's."""

    volume_id: str


ReplicaAction = Receive | DeleteSnapshot | Discard


class Load(StrEnum):
    """What an action is to the node that carries it out: none of one kind waits for one of another."""

    COPY = "copy"
    """Part of a first round, which may be as large as the volume and take hours."""
    DIFFERENCE = "difference"
    """Part of a later round. A move's last one is among them, and while that is waited for an app is stopped."""
    REMOVAL = "removal"
    """Nothing comes for it."""


def load_of(action: ReplicaAction) -> Load:
    """Which kind of load an action is."""
    match action:
        case Receive():
            return Load.DIFFERENCE if action.held else Load.COPY
        case DeleteSnapshot() | Discard():
            return Load.REMOVAL


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConvergence:
    """One look's outcome, as `convergence.Convergence`."""

    actions: tuple[tuple[ReplicaOrder, ReplicaAction], ...] = ()
    observed: Mapping[str, ObservedReplica] = field(default_factory=dict)
    wake_at: float | None = None


def converge_replicas(
    orders: Iterable[ReplicaOrder],
    views: Iterable[VolumeView],
    memories: Mapping[str, ReplicaMemory],
    under_way: Collection[str],
    now: float,
) -> ReplicaConvergence:
    """What to do so that each copy is as ordered, and what to tell of it; `under_way` are replicas with an action that has
    not ended."""
    seen = {view.volume_id: view for view in views}
    actions: list[tuple[ReplicaOrder, ReplicaAction]] = []
    observed: dict[str, ObservedReplica] = {}
    due: list[float] = []
    for order in orders:
        view, memory = seen.get(order.volume_id), memories.get(order.replica_id, ReplicaMemory())
        working = order.replica_id in under_way
        told = _observe(order, view, memory, working=working)
        if told is not None:
            observed[order.replica_id] = told
        action = None if working else next(_wanted(order, view, memory), None)
        if action is not None and (now >= memory.next_try or _is_another(action, memory)):
            actions.append((order, action))
        elif action is not None:
            due.append(memory.next_try)
    return ReplicaConvergence(actions=tuple(actions), observed=observed, wake_at=min(due, default=None))


def done(memory: ReplicaMemory, order: ReplicaOrder, action: ReplicaAction, digest: str = "") -> ReplicaMemory:
    """The memory after an action that succeeded."""
    kept = replace(memory, failures=0, next_try=0.0, reason="", reason_code="", anew=False, tried=None)
    match action:
        case Receive() if action.snapshot_id == marker(order.replica_id, action.round):
            return replace(kept, sure=action.round, digest=digest or kept.digest)
        case Discard():
            return ReplicaMemory()
        case Receive() | DeleteSnapshot():
            return kept


def failed(memory: ReplicaMemory, action: ReplicaAction, error: ShellWeGoError, now: float) -> ReplicaMemory:
    """The memory after an action that failed: it is tried again, ever more slowly, but each 10 s where somebody does not
    answer, for that may be over at any moment; anew, where what the copy is based on is the reason: then something else is
    tried, however often this was. How often counts for each action by itself."""
    base = action.since if isinstance(action, Receive) else ""
    lost = error.code == NO_BASE and marked(base) is not None
    differs = bool(base) and isinstance(error, InvalidError)
    before = 0 if lost or differs or action != memory.tried else memory.failures
    pauses = _TEMPORARY_RETRY_S if error.temporary else RETRY_S
    return replace(
        memory,
        failures=before + 1,
        next_try=now + pauses[min(before, len(pauses) - 1)],
        reason=error.message,
        reason_code=error.code,
        anew=memory.anew or lost or differs or isinstance(action, Discard),
        tried=action,
    )


def _is_another(action: ReplicaAction, memory: ReplicaMemory) -> bool:
    """Another action than the one that failed and pauses: the order has changed since. To begin anew is none, for it may
    fail in the same way each time."""
    return action != memory.tried and not memory.anew


def _wanted(order: ReplicaOrder, view: VolumeView | None, memory: ReplicaMemory) -> Iterator[ReplicaAction]:
    """What is to be done, the first thing first."""
    there = [] if view is None else _snapshots(view)
    if not order.present or memory.anew or _is_of_another_time(order, there):
        if view is not None:
            yield from _removal(view)
            return
        if not order.present:
            return
    wanted = marker(order.replica_id, order.round)
    if wanted in there:
        if memory.sure != order.round:
            yield _receive(order, wanted, "", order.round)
        yield from _deletions(order, (*_past(there, wanted), *_gone(order, there)))
        return
    held = _held(order, there)
    if view is not None and _is_of_another(order, there):
        return
    if view is not None and not held and not any(each in there for each in order.chain):
        if _gone(order, there):  # what it began with was deleted, and nothing came after it
            yield from _removal(view)
        return
    yield from _deletions(order, _gone(order, there))
    coming = order.coming if held else order.chain
    along = [each for each in coming if each in there]
    base = marker(order.replica_id, held) if held else ""
    following = next(each for each in (*coming, wanted) if each not in there)
    yield _receive(order, following, along[-1] if along else base, held)


def _removal(view: VolumeView) -> Iterator[ReplicaAction]:
    """Nothing is taken from a VM that has it."""
    if not view.vm_id:
        yield Discard(volume_id=view.volume_id)


def _deletions(order: ReplicaOrder, snapshots: Iterable[str]) -> Iterator[ReplicaAction]:
    return (DeleteSnapshot(volume_id=order.volume_id, snapshot_id=each) for each in snapshots)


def _snapshots(view: VolumeView) -> list[str]:
    return [snapshot.snapshot_id for snapshot in view.snapshots]


def _gone(order: ReplicaOrder, there: Iterable[str]) -> list[str]:
    return [each for each in there if each in order.gone]


def _receive(order: ReplicaOrder, snapshot_id: str, since: str, held: int) -> Receive:
    return Receive(
        replica_id=order.replica_id,
        volume_id=order.volume_id,
        round=order.round,
        snapshot_id=snapshot_id,
        since=since,
        held=held,
    )


def _past(there: Iterable[str], wanted: str) -> Iterator[str]:
    return (each for each in there if marked(each) is not None and each != wanted)


def _held(order: ReplicaOrder, there: Iterable[str]) -> int:
    """The youngest round whose marker is here; 0: none is."""
    found = filter(None, map(marked, there))
    return max((round_ for replica_id, round_ in found if replica_id == order.replica_id), default=0)


def _is_of_another(order: ReplicaOrder, there: Iterable[str]) -> bool:
    """Markers of another replica and none of this one are here: what a node has that was removed, and joined anew. The
    volume's snapshots may be among it, and are no beginning of this copy."""
    markers = [found[0] for found in map(marked, there) if found is not None]
    return bool(markers) and order.replica_id not in markers


def _is_of_another_time(order: ReplicaOrder, there: Iterable[str]) -> bool:
    return order.anew and 0 < _held(order, there) < order.round


def _observe(
    order: ReplicaOrder, view: VolumeView | None, memory: ReplicaMemory, *, working: bool
) -> ObservedReplica | None:
    """What is told; None: that is not known yet."""
    told = ObservedReplica(bytes=memory.bytes, reason=memory.reason, reason_code=memory.reason_code)
    if view is None:
        gone = not order.present and not working
        return replace(told, presence=Presence.GONE if gone else Presence.ABSENT)
    there = _snapshots(view)
    own = tuple(sorted(each for each in there if marked(each) is None))
    told = replace(told, presence=Presence.PRESENT, snapshots=own)
    held = _held(order, there)
    if not order.present or memory.anew or held < memory.sure or _is_of_another_time(order, there):
        return told
    if not held:
        known = any(each in there for each in (*order.chain, *order.gone))
        foreign = not working and (not known or _is_of_another(order, there))
        return replace(told, reason=_FOREIGN, reason_code=FOREIGN) if foreign else told
    if held == order.round and memory.sure != held:
        return told if memory.reason else None
    return replace(told, round=held, snapshot_id=marker(order.replica_id, held), digest=memory.digest)
