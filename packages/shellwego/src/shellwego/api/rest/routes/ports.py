"""Published ports of an app: ports of every node's addresses that lead to its instances."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, Project
from shellwego.api.rest.routes.common import Here, Id, Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.ports import PortList, PortPublish, PortView, port_view
from shellwego.control import publishing
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.targets import AppTarget
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.ports.store import Transaction, eq

router = resource_router("ports")
_SORTS: dict[str, type[str] | type[float]] = {"created_at": float, "port": float}


@operation(router, "POST", "/apps/{app}/ports", permission="ports:write", answer=PortView, status=201)
async def publish_port(*, here: Here, access: Granted, app: Ref, body: PortPublish, project: Project = "") -> Response:
    """Have a port of every node's addresses lead to instances of the app that are healthy. It stays through deploys and
    rollbacks. A port is one app's on the whole platform, and one of those that the operator lets apps publish."""

    def work(unit: Unit, row: App) -> Answer:
        published = publishing.publish_port(unit, row, body.wish, here.publish)
        return body_answer(port_view(published), 201, published.version)

    return await write(access, AppTarget(app, project), work)


@operation(router, "GET", "/apps/{app}/ports", permission="ports:read", answer=PortList)
async def list_ports(*, access: Granted, listing: Listing, app: Ref, project: Project = "") -> Response:
    """The published ports of an app."""
    request = listing.page(_SORTS, "port:asc")

    def look(tx: Transaction, row: App) -> Answer:
        found = page(tx.published_ports, request, eq("app_id", row.id))
        views = [port_view(published) for published in found.items]
        return body_answer(PortList(data=views, pagination=pagination(found)))

    return await read(access, AppTarget(app, project), look)


@operation(router, "GET", "/apps/{app}/ports/{port}", permission="ports:read", answer=PortView)
async def get_port(*, access: Granted, app: Ref, port: Id, project: Project = "") -> Response:
    """One published port of an app, by its id."""

    def look(tx: Transaction, row: App) -> Answer:
        published = publishing.find_port(tx, row, port)
        return body_answer(port_view(published), version=published.version)

    return await read(access, AppTarget(app, project), look)


@operation(
    router, "DELETE", "/apps/{app}/ports/{port}", permission="ports:write", answer=None, status=204, refusals=(412,)
)
async def unpublish_port(*, access: Granted, app: Ref, port: Id, if_match: IfMatch, project: Project = "") -> Response:
    """Close a published port on all nodes. Connections through it end."""

    def work(unit: Unit, row: App) -> Answer:
        published = publishing.find_port(unit.tx, row, port)
        if_match.check(published.version)
        publishing.unpublish_port(unit, row, published)
        return Answer(204, "")

    return await write(access, AppTarget(app, project), work)
