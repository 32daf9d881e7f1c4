"""The platform in one process: store, control plane, agent, edge and API on one host, joined and run to their end.

Theory. Everything that can fail with a remedy (ports, programs, a broken database) happens before `ready` is said. After
it, a part that ends takes the platform down, because a half-running platform is worse than one that a supervisor restarts:
VMs and HAProxy live on, and the next start adopts them. At an asked end without `keep_vms`, VMs are stopped gracefully,
then HAProxy, then bridge, rules and cgroups are taken away.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import structlog
import uvloop

from shellwego.agent.daemon import Agent
from shellwego.api.ratelimit import RateLimiter
from shellwego.api.rest.app import create_app
from shellwego.api.server import ApiServer, Tls
from shellwego.boot.bus import open_bus
from shellwego.boot.credentials import LOCAL, TOKEN_FILE
from shellwego.boot.database import claim, open_store
from shellwego.boot.logs import log_to_stderr
from shellwego.boot.masterkeys import KEY_DIRECTORY, KmsSource
from shellwego.boot.preflight import Installation
from shellwego.boot.registries import Login
from shellwego.boot.settings import CONFIG_FILE, UpSettings
from shellwego.control.bootstrap import adopt_admin_token, bootstrap
from shellwego.control.edges import Edges
from shellwego.control.identity import make_identity
from shellwego.control.imagework import ImageWork
from shellwego.control.loops import images as images_loop
from shellwego.control.loops import nodes as nodes_loop
from shellwego.control.loops import outbox as outbox_loop
from shellwego.control.loops import retention as retention_loop
from shellwego.control.loops import rewrap as rewrap_loop
from shellwego.control.loops import rollout as rollout_loop
from shellwego.control.loops import routes as routes_loop
from shellwego.control.loops import webhooks as webhooks_loop
from shellwego.control.loops.lease import Leases
from shellwego.control.nodes import Nodes
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import ShellWeGoError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.engine.assembly import EngineSite, HostLink, open_plasma
from shellwego.drivers.engine.plasmavmc import PlasmaEngine
from shellwego.drivers.images.plasmavmc import Credentials, PlasmaImages
from shellwego.drivers.passwords.argon2 import Argon2Hasher
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.drivers.uplink.memory import MemoryEdgeUplink, MemoryLink, MemoryNodeUplink
from shellwego.drivers.webhooks.http import HttpSender
from shellwego.edge.daemon import Edge
from shellwego.edge.processes import haproxy_processes
from shellwego.edge.settings import EdgeSettings, Layout

_END_TRIES, _END_TRY_S = 3, 5.0
"""Parts get so many times so many seconds to end."""
_SWITCH_S = 0.001
"""After so long a thread gives the interpreter to one that asks for it. Those of the store have much to compute; by the
default, 5 ms, the event loop waits that long for each answer of theirs, and a cold start is a dozen of them."""
NODE = "local"
EDGE = "local"

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


def run_platform(settings: UpSettings, installation: Installation, handover: Handover) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Called as the unprivileged user."""
    log_to_stderr()
    sys.setswitchinterval(_SWITCH_S)
    platform = Platform(settings, installation, handover)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(platform.run())
    except ShellWeGoError as error:
        print(f"swg up: {error.message}", file=sys.stderr)
        if error.resolution:
            print(f"  → {error.resolution}", file=sys.stderr)
        return 1


class Server(Protocol):
    """Serves an API from `run` until `stop`."""

    name: str

    async def run(self) -> None: ...

    async def started(self) -> object: ...

    def stop(self) -> None: ...


@dataclass(slots=True)
class Platform:
    """Everything of one installation, in the order of its making."""

    settings: UpSettings
    installation: Installation
    handover: Handover

    async def run(self) -> int:
        """Open, serve, close."""
        stop = _stop_signal()
        async with AsyncExitStack() as stack:
            link = HostLink(self.handover.link)
            stack.callback(link.close)
            stack.push_async_exit(_undo(link))
            api_socket = await link.listen(self.settings.api_listen, self.settings.api_port)
            clock = SystemClock()
            bus = await open_bus(self.handover.bus, clock)
            stack.push_async_callback(bus.close)
            store = open_store(self.handover.database, self._directory("db") / "state.db", clock)
            stack.push_async_callback(store.close)
            control = Control(store, bus, clock)
            kms = self.handover.master_key.open(self._directory(KEY_DIRECTORY), clock.now)
            stack.push_async_callback(kms.close)
            sealer = Sealer(control, kms)
            await self._first_start(control)
            images = PlasmaImages(
                self._directory("blobs"),
                allow=self.settings.registry_allow_list,
                allow_setting=f"registries_allow, table [up] of {CONFIG_FILE}",
                credentials={
                    host: Credentials(each.username, each.password) for host, each in self.handover.logins.items()
                },
            )
            edge_settings = self._edge_settings()
            engine = await open_plasma(
                link, self._engine_site(), version("shellwego"), lambda: _edge_processes(edge_settings)
            )
            streams = MemoryStreams()
            wire = MemoryLink(clock)
            edge = Edge(
                MemoryEdgeUplink(Edges(control), wire),
                bus,
                clock,
                edge_settings,
                listen=lambda: link.listen(self.settings.edge_address, self.settings.http_port),
                place=link.place_edge,
            )
            await edge.open()
            agent = Agent(
                engine=engine,
                uplink=MemoryNodeUplink(Nodes(control, sealer), wire),
                listener=streams,
                bus=bus,
                clock=clock,
                name=NODE,
                state_dir=self._directory("agent"),
            )
            networks = self.settings.webhook_networks
            work, limiter = ImageWork(images), RateLimiter()
            app = create_app(
                control,
                images=work,
                streams=streams,
                sealer=sealer,
                webhook_networks=networks,
                version=version("shellwego"),
                spool_dir=self._directory("spool"),
                domain=self.settings.domain,
                http_port=self.settings.http_port,
                identity=make_identity(control, Argon2Hasher(), sealer),
                limiter=limiter,
                open_organizations=self.settings.open_organizations,
            )
            servers: list[Server] = [ApiServer(app, socket.socket(fileno=api_socket), self._tls())]
            if self.settings.grpc_port:
                servers.append(self._grpc(control, work, streams, limiter))
            leases = Leases(control, self.installation.id)
            parts = {
                "leases": leases.run(),
                "agent": agent.run(),
                "edge": edge.run(),
                **{server.name: server.run() for server in servers},
                "outbox": outbox_loop.run(control, holder=leases),
                "images": images_loop.run(control, work, holder=leases),
                "rollout": rollout_loop.run(control, holder=leases),
                "nodes": nodes_loop.run(control, holder=leases),
                "routes": routes_loop.run(control, holder=leases),
                "rewrap": rewrap_loop.run(control, sealer, holder=leases),
                "webhooks": webhooks_loop.run(control, HttpSender(networks), sealer, holder=leases),
                "retention": retention_loop.run(control, holder=leases),
                "helper": link.gone(),
            }
            code = await self._serve(parts, servers, agent, stop)
            await self._end(engine, edge, link, keep=self.settings.keep_vms or code != 0)
        return code

    async def _serve(
        self, parts: dict[str, Coroutine[None, None, None]], servers: list[Server], agent: Agent, stop: asyncio.Event
    ) -> int:
        """Run all parts until the end is asked for (0) or one of them ends by itself (1)."""
        tasks = {asyncio.create_task(part, name=name) for name, part in parts.items()}
        asked = asyncio.create_task(stop.wait(), name="stop")
        ready = asyncio.create_task(self._tell_when_ready(servers, agent), name="ready")
        done, _ = await asyncio.wait({*tasks, asked}, return_when=asyncio.FIRST_COMPLETED)
        if asked in done:
            vms = "microVMs go on running" if self.settings.keep_vms else "microVMs are stopped first"
            print(f"swg up: stopping; {vms}", file=sys.stderr)
        for server in servers:
            server.stop()
        await _end_all([*tasks, ready, asked])
        ended = [task for task in done if task is not asked]
        for task in ended:
            error = None if task.cancelled() else task.exception()
            log.error("a part of the platform ended", part=task.get_name(), error=repr(error))
        return 1 if ended else 0

    def _grpc(self, control: Control, work: ImageWork, streams: MemoryStreams, limiter: RateLimiter) -> Server:
        from shellwego.api.grpc.server import GrpcServer, GrpcSite  # noqa: PLC0415 - costs memory where it is not served

        site = GrpcSite(self.settings.grpc_listen, self.settings.grpc_port, self._tls())
        return GrpcServer(control, images=work, streams=streams, site=site, limiter=limiter)

    async def _tell_when_ready(self, servers: list[Server], agent: Agent) -> None:
        for server in servers:
            await server.started()
        await agent.registered()
        url, port = self.settings.api_url, self.settings.http_port
        host = f"<app>.{self.settings.domain}"
        grpc = f"  gRPC     {self.settings.grpc_address}  (plasmavmc.v1)\n" if self.settings.grpc_port else ""
        print(
            f"ShellWeGo is ready.\n"
            f"  API      {url}  (docs: {url}/docs)\n"
            f"{grpc}"
            f"  apps     {self.settings.apps_url}\n"
            f"           curl -H 'Host: {host}' http://127.0.0.1:{port}/\n"
            f"  data     {self.installation.data_dir}\n"
            f"  context  {LOCAL}, also {self.handover.context} (swg --help; swg nodes ls)",
            flush=True,
        )

    async def _first_start(self, control: Control) -> None:
        """Make the first organization, project and administrator, or let the token in that root holds."""
        token = self.handover.token

        def ensure(unit: Unit) -> bool:
            if self.handover.database:
                claim(unit, self.installation.id)
            return bootstrap(unit, token) is not None or adopt_admin_token(unit, token)

        if not await control.commit(ensure):
            file = self.installation.data_dir / TOKEN_FILE
            remedy = f"for a new one, remove {file} and start again"
            log.warning("the administrator's token was revoked or has expired", remedy=remedy)

    async def _end(self, engine: PlasmaEngine, edge: Edge, link: HostLink, *, keep: bool) -> None:
        await engine.close(keep_vms=keep)
        await edge.close(keep=keep)
        if not keep:
            with suppress(ShellWeGoError):
                await link.dismantle()

    def _directory(self, name: str) -> Path:
        path = self.installation.data_dir / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def _tls(self) -> Tls | None:
        if self.settings.api_cert is None or self.settings.api_key is None:
            return None
        return Tls(self.settings.api_cert, self.settings.api_key)

    def _edge_settings(self) -> EdgeSettings:
        run_dir = self.installation.run_dir / "edge"
        run_dir.mkdir(mode=0o700, exist_ok=True)
        return EdgeSettings(name=EDGE, run_dir=run_dir, state_dir=self._directory("edge"))

    def _engine_site(self) -> EngineSite:
        return EngineSite(
            installation_id=self.installation.id,
            data_dir=self.installation.data_dir,
            run_dir=self.installation.run_dir,
            cache=self.settings.cache,
            blobs=self._directory("blobs"),
            preboot=self.settings.preboot,
            image_budget=self.settings.image_budget,
        )


def _undo(link: HostLink) -> Callable[..., Coroutine[None, None, None]]:
    """After a start that failed, takes away what it made; the helper refuses that while VMs of an earlier life run."""

    async def undo(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(ShellWeGoError):
                await link.dismantle()

    return undo


def _edge_processes(settings: EdgeSettings) -> tuple[tuple[int, int], ...]:
    return tuple((each.pid, each.start_time) for each in haproxy_processes(Layout(settings.run_dir)))


async def _end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait for their end; one that does not end is named, and left behind after a while."""
    for _ in range(_END_TRIES):
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=_END_TRY_S)
        if not tasks:
            return
        log.warning("parts of the platform do not end", parts=sorted(task.get_name() for task in tasks))


def _stop_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
