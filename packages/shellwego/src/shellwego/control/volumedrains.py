"""Volumes that leave a node that is emptied, where that was asked for: each goes by a move of its own (`volumemoves`).

A move that stopped the app in vain as often as it may is not begun again to the same node: that would be another whole copy
and as many stops, and so on as long as the node is emptied. The volume goes to another node, or stays, and the reason is
told. Only a person knows that it would be otherwise now, and says so by a move to that node, or by an order to drain that is
given anew; a node that joins, or has room now, was not tried and needs no such word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from shellwego.control.facts import node_usage
from shellwego.control.unit import Unit
from shellwego.control.volumemoves import begin_move, refuse_immovable, unfit
from shellwego.core.drain import VolumeLeft
from shellwego.core.errors import ConflictError
from shellwego.core.moves import IN_VAIN
from shellwego.core.nodes import Node
from shellwego.core.placement import NOTHING, room_on
from shellwego.core.replicas import ReplicaPurpose
from shellwego.core.volumes import Volume
from shellwego.ports.store import Transaction, eq

_TOLD = 3
"""Nodes, of those that cannot have a volume."""


def volumes_left(tx: Transaction, node: Node) -> tuple[VolumeLeft, ...]:
    """What is on a node of volumes, and where each could go."""
    here = [volume for volume in tx.volumes.select(eq("node_id", node.id)) if not volume.lost]
    others = [other for other in tx.nodes.select() if other.id != node.id] if here else []
    left = [_left(tx, volume, others) for volume in sorted(here, key=lambda each: (each.name, each.id))]
    for replica in tx.replicas.select(eq("node_id", node.id), eq("purpose", ReplicaPurpose.MOVE.value)):
        volume = tx.volumes.get(replica.volume_id)
        known = VolumeLeft(volume_id=replica.volume_id, name=volume.name if volume else replica.volume_id)
        held_up = volume is not None and volume.move is not None and volume.move.held_up
        left.append(known.told("leaves a copy, which goes", moving=not held_up))
    return tuple(left)


def _left(tx: Transaction, volume: Volume, others: Iterable[Node]) -> VolumeLeft:
    known = VolumeLeft(volume_id=volume.id, name=volume.name, instance_id=volume.instance_id)
    if volume.moving and volume.move is not None:
        reason = volume.move.reason or volume.move.stage.value
        return known.told(f"moves: {reason}", moving=not volume.move.held_up)
    try:
        refuse_immovable(tx, volume)
    except ConflictError as error:
        return known.told(f"stays: {error.message}")
    faults = {node.id: _refusal(volume, node) or unfit(tx, volume, node) for node in others}
    fitting = [node for node in others if not faults[node.id]]
    if not fitting:
        return known.told(f"stays: {_summary(others, faults)}")
    return known.told("waits for its turn", target=min(fitting, key=lambda node: _rank(tx, node)).id)


def _refusal(volume: Volume, node: Node) -> str:
    """A node that said that it cannot have the volume, or that was tried in vain, is not tried again and again; whoever has
    put that right may ask."""
    if volume.move is None:
        return ""
    if node.id in volume.move.refused_by:
        return "has something else under the volume's id"
    return f"was tried: {IN_VAIN}" if node.id in volume.move.in_vain else ""


def _rank(tx: Transaction, node: Node) -> tuple[int, str]:
    """The one with the most memory free comes first: an app follows the volume."""
    free = room_on(node, node_usage(tx, node.id).get(node.id, NOTHING))
    return -free.memory_bytes, node.name


def _summary(others: Iterable[Node], faults: Mapping[str, str]) -> str:
    told = [f"{node.name} {faults[node.id]}" for node in others][:_TOLD]
    return "no other node can have it: " + "; ".join(told) if told else "there is no other node"


def try_again(unit: Unit, node: Node) -> None:
    """Let the volumes of a node go also where moves before stopped their apps in vain."""
    for volume in unit.tx.volumes.select(eq("node_id", node.id)):
        if volume.move is not None and volume.move.in_vain:
            unit.tx.volumes.update(replace(volume, move=replace(volume.move, in_vain=())))


def send_away(unit: Unit, moves: Iterable[VolumeLeft]) -> None:
    """Have volumes go where they can. Each was planned as if it were the only one: what does not fit any more beside those
    that go before it is planned anew."""
    for each in moves:
        volume, node = unit.tx.volumes.get(each.volume_id), unit.tx.nodes.get(each.target)
        if volume is not None and node is not None and not unfit(unit.tx, volume, node):
            begin_move(unit, volume, node)
