"""The control plane of one server, joined: store, bus, master key, loops, the API, and the port for nodes elsewhere.

`swg up` and `swg server` have the same one; the first has an agent and an edge beside it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog

from shellwego.api.origins import Origins
from shellwego.api.ratelimit import RateLimiter
from shellwego.api.rest.app import create_app
from shellwego.api.server import ApiServer, Tls
from shellwego.boot.bus import open_access, open_bus
from shellwego.boot.configfile import CONFIG_FILE
from shellwego.boot.credentials import TOKEN_FILE
from shellwego.boot.database import claim, open_store
from shellwego.boot.masterkeys import KEY_DIRECTORY, KmsSource
from shellwego.boot.preflight import Installation, directory
from shellwego.boot.registries import Login
from shellwego.boot.serving import Part, Server
from shellwego.boot.settings import UpSettings
from shellwego.control.bootstrap import adopt_admin_token, bootstrap
from shellwego.control.identity import make_identity
from shellwego.control.imagework import ImageWork
from shellwego.control.loops import backups as backups_loop
from shellwego.control.loops import buskeys as buskeys_loop
from shellwego.control.loops import drains as drains_loop
from shellwego.control.loops import images as images_loop
from shellwego.control.loops import imagestore as imagestore_loop
from shellwego.control.loops import moves as moves_loop
from shellwego.control.loops import names as names_loop
from shellwego.control.loops import nodes as nodes_loop
from shellwego.control.loops import outbox as outbox_loop
from shellwego.control.loops import retention as retention_loop
from shellwego.control.loops import rewrap as rewrap_loop
from shellwego.control.loops import rollout as rollout_loop
from shellwego.control.loops import routes as routes_loop
from shellwego.control.loops import standbys as standbys_loop
from shellwego.control.loops import vaults as vaults_loop
from shellwego.control.loops import webhooks as webhooks_loop
from shellwego.control.loops.lease import Leases
from shellwego.control.sealing import Sealer
from shellwego.control.servers import Servers
from shellwego.control.traffic import TrafficBook
from shellwego.control.unit import Control, Unit
from shellwego.control.vaults import Vaults
from shellwego.core.backups import RepositoryPlace
from shellwego.core.images import LoginRule
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.engine.assembly import HostLink
from shellwego.drivers.images.plasmavmc import Credentials, PlasmaImages
from shellwego.drivers.objects.choose import open_objects
from shellwego.drivers.passwords.argon2 import Argon2Hasher
from shellwego.drivers.streams.dialled import DialledStreams
from shellwego.drivers.webhooks.http import HttpSender
from shellwego.ports.busaccess import BusAccess
from shellwego.ports.store import ApartStore, Store
from shellwego.ports.streams import Streams

if TYPE_CHECKING:
    from shellwego.boot.nodeport import NodePort

log = structlog.get_logger("shellwego.boot")


@dataclass(frozen=True, slots=True)
class Handover:
    """What the platform gets from the root process it was split off."""

    link: int
    """Descriptor of the way to the root helper."""
    token: str = field(repr=False)
    context: str
    logins: Mapping[str, Login]
    """Registry host → login."""
    master_key: KmsSource
    database: str = field(default="", repr=False)
    """URL of PostgreSQL; empty: SQLite in the data directory."""
    bus: Sensitive | None = field(default=None, repr=False)
    """The authority over the bus on NATS; None: hints stay within this process."""
    repository: RepositoryPlace | None = field(default=None, repr=False)
    """Where backups of volumes lie; None: there are none."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a control plane stands on."""

    settings: UpSettings
    installation: Installation
    handover: Handover
    control: Control
    claims: Store
    """The way on which leases are claimed."""
    sealer: Sealer
    traffic: TrafficBook
    access: BusAccess | None = None
    """To the bus on NATS, where there is one."""


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """The parts that answer and those that work, to be run together."""

    servers: tuple[Server, ...]
    parts: Mapping[str, Part]
    api: ApiServer

    async def leave(self, seconds: float) -> None:
        """Say not to be ready, and go on for so long, so that balancers turn elsewhere before the API ends."""
        if seconds:
            self.api.leave()
            await asyncio.sleep(seconds)


async def open_base(
    stack: AsyncExitStack, settings: UpSettings, installation: Installation, handover: Handover, *, owner: str
) -> Base:
    """Open store, bus and master key, to be closed with the stack; at the first start, make what is needed to sign in.

    `owner`: whose a database of several is; see `database.claim`.
    """
    clock = SystemClock()
    bus = await open_bus(handover.bus, clock)
    stack.push_async_callback(bus.close)
    store = open_store(handover.database, directory(installation, "db") / "state.db", clock)
    stack.push_async_callback(store.close)
    claims: Store = store
    if isinstance(store, ApartStore):
        claims = store.apart()
        stack.push_async_callback(claims.close)
    control = Control(store, bus, clock)
    kms = handover.master_key.open(directory(installation, KEY_DIRECTORY), clock.now)
    stack.push_async_callback(kms.close)
    access = open_access(handover.bus, clock)
    base = Base(settings, installation, handover, control, claims, Sealer(control, kms), TrafficBook(clock), access)
    await _first_start(base, owner)
    return base


async def open_control_plane(
    base: Base, link: HostLink, api_socket: int, streams: Streams, links: DialledStreams
) -> ControlPlane:
    """Make the servers and loops. `streams` reaches all nodes, `links` takes those that dial."""
    settings, control, sealer = base.settings, base.control, base.sealer
    networks = settings.webhook_networks
    images = _images(base)
    port = await _open_node_port(base, link, streams, links, images)
    logins = LoginRule(frozenset(settings.registry_logins_for))
    work, limiter = ImageWork(images, control.clock, port.fellow_blob if port else None, logins), RateLimiter()
    app = create_app(
        control,
        images=work,
        streams=streams,
        sealer=sealer,
        webhook_networks=networks,
        version=version("shellwego"),
        spool_dir=directory(base.installation, "spool"),
        domain=settings.domain,
        http_port=settings.http_port,
        identity=make_identity(control, Argon2Hasher(), sealer),
        limiter=limiter,
        open_organizations=settings.open_organizations,
        node_urls=settings.node_addresses,
        backups=base.handover.repository is not None,
        publish=settings.published_ports,
        traffic=base.traffic,
    )
    api = ApiServer(app, socket.socket(fileno=api_socket), _tls(settings), Origins(settings.balancer_networks))
    servers: list[Server] = [api]
    if settings.grpc_port:
        from shellwego.api.grpc.server import GrpcServer, GrpcSite  # noqa: PLC0415 - costs memory where it is not served

        site = GrpcSite(settings.grpc_listen, settings.grpc_port, _tls(settings))
        servers.append(GrpcServer(control, images=work, streams=streams, site=site, limiter=limiter))
    if port is not None:
        servers.append(port)
    leases = Leases(control, base.installation.id, base.claims)
    parts: dict[str, Part] = {
        "leases": leases.run(),
        "outbox": outbox_loop.run(control, holder=leases),
        "images": images_loop.run(control, work, holder=leases),
        "image store": imagestore_loop.run(control, work),
        "routes": routes_loop.run(control, holder=leases),
        "names": names_loop.run(control, holder=leases),
        "rollout": rollout_loop.run(control, holder=leases),
        "nodes": nodes_loop.run(control, holder=leases),
        "drains": drains_loop.run(control, holder=leases),
        "moves": moves_loop.run(control, holder=leases),
        "standbys": standbys_loop.run(control, holder=leases),
        "rewrap": rewrap_loop.run(control, sealer, holder=leases),
        "webhooks": webhooks_loop.run(control, HttpSender(networks), sealer, holder=leases),
        "retention": retention_loop.run(control, holder=leases),
    }
    if base.handover.repository is not None:
        vaults = Vaults(control, sealer, base.handover.repository)
        parts["backups"] = backups_loop.run(control, vaults, holder=leases)
        parts["vaults"] = vaults_loop.run(control, vaults, open_objects(base.handover.repository), holder=leases)
    if base.access is not None:
        parts["bus keys"] = buskeys_loop.run(control, base.access, holder=leases)
    return ControlPlane(tuple(servers), parts, api)


async def _open_node_port(
    base: Base, link: HostLink, streams: Streams, links: DialledStreams, images: PlasmaImages
) -> NodePort | None:
    """None, where this server has none."""
    settings = base.settings
    if not settings.node_port:
        return None
    from shellwego.boot.nodeport import NodePort  # noqa: PLC0415 - costs memory where there is none

    listener = socket.socket(fileno=await link.listen(settings.node_listen, settings.node_port))
    known = Servers(base.control, base.installation.id, settings.node_urls)
    access = base.access if settings.bus_node_passes else None
    return await NodePort.open(
        base.control,
        base.sealer,
        listener,
        links=links,
        images=images,
        streams=streams,
        servers=known,
        access=access,
        repository=base.handover.repository,
        key_generation_s=settings.key_generation_s,
        traffic=base.traffic,
    )


def _images(base: Base) -> PlasmaImages:
    logins = base.handover.logins.items()
    return PlasmaImages(
        directory(base.installation, "blobs"),
        allow=base.settings.registry_allow_list,
        allow_setting=f"registries_allow, table [up] of {CONFIG_FILE}",
        credentials={host: Credentials(each.username, each.password) for host, each in logins},
    )


def _tls(settings: UpSettings) -> Tls | None:
    if settings.api_cert is None or settings.api_key is None:
        return None
    return Tls(settings.api_cert, settings.api_key)


async def _first_start(base: Base, owner: str) -> None:
    """Make the first organization, project and administrator, or let the token in that root holds."""
    token = base.handover.token

    def ensure(unit: Unit) -> bool:
        if base.handover.database:
            claim(unit, owner)
        return bootstrap(unit, token) is not None or adopt_admin_token(unit, token)

    if not await base.control.commit(ensure):
        file = base.installation.data_dir / TOKEN_FILE
        remedy = f"for a new one, remove {file} and start again"
        log.warning("admin_token.invalid", remedy=remedy)
