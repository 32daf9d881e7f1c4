"""An app's environment: read, set, unset."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Project
from shellwego.api.rest.routes.common import Ref, resource_router
from shellwego.api.rest.schemas.apps import EnvBody, EnvView
from shellwego.api.rest.schemas.config import plain, references, secret_refs
from shellwego.control import apps, deployments
from shellwego.control.config import ConfigWish
from shellwego.control.idempotency import Answer
from shellwego.control.targets import AppTarget
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.ports.store import Transaction

router = resource_router("env")


@operation(router, "GET", "/apps/{app}/env", permission="apps:env", answer=EnvView)
async def get_env(*, access: Granted, app: Ref, project: Project = "") -> Response:
    """The variables of the current config, with their values; who may only read apps sees their names there."""

    def look(tx: Transaction, row: App) -> Answer:
        return body_answer(EnvView(env=dict(row.config.env), secrets=secret_refs(row.config)), version=row.version)

    return await read(access, AppTarget(app, project), look)


@operation(router, "PATCH", "/apps/{app}/env", permission="apps:env", answer=EnvView, refusals=(412,))
async def change_env(*, access: Granted, match: IfMatch, app: Ref, body: EnvBody, project: Project = "") -> Response:
    """Set some variables and unset those that are null. Rolled out as a new release, unless `stage`."""
    wish = ConfigWish(env=plain(body.env), secrets=references(body.env))

    def work(unit: Unit, row: App) -> Answer:
        match.check(row.version)
        deployments.refuse_deleting(row)
        deployment = None
        if body.stage:
            apps.configure(unit, row, wish)
        else:
            deployment = deployments.change(unit, row, wish)
        now = unit.tx.apps.get(row.id) or row
        view = EnvView(
            env=dict(now.config.env),
            secrets=secret_refs(now.config),
            deployment_id=deployment.id if deployment else None,
        )
        return body_answer(view, version=now.version)

    return await write(access, AppTarget(app, project), work)
