"""What holds of volumes, of the memory of those that sleep, and of places that are made by eviction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shellwego.core.instances import Desired, Eviction, Instance, OwnerKind, Phase
from shellwego.core.moves import STAGE_MOVES
from shellwego.core.vms import VmPhase
from shellwego.core.volumes import VOLUME_MOVES, SnapshotState, Volume
from shellwego.ports.store import Transaction, eq

if TYPE_CHECKING:
    from tests.sim.contents import Contents
    from tests.sim.watch import Write
    from tests.sim.world import World

GAP = 10
"""So much lower is the priority of whoever goes for another: as it is promised, whatever the planner has."""
Found = Iterator[tuple[str, str]]


def volume(tx: Transaction, write: Write, contents: Contents) -> Found:
    """It lives in one place, is held by one that lives, and only grows."""
    old, new = write.old, write.new
    if new is None:
        if not (old.deleting or old.lost or not old.node_id):
            yield "lost-write", f"the volume {old.name} is gone, and nobody asked for it"
        return
    if new.instance_id:
        yield from _held(tx, new)
    if old is None:
        return
    if new.state is not old.state and new.state not in VOLUME_MOVES[old.state]:
        yield "declared-transitions", f"the volume {new.name}: {old.state} to {new.state}"
    if old.node_id and new.node_id != old.node_id:
        yield from contents.moved(tx, old, new)
    yield from _staged(old, new)
    rising = (
        (old.size_bytes, new.size_bytes),
        (old.restores, new.restores),
        (old.made, new.made),
        (old.epoch, new.epoch),
    )
    if any(after < before for before, after in (*rising, (old.deleting, new.deleting))):
        yield "declared-transitions", f"the volume {new.name} went back: {old} to {new}"
    if old.instance_id and new.instance_id != old.instance_id and not new.lost:
        holder = tx.instances.get(old.instance_id)
        if holder is not None and holder.live:
            yield "two-owners", f"{new.name} was taken from {holder.id}, which is {holder.phase}"


def _staged(old: Volume, new: Volume) -> Found:
    if new.move is None or old.move is None or new.move.replica_id != old.move.replica_id:
        return
    before, after = old.move.stage, new.move.stage
    if after is not before and after not in STAGE_MOVES[before]:
        yield "declared-transitions", f"the move of {new.name}: {before} to {after}"


def _held(tx: Transaction, held: Volume) -> Found:
    holder = tx.instances.get(held.instance_id)
    if holder is None:
        yield "two-owners", f"{held.name} is held by {held.instance_id}, which is gone"
    elif holder.live and holder.node_id != held.node_id:
        yield "placed-badly", f"{holder.id} is on {holder.node_id}, and its volume {held.name} on {held.node_id}"


def snapshot(tx: Transaction, write: Write) -> Found:
    """It goes when it was to go, or with its volume."""
    old, new = write.old, write.new
    if new is None and old.state not in (SnapshotState.DELETING, SnapshotState.ERROR):
        kept = tx.volumes.get(old.volume_id)
        if kept is not None and not kept.deleting:
            yield "lost-write", f"the snapshot {old.id} is gone, and nobody asked for it"


def evicted(tx: Transaction, old: Instance, new: Instance) -> Found:
    """Whoever makes room matters less than the one that it goes for, ends nothing half done, and holds no volume."""
    if not new.makes_room_for or old.makes_room_for:
        return
    other = tx.instances.get(new.makes_room_for)
    if new.eviction is not Eviction.FORCED or new.owner is not OwnerKind.APP or new.desired is not Desired.SERVE:
        yield "wrong-victim", f"{new.id} is {new.owner}, to {new.desired}, and makes room"
    if tx.volumes.count(eq("instance_id", new.id)):
        yield "wrong-victim", f"{new.id} holds a volume, and makes room"
    if other is None or other.phase is not Phase.PENDING or other.reserved_node_id != new.node_id:
        yield "wrong-victim", f"{new.id} makes room for {new.makes_room_for}, which has no use for it"
    elif new.priority > other.priority - GAP or new.app_id == other.app_id:
        yield "wrong-victim", f"{new.id} ({new.priority}) makes room for {other.id} ({other.priority})"


class Memories:
    """Which VM goes on with which memory. A memory is known by the VM that began it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._last: dict[str, str] = {}
        self._left: dict[str, str] = {}
        """VMs whose memory another one went on with."""

    def woken(self, vm_id: str, memory: str) -> Found:
        """Of all copies of a memory one goes on, and none of the others ever after."""
        if vm_id in self._left:
            yield "two-owners", f"{vm_id} wakes, and {self._left[vm_id]} has gone on with its memory"
        last = self._last.get(memory, memory)
        if last != vm_id:
            self._left[last] = vm_id
        self._last[memory] = vm_id
        for node in self._world.nodes:
            for view in node.engine.views:
                alike = view.vm_id != vm_id and node.engine.memory(view.vm_id) == memory
                if alike and view.phase in (VmPhase.RUNNING, VmPhase.RESUMING):
                    yield "two-owners", f"{vm_id} wakes beside {view.vm_id}, which has the same memory"
