"""Nodes, as operators of the platform see them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, one_of
from shellwego.api.rest.routes.common import Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.nodes import TOLD, DrainBody, KeyRotationView, NodePatch, drain_view, key_rotation_view
from shellwego.api.rest.schemas.resources import NodeList, NodeView, node_view
from shellwego.control import nodeadmin, peers, scheduling
from shellwego.control.drains import drain_plan
from shellwego.control.idempotency import Answer
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.nodeadmin import NodeWish
from shellwego.control.pages import page
from shellwego.control.scheduling import DrainWish
from shellwego.control.targets import NodeTarget, SystemTarget
from shellwego.control.unit import Unit
from shellwego.core.drain import DrainPlan
from shellwego.core.nodes import Node
from shellwego.ports.store import Transaction, eq, within

router = resource_router("nodes")
_SORTS: dict[str, type[str] | type[float]] = {"name": str, "created_at": float}


@operation(router, "GET", "/nodes", permission="nodes:read", answer=NodeList)
async def list_nodes(
    *,
    access: Granted,
    listing: Listing,
    health: Annotated[str | None, Query(alias="filter[health]", max_length=80)] = None,
) -> Response:
    """The platform's nodes, with their backends and what is weaker on them than it should be."""
    request = listing.page(_SORTS, "name")

    def look(tx: Transaction, _: None) -> Answer:
        found = page(tx.nodes, request, *one_of("health", health))
        views = [_told(tx, node, None) for node in found.items]
        return body_answer(NodeList(data=views, pagination=pagination(found)))

    return await read(access, SystemTarget(), look)


@operation(router, "GET", "/nodes/{node}", permission="nodes:read", answer=NodeView)
async def get_node(*, access: Granted, node: Ref) -> Response:
    """One node, by id or name."""
    return await read(access, NodeTarget(node), lambda tx, row: body_answer(_show(tx, row), version=row.version))


@operation(router, "PATCH", "/nodes/{node}", permission="nodes:write", answer=NodeView, refusals=(412,))
async def update_node(*, access: Granted, node: Ref, body: NodePatch, if_match: IfMatch) -> Response:
    """Change labels, region and zone of a node. What runs there stays."""
    wish = NodeWish(labels=body.labels, region=body.region, zone=body.zone)

    def work(unit: Unit, row: Node) -> Answer:
        if_match.check(row.version)
        return _moved(unit, nodeadmin.update_node(unit, row, wish))

    return await write(access, NodeTarget(node), work)


@operation(router, "DELETE", "/nodes/{node}", permission="nodes:write", answer=None, status=204, refusals=(412,))
async def remove_node(*, access: Granted, node: Ref, if_match: IfMatch, force: bool = False) -> Response:
    """Forget a node that is drained or down; with `force` any, and all that runs there is lost and comes elsewhere. A host
    that joined is told so, and stops what runs there. The platform's own host may still register, and is a node again: stop
    it first."""

    def work(unit: Unit, row: Node) -> Answer:
        if_match.check(row.version)
        nodeadmin.remove_node(unit, row, force=force)
        return Answer(204, "")

    return await write(access, NodeTarget(node), work)


@operation(router, "POST", "/nodes/{node}/actions/cordon", permission="nodes:write", answer=NodeView)
async def cordon_node(*, access: Granted, node: Ref) -> Response:
    """Place nothing new on a node; what is there stays."""
    return await write(access, NodeTarget(node), lambda unit, row: _moved(unit, scheduling.cordon(unit, row)))


@operation(router, "POST", "/nodes/{node}/actions/uncordon", permission="nodes:write", answer=NodeView)
async def uncordon_node(*, access: Granted, node: Ref) -> Response:
    """Let a node have VMs again."""
    return await write(access, NodeTarget(node), lambda unit, row: _moved(unit, scheduling.uncordon(unit, row)))


@operation(router, "POST", "/nodes/{node}/actions/drain", permission="nodes:write", answer=NodeView, status=202)
async def drain_node(*, access: Granted, node: Ref, body: DrainBody) -> Response:
    """Empty a node: nothing new is placed on it, and each instance is stopped once another one serves elsewhere in its
    place, a few at a time. One-off runs are waited for. Asked again, it changes how; an uncordon ends it, and what has begun
    to move then still moves.

    The node tells in `drain` what is left, and what that waits for; once nothing is, it is `drained`.
    """
    wish = DrainWish(deadline_s=body.deadline, force=body.force, parallel=body.parallel, volumes=body.volumes)

    def work(unit: Unit, row: Node) -> Answer:
        changed = scheduling.drain(unit, row, wish)
        return body_answer(_show(unit.tx, changed), 202, changed.version)

    return await write(access, NodeTarget(node), work)


@operation(router, "POST", "/nodes/actions/rotate-keys", permission="nodes:admin", answer=KeyRotationView, status=202)
async def rotate_node_keys(*, access: Granted) -> Response:
    """Have all nodes that are reached by WireGuard replace their keys now and not when their time comes. No packet is lost.
    Asked again while it goes on, it changes nothing."""
    return await write(
        access, SystemTarget(), lambda unit, _: body_answer(key_rotation_view(peers.rotate_keys(unit)), 202)
    )


def _moved(unit: Unit, node: Node) -> Answer:
    return body_answer(_show(unit.tx, node), version=node.version)


def _show(tx: Transaction, node: Node) -> NodeView:
    return _told(tx, node, drain_plan(tx, node))


def _told(tx: Transaction, node: Node, plan: DrainPlan | None) -> NodeView:
    left = tx.instances.count(eq("node_id", node.id), within("phase", LIVE_PHASES))
    apps = {app.id: app.name for app in map(tx.apps.get, _apps_of(plan)) if app is not None}
    return node_view(node, left, drain_view(node.drain, left, plan, apps) if node.drain else None)


def _apps_of(plan: DrainPlan | None) -> set[str]:
    return {waiting.instance.app_id for waiting in plan.waiting[:TOLD]} if plan else set()
