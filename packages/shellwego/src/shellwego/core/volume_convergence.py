"""What an agent does next about its volumes. Pure: orders and looks in, actions and observations out.

Theory. As with instances (`core.convergence`) each look compares what is to be there with what the host has, and gives at
most one order a volume; what was tried and failed is a value that goes in and comes out. Three differences:

* What no order names is left alone. Silence destroys no data.
* What was there once and is missing is told as lost, never made again: an empty volume would look like a whole one.
* A VM begins only once each of its volumes is there, large enough, not being put back, and held by no other VM that has not
  ended. So a node that comes back with an instance that was judged lost stops that one first, whatever came in its place.

An encrypted volume is made with its key, and opened with it again wherever the host has forgotten it, as an engine that
starts has. Until then no VM that mounts it begins; one that runs goes on.

A restore is done once: by its number, which is remembered and told. An agent that died between doing and telling does it
again, and nothing is lost by that, because until it is told nothing that mounts the volume is placed.

A standby copy that becomes the volume is put back to a round, since a later one may have come halfway. The round that was
told may have been deleted here since, because the next had come whole: then it is put back to that one. Where no round is
left, nothing says that the data is whole, so that restore is never given up and nobody gets the volume. Markers stay until
the restore was told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from shellwego.core.assignments import SnapshotOrder, VolumeOrder, Workload
from shellwego.core.errors import ShellWeGoError
from shellwego.core.replicas import marked, marker
from shellwego.core.vms import VmPhase, VmView
from shellwego.core.volumes import ObservedSnapshot, ObservedVolume, Presence, SnapshotView, VolumeView

RETRY_S = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Pause after the first failure of an order in a row, the second, …; so that all is well within 30 s of what hindered it."""
_MISSING = "its data is not on this node any more"
_IN_CLEAR = "its node keeps it in clear, and it is to be encrypted"
_NO_ROUND = 1 << 31
"""Beyond every round: of a replica that there is not, no marker is needed."""
_STEPS = 100
"""What a volume uses is told in so many steps of its size, or each write would be news."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMemory:
    """What is remembered of one volume between two looks."""

    failures: int = 0
    next_try: float = 0.0
    reason: str = ""
    reason_code: str = ""
    restored: int = 0
    restore_reason: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Snapshots that cannot be taken, and why."""
    tried: VolumeAction | None = None
    """What failed last, and is tried again; None: nothing did since something succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolume:
    volume_id: str
    size_bytes: int
    encrypted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneVolume:
    volume_id: str
    snapshot_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FillVolume:
    """Make it of a backup."""

    volume_id: str
    backup_id: str
    encrypted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlockVolume:
    volume_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeVolume:
    volume_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeSnapshot:
    volume_id: str
    snapshot_id: str
    freeze: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreVolume:
    volume_id: str
    snapshot_id: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteSnapshot:
    volume_id: str
    snapshot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteVolume:
    volume_id: str


VolumeAction = (
    CreateVolume
    | CloneVolume
    | FillVolume
    | UnlockVolume
    | ResizeVolume
    | TakeSnapshot
    | RestoreVolume
    | DeleteSnapshot
    | DeleteVolume
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeConvergence:
    """One look's outcome, as `convergence.Convergence`."""

    actions: tuple[VolumeAction, ...] = ()
    observed: Mapping[str, ObservedVolume] = field(default_factory=dict)
    wake_at: float | None = None


def converge_volumes(
    orders: Iterable[VolumeOrder],
    views: Iterable[VolumeView],
    memories: Mapping[str, VolumeMemory],
    under_way: Collection[str],
    now: float,
    *,
    leased: Collection[str] = (),
) -> VolumeConvergence:
    """What to do so that each volume is as ordered, and what to tell of it. `under_way` are volumes with an action that has
    not ended: they get no other, and nothing is said of what it may still bring. `leased` are those whose leases the host
    enforces."""
    seen = {view.volume_id: view for view in views}
    actions: list[VolumeAction] = []
    observed: dict[str, ObservedVolume] = {}
    due: list[float] = []
    for order in orders:
        view, memory = seen.get(order.volume_id), memories.get(order.volume_id, VolumeMemory())
        working = order.volume_id in under_way
        held = bool(order.lease_s) and order.volume_id in leased
        observed[order.volume_id] = _observe(order, view, memory, working=working, leased=held)
        action = None if working else next(_wanted(order, view, memory), None)
        if action is not None and (now >= memory.next_try or action != memory.tried):
            actions.append(action)
        elif action is not None:
            due.append(memory.next_try)
    return VolumeConvergence(actions=tuple(actions), observed=observed, wake_at=min(due, default=None))


def done(memory: VolumeMemory, action: VolumeAction) -> VolumeMemory:
    """The memory after an action that succeeded."""
    kept = replace(memory, failures=0, next_try=0.0, reason="", reason_code="", tried=None)
    if isinstance(action, RestoreVolume):
        return replace(kept, restored=action.number, restore_reason="")
    return kept


def failed(memory: VolumeMemory, action: VolumeAction, error: ShellWeGoError, now: float) -> VolumeMemory:
    """The memory after an action that failed. A snapshot or a restore that can never be is given up, and told so; the rest
    is tried again, ever more slowly, each action by itself: another, of an order that has changed, is not kept waiting."""
    if not error.temporary and isinstance(action, TakeSnapshot):
        return replace(memory, refused={**memory.refused, action.snapshot_id: error.message})
    if not error.temporary and isinstance(action, RestoreVolume) and marked(action.snapshot_id) is None:
        return replace(memory, restored=action.number, restore_reason=error.message)
    before = memory.failures if action == memory.tried else 0
    return replace(
        memory,
        failures=before + 1,
        next_try=now + RETRY_S[min(before, len(RETRY_S) - 1)],
        reason=error.message,
        reason_code=error.code,
        tried=action,
    )


@dataclass(frozen=True, slots=True)
class VolumeSight:
    """All that is known of a node's volumes at one look, by their ids."""

    orders: Mapping[str, VolumeOrder]
    views: Mapping[str, VolumeView]
    memories: Mapping[str, VolumeMemory]


def obstacle(instance_id: str, workload: Workload, sight: VolumeSight, vms: Iterable[VmView]) -> str:
    """Why a VM of the instance cannot begin yet, as far as its volumes go; empty: it can."""
    known = {vm.vm_id: vm for vm in vms}
    for mount in workload.mounts:
        order, view = sight.orders.get(mount.volume_id), sight.views.get(mount.volume_id)
        memory = sight.memories.get(mount.volume_id, VolumeMemory())
        fault = _unready(order, view, memory)
        if not fault and view is not None and view.vm_id and _keeps(known.get(view.vm_id), instance_id):
            fault = f"is still held by the VM {view.vm_id}"
        if fault:
            return f"the volume {mount.name} {fault}"
    return ""


def _unready(order: VolumeOrder | None, view: VolumeView | None, memory: VolumeMemory) -> str:
    """Why nobody can have the volume yet; empty: one can."""
    if view is None:
        return "is not made yet"
    if order is None or not order.present:
        return "is no longer this node's"
    if order.closed or order.restore_snapshot_id:
        return "is on its way to another node" if order.closed else "is being restored"
    if view.size_bytes < order.size_bytes:
        return "is not as large yet as it is to be"
    if order.encrypted and not view.encrypted:
        return "is kept in clear by its node, and is to be encrypted"
    return f"is locked: {memory.reason or 'its key was not had yet'}" if view.locked else ""


def _keeps(holder: VmView | None, instance_id: str) -> bool:
    """Whether the VM that has a volume keeps it from an instance. One that was not seen yet does."""
    return holder is None or (holder.phase is not VmPhase.ENDED and holder.instance_id != instance_id)


def _wanted(order: VolumeOrder, view: VolumeView | None, memory: VolumeMemory) -> Iterator[VolumeAction]:
    """What is to be done, the first thing first. Nothing takes a volume from the VM that has it."""
    if not order.present:
        if view is not None and not view.vm_id:
            for left in view.snapshots:  # markers, of copies that go with it: the user's own were deleted before
                yield DeleteSnapshot(volume_id=order.volume_id, snapshot_id=left.snapshot_id)
            yield DeleteVolume(volume_id=order.volume_id)
        return
    if view is None:
        if not order.made:
            yield _birth(order)
        return
    yield from _change(order, view, memory)
    yield from _snapshot(order, view, memory)


def _change(order: VolumeOrder, view: VolumeView, memory: VolumeMemory) -> Iterator[VolumeAction]:
    if order.restore_snapshot_id and order.restore > memory.restored and not view.vm_id:
        wanted = _whole(order.restore_snapshot_id, view)
        yield RestoreVolume(volume_id=order.volume_id, snapshot_id=wanted, number=order.restore)
    if view.locked:  # by a key that may open it only once it was put back: its header may be damaged
        yield UnlockVolume(volume_id=order.volume_id)
    if view.size_bytes < order.size_bytes:
        yield ResizeVolume(volume_id=order.volume_id, size_bytes=order.size_bytes)


def _whole(wanted: str, view: VolumeView) -> str:
    """The snapshot to restore: of a copy that had a later round when it became the volume, that one."""
    asked, there = marked(wanted), [snapshot.snapshot_id for snapshot in view.snapshots]
    if asked is None or wanted in there:
        return wanted
    rounds = [found for found in map(marked, there) if found is not None and found[0] == asked[0] and found > asked]
    return marker(*max(rounds, default=asked))


def _snapshot(order: VolumeOrder, view: VolumeView, memory: VolumeMemory) -> Iterator[VolumeAction]:
    there = [snapshot.snapshot_id for snapshot in view.snapshots]
    for each in order.snapshots:
        if not each.present and each.snapshot_id in there:
            yield DeleteSnapshot(volume_id=order.volume_id, snapshot_id=each.snapshot_id)
        wanted = each.present and not each.made and each.snapshot_id not in there
        if wanted and each.snapshot_id not in memory.refused:
            yield TakeSnapshot(volume_id=order.volume_id, snapshot_id=each.snapshot_id, freeze=each.freeze)
    for snapshot_id in there:
        of = marked(snapshot_id)
        if of is not None and order.replicas.get(of[0], _NO_ROUND) > of[1] and not order.restore_snapshot_id:
            yield DeleteSnapshot(volume_id=order.volume_id, snapshot_id=snapshot_id)


def _birth(order: VolumeOrder) -> VolumeAction:
    if order.source_backup_id:
        return FillVolume(volume_id=order.volume_id, backup_id=order.source_backup_id, encrypted=order.encrypted)
    if order.source_snapshot_id:
        return CloneVolume(volume_id=order.volume_id, snapshot_id=order.source_snapshot_id, size_bytes=order.size_bytes)
    return CreateVolume(volume_id=order.volume_id, size_bytes=order.size_bytes, encrypted=order.encrypted)


def _observe(
    order: VolumeOrder, view: VolumeView | None, memory: VolumeMemory, *, working: bool, leased: bool
) -> ObservedVolume:
    if view is None:
        gone = not order.present and not working
        missing = order.made and order.present
        return ObservedVolume(
            presence=Presence.GONE if gone else Presence.ABSENT,
            restored=memory.restored,
            restore_reason=memory.restore_reason,
            reason=_MISSING if missing else memory.reason,
            reason_code="volume-missing" if missing else memory.reason_code,
            leased=leased,
        )
    there = {snapshot.snapshot_id: snapshot for snapshot in view.snapshots}
    in_clear = order.encrypted and not view.encrypted
    return ObservedVolume(
        presence=Presence.PRESENT,
        restored=memory.restored,
        restore_reason=memory.restore_reason,
        reason=_IN_CLEAR if in_clear else memory.reason,
        reason_code="volume-in-clear" if in_clear else memory.reason_code,
        leased=leased,
        size_bytes=view.size_bytes,
        used_bytes=_rounded(view.used_bytes, view.size_bytes),
        snapshots={
            each.snapshot_id: _observe_snapshot(each, there.get(each.snapshot_id), memory, view, working=working)
            for each in order.snapshots
        },
    )


def _observe_snapshot(
    order: SnapshotOrder, found: SnapshotView | None, memory: VolumeMemory, view: VolumeView, *, working: bool
) -> ObservedSnapshot:
    if found is not None:
        used = _rounded(found.used_bytes, view.size_bytes)
        return ObservedSnapshot(presence=Presence.PRESENT, used_bytes=used)
    if not order.present:
        return ObservedSnapshot(presence=Presence.ABSENT if working else Presence.GONE)
    if order.made:
        return ObservedSnapshot(presence=Presence.REFUSED, reason=_MISSING)
    refusal = memory.refused.get(order.snapshot_id, "")
    return ObservedSnapshot(presence=Presence.REFUSED if refusal else Presence.ABSENT, reason=refusal)


def _rounded(used: int, size: int) -> int:
    """Up to the next step."""
    step = max(size // _STEPS, 1)
    return -(-used // step) * step
