"""The engine port over PlasmaVMC, in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import structlog

from plasmavmc.host import capacity
from plasmavmc.host.operations import ProcessId, Source
from plasmavmc.host.ports import NOTHING_PUBLISHED, PublishSite
from plasmavmc.manager import VmManager
from plasmavmc.network.backend import NetworkBackend
from plasmavmc.network.dns.keeper import ResolverKeeper
from plasmavmc.server.assembly import Probe
from plasmavmc.server.upkeep import Upkeep
from plasmavmc.types import CopyTarget, ExecSpec, Vm
from shellwego.core.destinations import Destination
from shellwego.core.names import NetworkNames
from shellwego.core.nodes import Backend, NodeFacts, Underlay
from shellwego.core.openings import Ingress
from shellwego.core.peers import PeerNode
from shellwego.core.publishing import OpenPort
from shellwego.core.sensitive import Sensitive
from shellwego.core.volumes import VolumeView
from shellwego.drivers.engine import warnings
from shellwego.drivers.engine.failures import translated
from shellwego.drivers.engine.orders import to_spec, to_view
from shellwego.drivers.engine.portwatch import PortWatch
from shellwego.drivers.engine.sessions import PlasmaExec, PlasmaSource, terminal_size
from shellwego.drivers.engine.words import (
    to_egress,
    to_ingress,
    to_names,
    to_network_usage,
    to_peer,
    to_published,
    to_usage,
    to_volume,
    to_words,
)
from shellwego.ports.engine import LogRecord, NetworkUsage, VmOrder, VmUsage, VmView
from shellwego.ports.streams import StreamKind, StreamRequest

SNAPSHOT_HOSTS_S = 60.0
"""How long what snapshots depend on here is believed to be the same."""

_log = structlog.get_logger("shellwego.engine")


class PlasmaEngine:
    """`ports.engine.Engine`, `VolumeEngine` and `FencingEngine` on a `VmManager`."""

    def __init__(
        self,
        manager: VmManager,
        *,
        backends: Callable[[], tuple[Backend, ...]],
        disk_dir: Path,
        version: str,
        confinement: Callable[[], str],
        network: NetworkBackend,
        publish: PublishSite = NOTHING_PUBLISHED,
        images: Callable[[], tuple[str, ...]] = tuple,
        subnet: str = "",
        underlay: str = Underlay.PLAIN.value,
        tunnel_port: int = 0,
        probe: Probe | None = None,
        upkeep: Upkeep | None = None,
        processes: Callable[[], tuple[ProcessId, ...]] = tuple,
        recover: Callable[[tuple[ProcessId, ...]], Awaitable[object]] | None = None,
        resolver: ResolverKeeper | None = None,
    ) -> None:
        self._manager = manager
        self._recover = recover or manager.recover
        self._resolver = resolver
        self._probe = probe
        self._processes = processes
        self._upkeep = upkeep
        self._beside: list[asyncio.Task[None]] = []
        self._backends = backends
        self._disk_dir = disk_dir
        self._version = version
        self._confinement = confinement
        self._network = network
        self._ports = PortWatch(publish)
        self._images = images
        self._subnet = subnet
        self._underlay = Underlay(underlay)
        self._tunnel_port = tunnel_port
        self._seen = -1
        self._hosts: dict[str, tuple[tuple[str, str], ...]] = {}
        self._hosts_due = 0.0
        self._hosts_of: tuple[str, ...] = ()
        self._stops: dict[str, asyncio.Task[Vm]] = {}

    async def connect(self, peers: Sequence[PeerNode], key_step: int = 0) -> tuple[PeerNode, ...]:
        wanted = {to_peer(peer): peer for peer in peers}
        with translated():
            return tuple(wanted[peer] for peer in await self._network.connect(tuple(wanted), key_step))

    async def name(self, networks: Sequence[NetworkNames]) -> None:
        if self._resolver is not None:
            self._resolver.name(to_names(networks))

    async def publish(self, ports: Sequence[OpenPort]) -> None:
        self._ports.published = tuple(ports)
        with translated():
            await self._network.publish([to_published(port) for port in ports])

    async def start(self) -> None:
        with translated():
            await self._recover(self._processes())
        if self._probe is not None:
            self._beside.append(asyncio.create_task(self._probe(), name="probe"))
        if self._upkeep is not None:
            self._beside.append(asyncio.create_task(self._upkeep(), name="upkeep"))

    async def facts(self) -> NodeFacts:
        backends = await self._with_snapshot_hosts(self._backends())
        return NodeFacts(
            hostname=socket.gethostname(),
            version=self._version,
            cpu_milli=capacity.cpu_milli(),
            memory_bytes=capacity.memory_bytes(),
            disk_bytes=capacity.disk_bytes(self._disk_dir),
            backends=backends,
            confinement=self._confinement(),
            warnings=self._warnings(backends),
            subnet=self._subnet,
            underlay=self._underlay,
            tunnel_keys=self._network.keys,
            tunnel_port=self._tunnel_port,
            disk_free_bytes=capacity.disk_free_bytes(self._disk_dir),
            images=self._images(),
        )

    def _warnings(self, backends: tuple[Backend, ...]) -> tuple[str, ...]:
        """What is weaker on this host than it should be."""
        manager, resolver = self._manager, self._resolver
        return (
            *warnings.emulation(backends),
            *warnings.confinement(self._confinement()),
            *warnings.volume_driver(manager.volumes.driver),
            *warnings.guarding(manager.guarding),
            *warnings.without_ipv6(manager.lacks_ipv6),
            *warnings.slow_tunnel(self._network.encrypted_by),
            *warnings.unrecognized(self._network.unrecognized),
            *warnings.nameless(resolver.trouble if resolver is not None else ""),
            *self._ports.warnings(),
        )

    async def _with_snapshot_hosts(self, backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
        """Asked again now and then only: it reads files, and changes when the host is updated."""
        now, ready = asyncio.get_running_loop().time(), tuple(each.name for each in backends if each.suspend)
        if now >= self._hosts_due or ready != self._hosts_of:
            hosts = await self._manager.snapshot_hosts()
            self._hosts = {host.backend: to_words(host.traits) for host in hosts}
            self._hosts_due, self._hosts_of = now + SNAPSHOT_HOSTS_S, ready
        return tuple(
            replace(each, snapshot_host=self._hosts.get(each.name, ()) if each.suspend else ()) for each in backends
        )

    async def run(self, order: VmOrder) -> None:
        with translated():
            self._manager.create(to_spec(order))
            self._manager.start(order.vm_id)

    async def stop(self, vm_id: str, grace_s: float) -> None:
        with translated():
            self._manager.get(vm_id)
        if vm_id not in self._stops:
            task = asyncio.create_task(self._manager.stop(vm_id, grace_s), name=f"stop {vm_id}")
            self._stops[vm_id] = task
            task.add_done_callback(lambda over: self._stopped(vm_id, over))

    def _stopped(self, vm_id: str, over: asyncio.Task[Vm]) -> None:
        """A stop is over. Nobody waits for it, so this is the place where it is told why it failed."""
        self._stops.pop(vm_id, None)
        if not over.cancelled() and (error := over.exception()) is not None:
            _log.warning("engine.not_stopped", vm=vm_id, reason=str(error) or type(error).__name__)

    async def restrict(self, vm_id: str, egress: Sequence[Destination] | None) -> None:
        with translated():
            await self._manager.restrict(vm_id, to_egress(egress))

    async def screen(self, vm_id: str, identity: str, ingress: Ingress) -> None:
        with translated():
            await self._manager.screen(vm_id, identity, to_ingress(ingress))

    async def recognize(self, known: Mapping[str, Sequence[str]]) -> None:
        sources = [Source(app_id, IPv6Address(each)) for app_id, addresses in known.items() for each in addresses]
        with translated():
            await self._network.recognize(sources)

    async def suspend(self, vm_id: str) -> None:
        with translated():
            await self._manager.suspend(vm_id)

    async def resume(self, vm_id: str) -> None:
        with translated():
            await self._manager.resume(vm_id)

    async def export_memory(self, vm_id: str) -> AsyncGenerator[bytes]:
        with translated():
            async with aclosing(self._manager.export_snapshot(vm_id)) as stream:
                async for chunk in stream:
                    yield chunk

    async def import_memory(self, order: VmOrder, stream: AsyncIterable[bytes]) -> None:
        with translated():
            await self._manager.import_snapshot(to_spec(order), stream)

    async def delete(self, vm_id: str) -> None:
        with translated():
            await self._manager.delete(vm_id)

    async def observe(self) -> tuple[VmView, ...]:
        self._seen = self._manager.revision
        return tuple(to_view(vm) for vm in self._manager.list_vms())

    async def usage(self, vm_id: str) -> VmUsage:
        with translated():
            return to_usage((await self._manager.describe(vm_id)).status.usage)

    async def traffic(self) -> Mapping[str, NetworkUsage]:
        with translated():
            return {id_: to_network_usage(used) for id_, used in (await self._manager.traffic()).items()}

    async def changed(self) -> None:
        await self._manager.changed(self._seen)

    async def volumes(self) -> tuple[VolumeView, ...]:
        with translated():
            return tuple(to_volume(volume) for volume in await self._manager.volumes.list())

    async def create_volume(self, volume_id: str, size_bytes: int, key: Sensitive | None = None) -> None:
        with translated():
            await self._manager.volumes.create(volume_id, size_bytes, key=None if key is None else key.reveal())

    async def unlock_volume(self, volume_id: str, key: Sensitive) -> None:
        with translated():
            await self._manager.volumes.unlock(volume_id, key.reveal())

    async def clone_volume(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        with translated():
            await self._manager.volumes.clone(snapshot_id, volume_id, size_bytes)

    @asynccontextmanager
    async def read_snapshot(self, snapshot_id: str) -> AsyncGenerator[PlasmaSource]:
        async with AsyncExitStack() as stack:
            with translated():
                reader = await stack.enter_async_context(self._manager.volumes.content.reading(snapshot_id))
            yield PlasmaSource(reader)

    async def fill_volume(
        self,
        volume_id: str,
        stored_bytes: int,
        content: AsyncIterable[tuple[int, bytes]],
        key: Sensitive | None = None,
    ) -> None:
        opened = None if key is None else key.reveal()
        with translated():
            await self._manager.volumes.content.fill(volume_id, stored_bytes, content, key=opened)

    async def resize_volume(self, volume_id: str, size_bytes: int) -> None:
        with translated():
            await self._manager.volumes.resize(volume_id, size_bytes)

    async def snapshot_volume(self, volume_id: str, snapshot_id: str, *, freeze: bool) -> None:
        with translated():
            await self._manager.volumes.snapshot(volume_id, snapshot_id, freeze=freeze)

    async def restore_volume(self, volume_id: str, snapshot_id: str) -> None:
        with translated():
            await self._manager.volumes.restore(volume_id, snapshot_id)

    async def send_snapshot(self, snapshot_id: str, since: str = "") -> AsyncGenerator[bytes]:
        with translated():
            async with aclosing(self._manager.volumes.content.send(snapshot_id, since)) as stream:
                async for part in stream:
                    yield part

    async def receive_snapshot(
        self, volume_id: str, snapshot_id: str, stream: AsyncIterable[bytes], since: str = ""
    ) -> str:
        with translated():
            return await self._manager.volumes.content.receive(volume_id, snapshot_id, stream, since=since)

    async def delete_volume(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        with translated():
            await self._manager.volumes.delete(volume_id, with_snapshots=with_snapshots)

    async def fence_volumes(self, until: Mapping[str, float]) -> None:
        with translated():
            await self._manager.fence(until)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        with translated():
            await self._manager.volumes.delete_snapshot(snapshot_id)

    async def exec(self, vm_id: str, request: StreamRequest) -> PlasmaExec:
        spec = ExecSpec(
            command=request.command,
            env=request.env,
            workdir=request.workdir or None,
            user=request.user or None,
            terminal=terminal_size(request),
        )
        with translated():
            return PlasmaExec(await self._manager.exec(vm_id, spec))

    async def join(self, vm_id: str, request: StreamRequest) -> PlasmaExec:
        with translated():
            match request.kind:
                case StreamKind.COPY_IN:
                    target = CopyTarget(request.path, request.name, request.contents)
                    return PlasmaExec(await self._manager.copy_in(vm_id, target))
                case StreamKind.COPY_OUT:
                    return PlasmaExec(await self._manager.copy_out(vm_id, request.path))
                case _:
                    return PlasmaExec(self._manager.attach(vm_id, terminal_size(request)))

    async def logs(self, vm_id: str, *, follow: bool, tail: int, since: float) -> AsyncIterator[LogRecord]:
        with translated():
            async for line in self._manager.logs(vm_id, follow=follow, tail=tail, since=since):
                yield LogRecord(time=line.time, stream=line.stream.value, text=line.text)

    async def close(self, *, keep_vms: bool) -> None:
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)  # a probe ends its VM first
        await self._manager.close(keep_vms=keep_vms)
        if self._resolver is not None:
            await self._resolver.close(keep=keep_vms)
