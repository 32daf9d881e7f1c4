"""What a tenant asks of volumes that are to be on another node: moves, standby copies, promotions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shellwego.control import standbys, volumemoves
from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError
from shellwego.core.replicas import ReplicaPurpose
from shellwego.core.volumes import Volume
from shellwego.ports.store import eq
from tests.sim.client import Told

EFFECTS = {
    "volume-move": "volume.moving",
    "move-cancel": "volume.move.cancelled",
    "replicate": "volume.replicated",
    "replicate-off": "volume.replication_ended",
    "promote": "volume.promoted",
    "copy-drop": "volume.copy_dropped",
}
"""The event by which each operation is told, once."""
EVERY_S = (5, 5, 20)
"""How old a standby may be."""

Work = Callable[[Unit, Volume], Told]


def _move(number: int) -> Work:
    def move(unit: Unit, volume: Volume) -> Told:
        others = sorted(
            (node for node in unit.tx.nodes.select() if node.id != volume.node_id), key=lambda each: each.name
        )
        if not others:
            raise ConflictError("no-other-node", "there is no other node")
        volumemoves.move_volume(unit, volume, others[number % len(others)])
        return {}

    return move


def _cancel(unit: Unit, volume: Volume) -> Told:
    volumemoves.cancel_move(unit, volume)
    return {}


def _replicate(number: int) -> Work:
    def replicate(unit: Unit, volume: Volume) -> Told:
        return {"copy": standbys.replicate(unit, volume, EVERY_S[number % len(EVERY_S)]).id}

    return replicate


def _stop_replicating(unit: Unit, volume: Volume) -> Told:
    standbys.stop_replicating(unit, volume)
    return {}


def _promote(unit: Unit, volume: Volume) -> Told:
    standbys.promote_volume(unit, volume)
    return {}


def _drop(unit: Unit, volume: Volume) -> Told:
    left = unit.tx.replicas.select(eq("volume_id", volume.id), eq("purpose", ReplicaPurpose.LEFT.value))
    if not left:
        raise ConflictError("no-copy", "nothing was left behind")
    standbys.drop_left(unit, volume, left[0].id)
    return {"copy": left[0].id}


WORK: Mapping[str, Callable[[int], Work]] = {
    "volume-move": _move,
    "move-cancel": lambda number: _cancel,
    "replicate": _replicate,
    "replicate-off": lambda number: _stop_replicating,
    "promote": lambda number: _promote,
    "copy-drop": lambda number: _drop,
}
