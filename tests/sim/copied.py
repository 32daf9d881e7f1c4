"""What is true of copies of volumes in a healed platform that was left in peace."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from shellwego.core.moves import MoveStage
from shellwego.core.nodes import Node, NodeHealth
from shellwego.core.replicas import FOREIGN, Replica, ReplicaPurpose, ReplicaState, marked, marker
from shellwego.core.volumes import Presence, Volume
from tests.sim import waits

if TYPE_CHECKING:
    from tests.sim.world import World


def copies(world: World) -> Iterator[str]:
    """None is left of what is gone; each standby follows its volume, or has become it."""
    volumes, nodes = world.rows("volumes"), world.rows("nodes")
    for row in world.rows("replicas").values():
        volume, place = volumes.get(row.volume_id), nodes.get(row.node_id)
        if row.node_id and (place is None or place.health is NodeHealth.DOWN):
            continue
        if volume is not None and _awaits_its_app(row, volume):
            continue
        if volume is None or row.dropping:
            yield f"the copy {row.id} of {row.volume_id} on “{row.node_id}” is {row.state}, and should be gone"
        elif row.purpose is ReplicaPurpose.MOVE and not (volume.moving and waits.for_move(world, volume)):
            yield f"the copy {row.id} of {volume.name} is left of a move"
        elif row.purpose is ReplicaPurpose.STANDBY and place is not None and not volume.lost:
            yield from _standby(world, row, volume, nodes.get(volume.node_id))


def _awaits_its_app(row: Replica, volume: Volume) -> bool:
    """Nothing is left of it; its row goes with the move, which waits for the app to serve again."""
    move = volume.move
    cleared = move is not None and move.stage is MoveStage.CLEARING and move.back_at is None
    return cleared and move.replica_id == row.id and row.observed.presence is Presence.GONE


def _of(row: Replica, snapshots: Collection[str]) -> bool:
    """Whether there is anything of this copy."""
    return any(row.id == found[0] for found in filter(None, map(marked, snapshots)))


def _standby(world: World, row: Replica, volume: Volume, home: Node | None) -> Iterator[str]:
    if home is None or home.health is NodeHealth.DOWN:
        if home is not None and row.taken_at is not None and volume.observed.leased:
            yield f"{volume.name} is lost with {home.name}, and its copy on {row.node_id} has not become it"
        return
    host = next((node for node in world.nodes if node.node_id == row.node_id), None)
    if host is None:
        yield f"the copy {row.id} of {volume.name} is for a node that has not heard yet that it joined"
        return
    kept = host.engine.disks.kept.get(volume.id)
    if volume.observed.presence is not Presence.PRESENT or volume.arriving:
        return
    if row.observed.reason_code == FOREIGN and kept is not None and not _of(row, kept.snapshots):
        return  # what it had under an id of before, which it was removed by
    if (
        row.state is not ReplicaState.FOLLOWING
        or kept is None
        or marker(row.id, row.observed.round) not in kept.snapshots
    ):
        yield f"the copy {row.id} of {volume.name} on {host.name} is {row.state}: {row.observed.reason}"
