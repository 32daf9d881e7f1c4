"""Instances that would better run elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from shellwego.api.rest.schemas.common import View
from shellwego.core.rebalance import Move


class MoveView(View):
    """An instance, and the names of the nodes that it runs on and would better run on."""

    instance_id: str
    app_id: str
    app: str
    process: str
    slot: int
    from_node: str
    to_node: str
    reason: str


class RebalanceView(View):
    """What would be moved, or was just queued; and how many are queued and move."""

    moves: list[MoveView]
    queued: int
    moving: int


def move_view(move: Move, apps: Mapping[str, str], nodes: Mapping[str, str]) -> MoveView:
    """`apps` and `nodes` are names by id."""
    instance = move.instance
    return MoveView(
        instance_id=instance.id,
        app_id=instance.app_id,
        app=apps.get(instance.app_id, ""),
        process=instance.process,
        slot=instance.slot,
        from_node=nodes.get(move.from_node, ""),
        to_node=nodes.get(move.to_node, ""),
        reason=move.reason,
    )
