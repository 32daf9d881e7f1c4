"""What the API stands on, handed to `create_app` once and reached through the request's app."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from shellwego.api.ratelimit import RateLimiter
from shellwego.api.rest.metrics import Metrics
from shellwego.api.rest.shares import Shares
from shellwego.api.rest.spool import Spool
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


@dataclass(slots=True)
class Context:
    control: Control
    images: ImageWork
    streams: Streams
    webhook_networks: tuple[Network, ...]
    """Into which webhooks may go, beside the public ones."""
    version: str
    domain: str
    url: AppUrl
    spool: Spool
    authenticator: Authenticator
    limiter: RateLimiter
    identity: Identity
    sealer: Sealer
    authorities: NodeAuthorities
    node_urls: tuple[str, ...]
    """Where hosts reach the node port of this platform's servers; empty: nowhere."""
    traffic: TrafficBook
    open_organizations: bool = False
    backups: bool = False
    """There is a repository for backups of volumes."""
    publish: range = NO_PORTS
    """Ports that apps may publish."""
    metrics: Metrics = field(default_factory=Metrics)
    shares: Shares = field(default_factory=Shares)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server is to stop soon: it is not ready any more."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server is to stop: long answers end, so that clients come again to another server or later."""


def install_context(app: FastAPI, context: Context) -> None:
    app.state.context = context


def context_of(connection: HTTPConnection) -> Context:
    """The context of the app that serves this request or socket."""
    return cast(Context, connection.app.state.context)
