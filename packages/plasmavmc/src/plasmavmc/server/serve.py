"""The server itself: the engine of this host behind gRPC, from its start to its end, as the unprivileged user.

VMs live in sessions and cgroups of their own: a server that is killed leaves them running, and the next start adopts them.
At an asked end VMs are stopped gracefully, and bridge, rules and cgroups are taken away; with `keep_vms` they run on.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import structlog

from plasmavmc.errors import PlasmaError
from plasmavmc.host.client import HelperHost
from plasmavmc.host.installation import Installation
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.policy import RegistryPolicy
from plasmavmc.rpc.gate import Gate
from plasmavmc.server.assembly import Engine, EngineSite, open_engine
from plasmavmc.server.authorizer import PolicyAuthorizer, PolicyFile
from plasmavmc.server.catalogue import Catalogue
from plasmavmc.server.engine import EngineVms
from plasmavmc.server.identity import by_certificate, by_socket
from plasmavmc.server.images import EngineImages
from plasmavmc.server.naming import name_vms
from plasmavmc.server.node import EngineNode, NodeSite
from plasmavmc.server.services import EngineServices
from plasmavmc.server.settings import ServerTls, ServeSettings
from plasmavmc.server.transport import ROOT_UID, listen_tls, listen_unix, socket_of
from plasmavmc.server.upkeep import for_ever

END_GRACE_S = 2.0
"""For calls under way at the end; watches and logs never end by themselves."""

log = structlog.get_logger("plasmavmc.serve")


def run_server(settings: ServeSettings, installation: Installation, tls: ServerTls | None, link: int) -> int:
    """Serve until the end is asked for; returns the exit code. `link` is the way to the root helper.

    Raises:
        PlasmaError: it cannot start.
    """
    _log_to_stderr()
    return asyncio.run(Serving(settings, installation, tls).run(link))


def _log_to_stderr() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@dataclass(slots=True)
class Serving:
    """The unprivileged side, in the order of its making."""

    settings: ServeSettings
    installation: Installation
    tls: ServerTls | None

    async def run(self, link: int) -> int:
        """Open, serve, close; 1 where the root helper ended first."""
        stop, reload = _signals()
        host = HelperHost(link)
        try:
            policy = PolicyFile(self.settings.policy)
            async with AsyncExitStack() as stack:
                stack.push_async_exit(_undo(host))
                blobs = BlobStore(self._directory("blobs"), grace_s=0)
                blobs.sweep()
                engine = await open_engine(host, self._site(), blobs)
                services = self._services(engine, blobs)
                await engine.recover()
                listeners = self._listeners(services, policy)
                parts = {"helper": host.wait_gone(), "policy": _reread(policy, reload), "end": stop.wait()}
                code = await self._serve(engine, services, listeners, parts)
                keep = self.settings.keep_vms or code != 0
                await engine.manager.close(keep_vms=keep)
                await engine.resolver.close(keep=keep)
                if code == 0 and not self.settings.keep_vms:
                    with suppress(PlasmaError):
                        await host.dismantle()
            return code
        finally:
            host.close()

    async def _serve(
        self,
        engine: Engine,
        services: EngineServices,
        listeners: list[grpc.aio.Server],
        parts: Mapping[str, Coroutine[Any, Any, object]],
    ) -> int:
        """Serve until the end is asked for (0), or another part ends by itself (1)."""
        async with services, _listening(listeners, services):
            tasks = {asyncio.create_task(part, name=name) for name, part in parts.items()}
            tasks.add(asyncio.create_task(services.follow(), name="changes"))
            tasks.add(asyncio.create_task(engine.upkeep(), name="upkeep"))
            naming = partial(name_vms, engine.manager, engine.resolver.name)
            tasks.add(asyncio.create_task(for_ever("names", naming), name="names"))
            if self.settings.image_budget:
                keeping = partial(services.images.keep_within, self.settings.image_budget)
                tasks.add(asyncio.create_task(for_ever("image budget", keeping), name="image budget"))
            probe = asyncio.create_task(self._probe(engine, services), name="probe")
            self._tell_ready()
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, probe):
                task.cancel()
            await asyncio.gather(*tasks, probe, return_exceptions=True)
        ended = sorted(task.get_name() for task in done if task.get_name() != "end")
        if ended:
            log.error("server.parts_ended", parts=ended)
        return 1 if ended else 0

    async def _probe(self, engine: Engine, services: EngineServices) -> None:
        """Find out what boots here, where that is not known, and let health tell it, as soon as something is."""
        for probe in engine.probes:
            try:
                await services.settled(engine.parts.registry)
                await probe()
            except PlasmaError as error:
                log.error("probe.failed", error=str(error))
        await services.settled(engine.parts.registry)

    def _listeners(self, services: EngineServices, policy: PolicyFile) -> list[grpc.aio.Server]:
        authorizer = PolicyAuthorizer(policy)
        servers = [
            listen_unix(
                socket_of(self.settings.socket, uid), uid, Gate(by_socket(policy, uid), authorizer), services.enter
            )
            for uid in sorted(policy.current().uids | {ROOT_UID})
        ]
        if self.tls is not None:
            gate = Gate(by_certificate(policy), authorizer)
            servers.append(listen_tls(self.settings.listen, self.tls, gate, services.enter)[0])
        return servers

    def _services(self, engine: Engine, blobs: BlobStore) -> EngineServices:
        catalogue = Catalogue(self.installation.data_dir / "images.json")
        site = NodeSite(
            id=f"node_{self.installation.key}",
            name=socket.gethostname(),
            version=version("plasmavmc"),
            state_file=self.installation.data_dir / "node.json",
            disk_dir=engine.disk_dir,
            max_vms=engine.max_vms,
            kernel=engine.parts.assets.kernel_release,
            volumes=engine.manager.volumes.driver,
        )
        node = EngineNode(site, engine.manager, engine.parts.registry)
        images = EngineImages(
            engine.parts.images,
            blobs,
            catalogue,
            vms=engine.manager.list_vms,
            policy=RegistryPolicy(self.settings.registries_allow),
        )
        return EngineServices(EngineVms(engine.manager, catalogue, node), images, node)

    def _tell_ready(self) -> None:
        also = f"\n  tcp      {self.settings.listen}" if self.settings.listen else ""
        print(
            f"PlasmaVMC is ready.\n  socket   unix:{self.settings.socket}{also}\n"
            f"  data     {self.installation.data_dir}",
            flush=True,
        )

    def _site(self) -> EngineSite:
        return EngineSite(
            installation_id=self.installation.id,
            data_dir=self.installation.data_dir,
            run_dir=self.installation.run_dir,
            cache=self.settings.cache,
            blobs=self._directory("blobs"),
            preboot=self.settings.preboot,
            zfs=self.settings.zfs,
        )

    def _directory(self, name: str) -> Path:
        path = self.installation.data_dir / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path


@asynccontextmanager
async def _listening(servers: list[grpc.aio.Server], services: EngineServices) -> AsyncIterator[None]:
    """Serve on all; at the end health says so first, and calls under way have a little time."""
    try:
        for server in servers:
            await server.start()
        yield
    finally:
        await services.tell_end()
        await asyncio.gather(*(server.stop(END_GRACE_S) for server in servers))


async def _reread(policy: PolicyFile, reload: asyncio.Event) -> None:
    while True:
        await reload.wait()
        reload.clear()
        policy.reload()


def _undo(host: HelperHost) -> Callable[..., Coroutine[None, None, None]]:
    """After a start that failed, takes away what it made; the helper refuses that while VMs of an earlier life run."""

    async def undo(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(PlasmaError):
                await host.dismantle()

    return undo


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by SIGTERM and SIGINT; set by SIGHUP."""
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    return stop, reload
