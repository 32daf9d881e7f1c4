"""What an app may open connections to: shown and changed."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Project
from shellwego.api.rest.routes.common import Ref, resource_router
from shellwego.api.rest.schemas.egress import EgressPatch, EgressView, egress_view
from shellwego.control.egress import set_egress
from shellwego.control.idempotency import Answer
from shellwego.control.targets import AppTarget
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.destinations import changed, parse_destinations
from shellwego.ports.store import Transaction

router = resource_router("egress")


@operation(router, "GET", "/apps/{app}/egress", permission="network:read", answer=EgressView)
async def get_egress(*, access: Granted, app: Ref, project: Project = "") -> Response:
    """What the app's VMs may open connections to outside of their private network."""

    def look(tx: Transaction, row: App) -> Answer:
        return body_answer(egress_view(row.egress), version=row.version)

    return await read(access, AppTarget(app, project), look)


@operation(router, "PATCH", "/apps/{app}/egress", permission="network:write", answer=EgressView, refusals=(412,))
async def change_egress(
    *, access: Granted, match: IfMatch, app: Ref, body: EgressPatch, project: Project = ""
) -> Response:
    """Change it for all VMs of the app, those that run too, within seconds and without a deploy. It is in no release."""

    def work(unit: Unit, row: App) -> Answer:
        match.check(row.version)
        egress = changed(
            row.egress,
            listed=None if body.mode is None else body.mode == "listed",
            allow=parse_destinations("allow", [each.wish() for each in body.allow]),
            deny=parse_destinations("deny", [each.wish() for each in body.deny]),
        )
        stored = set_egress(unit, row, egress)
        return body_answer(egress_view(stored.egress), version=stored.version)

    return await write(access, AppTarget(app, project), work)
