"""Who rightly waits in a platform that was left in peace: for room that there is not, or for a volume that cannot be had.

Reckoned anew from the rows, without the planners.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shellwego.core.instances import Desired, Instance, OwnerKind, Phase
from shellwego.core.moves import PAUSE_S, MoveStage
from shellwego.core.nodes import Node, NodeHealth, Scheduling
from shellwego.core.preemption import GAP, MOST_EVICTED
from shellwego.core.volumes import Volume

if TYPE_CHECKING:
    from tests.sim.world import World


def for_volume(world: World, row: Instance) -> str:
    """Why the instance cannot have its volumes; empty: it can."""
    release = world.rows("releases").get(row.release_id)
    mounts = release.config.mounts_of(row.process) if release and row.owner is OwnerKind.APP else ()
    for mount in mounts:
        volume = world.rows("volumes").get(mount.volume_id)
        if volume is None or volume.deleting or volume.lost:
            return f"the volume {mount.source} is gone"
        if volume.node_id and not is_open(world, volume.node_id):
            return f"the volume {volume.name} is on a node that is closed"
    volumes = (world.rows("volumes")[mount.volume_id] for mount in mounts)
    if len({volume.node_id for volume in volumes if volume.node_id}) > 1:
        return "its volumes came to different nodes"
    return ""


def home(world: World, row: Instance) -> str:
    """The one node where the instance can be; empty: there is none."""
    release = world.rows("releases").get(row.release_id)
    mounts = release.config.mounts_of(row.process) if release and row.owner is OwnerKind.APP else ()
    volumes = (world.rows("volumes").get(mount.volume_id) for mount in mounts)
    return next((volume.node_id for volume in volumes if volume is not None and volume.node_id), "")


def for_room(world: World, row: Instance, *, made: bool = True) -> bool:
    """No open node has room for the instance, and on none could be made any, where that counts: none is made for one that
    serves on where it is. A node that goes down again and again has room for those whose volume it has."""
    nodes = [node for node in world.rows("nodes").values() if is_open(world, node.id)]
    only = home(world, row)
    nodes = [node for node in nodes if (node.id == only if only else node.flapping_since is None)]
    return not any(_fits(world, row, node, made=made) for node in nodes)


def is_open(world: World, node_id: str) -> bool:
    """Whether something new may come to a node."""
    node = world.rows("nodes").get(node_id)
    return node is not None and node.health is NodeHealth.READY and node.scheduling is Scheduling.OPEN


def for_move(world: World, volume: Volume) -> bool:
    """A volume's move rightly waits: for a node, for room there for who has it, or until the app had its time of peace."""
    move, nodes = volume.move, world.rows("nodes")
    if move is None or not move.active:
        return False
    ends = [nodes.get(id_) for id_ in (move.source_node_id, move.target_node_id)]
    if any(node is None or node.health is not NodeHealth.READY for node in ends):
        return True
    paused = bool(move.stops) and world.store_clock.now() < move.stage_at + PAUSE_S
    return move.stage is MoveStage.COPYING and (paused or move.reason.startswith("the app could not follow"))


def is_dead(world: World, volume: Volume) -> bool:
    """Whether nobody can do anything to a volume any more."""
    node = world.rows("nodes").get(volume.node_id)
    return volume.node_id != "" and (node is None or node.health is NodeHealth.DOWN)


def _fits(world: World, row: Instance, node: Node, *, made: bool) -> bool:
    rows = world.rows("instances").values()
    there = [each for each in rows if each.live and node.id in (each.node_id, each.reserved_node_id) and each != row]
    free = node.facts.memory_bytes - sum(each.memory_bytes for each in there)
    victims = sorted(each.memory_bytes for each in there if made and _may_go(world, each, row))
    return free + sum(victims[-MOST_EVICTED:]) >= row.memory_bytes


def _may_go(world: World, victim: Instance, row: Instance) -> bool:
    held = any(volume.instance_id == victim.id for volume in world.rows("volumes").values())
    stays = victim.owner is OwnerKind.APP and victim.desired is Desired.SERVE and not victim.evicted
    low = victim.priority <= row.priority - GAP and victim.app_id != row.app_id
    return low and stays and not held and bool(victim.node_id) and victim.phase is not Phase.PENDING
