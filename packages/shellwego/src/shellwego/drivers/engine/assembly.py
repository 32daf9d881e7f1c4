"""The engine of this host behind the platform's port: PlasmaVMC's parts, joined by PlasmaVMC itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from plasmavmc.backends import BackendStatus, Readiness
from plasmavmc.host.client import HelperHost
from plasmavmc.host.operations import ProcessId, Reach, Underlay
from plasmavmc.images.source import BlobSource
from plasmavmc.server.assembly import EngineSite, open_engine
from shellwego.core.nodes import MAX_IMAGES, Backend
from shellwego.drivers.engine.failures import translated
from shellwego.drivers.engine.host import confinement
from shellwego.drivers.engine.plasmavmc import PlasmaEngine
from shellwego.drivers.engine.words import to_backend

__all__ = ["EngineSite", "HostLink", "Reach", "Underlay", "open_plasma"]


class HostLink:
    """What the platform itself needs of the root helper."""

    def __init__(self, descriptor: int) -> None:
        self.host = HelperHost(descriptor)
        self.confinement = confinement()
        """What bounds processes here: as the host's mounts say, then in the helper's own word once it has placed the edge.
        An edge that is adopted is not placed again."""

    async def listen(self, address: str, port: int) -> int:
        """A listening socket's descriptor; `UnavailableError` with the remedy where the port is taken."""
        with translated():
            return await self.host.listen(address, port)

    async def place_edge(self, pid: int, start_time: int) -> str:
        """Move HAProxy into a cgroup of its own; returns the confinement."""
        with translated():
            self.confinement = await self.host.cgroup_place("haproxy", ProcessId(pid, start_time))
        return self.confinement

    async def dismantle(self) -> None:
        """Take bridge, rules and cgroups away; nothing runs any more."""
        with translated():
            await self.host.dismantle()

    async def gone(self) -> None:
        """Return when the helper has ended: then the platform must end, too."""
        await self.host.wait_gone()

    def close(self) -> None:
        """Let go of the helper, which then ends."""
        self.host.close()


def _backend(status: BackendStatus) -> Backend:
    match status.readiness:
        case Readiness.READY if status.capabilities is not None:
            return to_backend(status.capabilities, reason=status.reason)
        case Readiness.PROBING:
            return Backend(name=status.name, status="probing", reason=status.reason)
        case _:
            return Backend(name=status.name, status="failed", reason=status.reason)


async def open_plasma(
    link: HostLink,
    site: EngineSite,
    version: str,
    edge_processes: Callable[[], Iterable[tuple[int, int]]],
    blobs: BlobSource | None = None,
) -> PlasmaEngine:
    """Join the parts. What runs is adopted by `engine.start()`, whose sweep spares the edge's processes (pid, start time).
    `blobs` is where images come from, if not from the directory that the site names.

    Raises:
        UnavailableError, InvalidError: the host's cache is not filled, a program is missing, no subnet is free.
    """
    with translated():
        engine = await open_engine(link.host, site, blobs)

    async def probe() -> None:
        for each in engine.probes:
            await each()

    return PlasmaEngine(
        engine.manager,
        probe=probe,
        recover=engine.recover,
        resolver=engine.resolver,
        upkeep=engine.upkeep,
        backends=lambda: tuple(_backend(status) for status in engine.parts.registry.statuses()),
        disk_dir=engine.disk_dir,
        images=lambda: engine.parts.images.recent(MAX_IMAGES),
        subnet=str(engine.subnet),
        underlay=site.reach.underlay.value,
        publish=site.publish,
        tunnel_port=site.reach.port,
        network=engine.parts.network,
        version=version,
        confinement=lambda: link.confinement,
        processes=lambda: tuple(ProcessId(pid, start_time) for pid, start_time in edge_processes()),
    )
