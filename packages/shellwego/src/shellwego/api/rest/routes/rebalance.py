"""Rebalancing: instances moved from full nodes to emptier ones, on an operator's word."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, read, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.routes.common import resource_router
from shellwego.api.rest.schemas.rebalance import RebalanceView, move_view
from shellwego.control import rebalance
from shellwego.control.idempotency import Answer
from shellwego.control.rebalance import Rebalance
from shellwego.control.targets import SystemTarget
from shellwego.control.unit import Unit
from shellwego.ports.store import Transaction

router = resource_router("nodes")


@operation(router, "GET", "/rebalance", permission="nodes:read", answer=RebalanceView)
async def get_rebalance(*, access: Granted) -> Response:
    """Which instances would better run elsewhere, and why; or how many are queued and move, while some do."""
    return await read(access, SystemTarget(), lambda tx, _: body_answer(_show(tx, rebalance.rebalance(tx))))


@operation(router, "POST", "/rebalance", permission="nodes:write", answer=RebalanceView, status=202)
async def begin_rebalance(*, access: Granted) -> Response:
    """Move what would better run elsewhere, ten at a time: each is stopped once another one serves in its place."""
    return await write(access, SystemTarget(), lambda unit, _: body_answer(_show(unit.tx, rebalance.begin(unit)), 202))


@operation(router, "DELETE", "/rebalance", permission="nodes:write", answer=None, status=204)
async def cancel_rebalance(*, access: Granted) -> Response:
    """Let stay what is queued; what has begun to move still moves."""

    def work(unit: Unit, _: None) -> Answer:
        rebalance.cancel(unit)
        return Answer(204, "")

    return await write(access, SystemTarget(), work)


def _show(tx: Transaction, found: Rebalance) -> RebalanceView:
    ids = {move.instance.app_id for move in found.moves}
    apps = {app.id: app.name for app in map(tx.apps.get, ids) if app is not None}
    nodes = {node.id: node.name for node in tx.nodes.select()} if found.moves else {}
    moves = [move_view(move, apps, nodes) for move in found.moves]
    return RebalanceView(moves=moves, queued=found.queued, moving=found.moving)
