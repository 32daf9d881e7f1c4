"""Nodes, as operators of the platform see them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, read, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, one_of
from shellwego.api.rest.routes.common import Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.resources import NodeList, NodeView, node_view
from shellwego.control import scheduling
from shellwego.control.idempotency import Answer
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.pages import page
from shellwego.control.scopes import NodeTarget, SystemTarget
from shellwego.control.unit import Unit
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
        views = [_show(tx, node) for node in found.items]
        return body_answer(NodeList(data=views, pagination=pagination(found)))

    return await read(access, SystemTarget(), look)


@operation(router, "GET", "/nodes/{node}", permission="nodes:read", answer=NodeView)
async def get_node(*, access: Granted, node: Ref) -> Response:
    """One node, by id or name."""
    return await read(access, NodeTarget(node), lambda tx, row: body_answer(_show(tx, row), version=row.version))


@operation(router, "POST", "/nodes/{node}/actions/cordon", permission="nodes:write", answer=NodeView)
async def cordon_node(*, access: Granted, node: Ref) -> Response:
    """Place nothing new on a node; what is there stays."""
    return await write(access, NodeTarget(node), lambda unit, row: _moved(unit, scheduling.cordon(unit, row)))


@operation(router, "POST", "/nodes/{node}/actions/uncordon", permission="nodes:write", answer=NodeView)
async def uncordon_node(*, access: Granted, node: Ref) -> Response:
    """Let a node have VMs again."""
    return await write(access, NodeTarget(node), lambda unit, row: _moved(unit, scheduling.uncordon(unit, row)))


def _moved(unit: Unit, node: Node) -> Answer:
    return body_answer(_show(unit.tx, node), version=node.version)


def _show(tx: Transaction, node: Node) -> NodeView:
    return node_view(node, tx.instances.count(eq("node_id", node.id), within("phase", LIVE_PHASES)))
