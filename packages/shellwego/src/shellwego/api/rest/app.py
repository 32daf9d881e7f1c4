"""The API as an ASGI application: `create_app` puts together what the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import Lifespan, Scope

from shellwego.api.ratelimit import RateLimiter
from shellwego.api.rest import problems
from shellwego.api.rest.context import Context, install_context
from shellwego.api.rest.document import install_document
from shellwego.api.rest.guard import PUBLIC, check_guarded, operations
from shellwego.api.rest.middleware import BodyLimitMiddleware, TraceMiddleware
from shellwego.api.rest.reference import install_reference
from shellwego.api.rest.routes import (
    account,
    apps,
    audit,
    auth,
    deployments,
    egress,
    env,
    events,
    grants,
    images,
    instances,
    invitations,
    joins,
    logs,
    masterkeys,
    nodes,
    organizations,
    ports,
    projects,
    rebalance,
    secrets,
    securitygroups,
    serviceaccounts,
    snapshots,
    sockets,
    system,
    users,
    volumes,
    volumestandbys,
)
from shellwego.api.rest.routes import backups as backup_routes
from shellwego.api.rest.routes import webhooks as webhook_routes
from shellwego.api.rest.spool import Spool
from shellwego.api.rest.table import RouteTable
from shellwego.api.rest.views import AppUrl
from shellwego.control.authentication import Authenticator
from shellwego.control.identity import Identity
from shellwego.control.imagework import ImageWork
from shellwego.control.nodeauthority import NodeAuthorities
from shellwego.control.sealing import Sealer
from shellwego.control.traffic import TrafficBook
from shellwego.control.unit import Control
from shellwego.core.egress import Network
from shellwego.core.publishing import NO_PORTS
from shellwego.ports.streams import Streams

_DOCUMENT = "/v1/openapi.json"
_DOCS = "/docs"
_ROUTERS = (
    system.probes,
    system.router,
    auth.router,
    account.router,
    organizations.router,
    projects.router,
    serviceaccounts.router,
    grants.router,
    users.router,
    invitations.router,
    apps.router,
    env.router,
    ports.router,
    egress.router,
    securitygroups.router,
    deployments.router,
    instances.router,
    logs.router,
    images.router,
    joins.router,
    nodes.router,
    rebalance.router,
    secrets.router,
    volumes.router,
    snapshots.router,
    volumestandbys.router,
    backup_routes.router,
    masterkeys.router,
    events.router,
    audit.router,
    webhook_routes.router,
    sockets.router,
)


def create_app(
    control: Control,
    *,
    images: ImageWork,
    streams: Streams,
    sealer: Sealer,
    version: str,
    spool_dir: Path,
    webhook_networks: tuple[Network, ...] = (),
    domain: str = "localhost",
    http_port: int = 80,
    identity: Identity,
    limiter: RateLimiter | None = None,
    open_organizations: bool = False,
    node_urls: tuple[str, ...] = (),
    backups: bool = False,
    publish: range = NO_PORTS,
    traffic: TrafficBook | None = None,
) -> FastAPI:
    """The application. `spool_dir` is emptied when it starts; `http_port` is the edge's, for the URLs of apps;
    `limiter` is shared with whatever else takes the same tokens; `open_organizations`: every user may make organizations;
    `node_urls`: where hosts that join find the node port, if there is one; `backups`: there is a repository for them;
    `publish`: ports that apps may publish; `traffic`: what nodes told this server of it.

    Raises:
        RuntimeError: a route goes around the guard.
    """
    context = Context(
        control=control,
        images=images,
        streams=streams,
        webhook_networks=webhook_networks,
        version=version,
        domain=domain,
        url=AppUrl(http_port),
        spool=Spool(spool_dir, control.clock),
        authenticator=Authenticator(control),
        limiter=limiter or RateLimiter(),
        open_organizations=open_organizations,
        identity=identity,
        sealer=sealer,
        authorities=NodeAuthorities(control, sealer),
        node_urls=node_urls,
        backups=backups,
        publish=publish,
        traffic=traffic or TrafficBook(control.clock),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        context.spool.open()
        expiring = asyncio.create_task(context.spool.keep_expiring(), name="spool")
        yield
        expiring.cancel()
        await asyncio.wait([expiring])
        context.stopping.set()
        context.identity.passwords.close()

    app = application(version, lifespan)
    install_context(app, context)
    app.add_middleware(RouteTable, operations=operations(app))
    public = frozenset(route.path for route in operations(app) if route.permission == PUBLIC)
    app.add_middleware(BodyLimitMiddleware, unlimited=_is_upload, public=public)
    app.add_middleware(TraceMiddleware, observe=context.metrics.observe)
    return app


def openapi_document() -> dict[str, Any]:
    """The API's OpenAPI document, without a platform behind it."""
    return application("1", None).openapi()


def application(version: str, lifespan: Lifespan[FastAPI] | None) -> FastAPI:
    """All routes, with their errors and their document."""
    app = FastAPI(
        title="ShellWeGo",
        version=version,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    problems.install(app)
    for router in _ROUTERS:
        app.router.routes.extend(router.routes)
    install_document(app, _DOCUMENT)
    install_reference(app, _DOCS)
    check_guarded(app, own=(_DOCUMENT, _DOCS))
    return app


def _is_upload(scope: Scope) -> bool:
    """Parts of an upload are bounded by the spool; but one with an idempotency key is held in memory to know it again."""
    part = scope["method"] == "PATCH" and str(scope["path"]).startswith(images.UPLOAD_PATH)
    return part and "idempotency-key" not in Headers(scope=scope)


def leave(app: FastAPI) -> None:
    """Be ready no more, and serve all the same."""
    context: Context = app.state.context
    context.leaving.set()


def stop(app: FastAPI) -> None:
    """Have streams and long waits end, before the server stops."""
    context: Context = app.state.context
    context.stopping.set()
