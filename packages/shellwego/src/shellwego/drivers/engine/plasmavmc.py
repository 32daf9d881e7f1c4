"""The engine port over PlasmaVMC, in this process.

Theory. The platform's words (instance, attempt, workload) ride in a VM's labels, which the engine keeps across its own
restarts; so what `observe` tells of an adopted VM is complete without any memory of ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from plasmavmc import errors as engine_errors
from plasmavmc import types
from plasmavmc.guest.api import ExecExit, ExecSession
from plasmavmc.host import capacity
from plasmavmc.host.operations import Peer, ProcessId
from plasmavmc.manager import VmManager
from plasmavmc.server.assembly import Probe, Upkeep
from plasmavmc.states import VmState
from plasmavmc.types import (
    OWN_DISKS,
    BackendCapabilities,
    CopyTarget,
    DiskSource,
    DiskSpec,
    ExecSpec,
    NetworkSpec,
    Scope,
    TerminalSize,
    Vm,
    VmResources,
    VmSpec,
)
from plasmavmc.volumes import VolumeView as EngineVolume
from shellwego.core.assignments import WorkloadMount
from shellwego.core.errors import ConflictError, InvalidError, NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.nodes import Backend, NodeFacts
from shellwego.core.peers import PeerNode
from shellwego.core.volumes import SnapshotView, VolumeView
from shellwego.ports.engine import ExecData, ExecDone, LogRecord, VmOrder, VmPhase, VmUsage, VmView
from shellwego.ports.streams import StreamKind, StreamRequest

SNAPSHOT_HOSTS_S = 60.0
LONGEST_WORD = 128
"""Of what is told of a host; servers take no essays."""
_PHASES = {
    VmState.PENDING: VmPhase.PREPARING,
    VmState.PREPARING: VmPhase.PREPARING,
    VmState.STARTING: VmPhase.STARTING,
    VmState.RUNNING: VmPhase.RUNNING,
    VmState.PAUSED: VmPhase.RUNNING,
    VmState.SUSPENDING: VmPhase.SUSPENDING,
    VmState.SUSPENDED: VmPhase.ASLEEP,
    VmState.RESUMING: VmPhase.RESUMING,
    VmState.STOPPING: VmPhase.STOPPING,
    VmState.STOPPED: VmPhase.ENDED,
    VmState.FAILED: VmPhase.ENDED,
    VmState.DELETING: VmPhase.ENDED,
    VmState.DELETED: VmPhase.ENDED,
}


def to_spec(order: VmOrder) -> VmSpec:
    """The engine's specification of an order. Pure."""
    work = order.workload
    return VmSpec(
        id=order.vm_id,
        scope=Scope(work.organization_id, work.project_id),
        name=work.app_name,
        image=work.image_digest,
        command=work.command,
        entrypoint=work.entrypoint,
        env={**work.env, **_revealed(order), "SHELLWEGO_VM_ID": order.vm_id},
        resources=VmResources(work.cpu_milli, work.vcpus, work.memory_bytes, work.disk_bytes),
        volumes=tuple(_disk(mount) for mount in work.mounts),
        networks=(NetworkSpec(f"nic_{order.vm_id}", work.network_id),),
        stop_signal=work.stop_signal,
        stop_grace_s=work.stop_grace_s,
        backend=work.backend,
        labels={
            "instance": order.instance_id,
            "attempt": str(order.attempt),
            "app": work.app_id,
            "process": work.process,
            "release": str(work.release),
        },
    )


def _disk(mount: WorkloadMount) -> DiskSpec:
    return DiskSpec(
        id=mount.volume_id,
        source=DiskSource.VOLUME,
        read_only=mount.read_only,
        reference=mount.volume_id,
        destination=mount.destination,
    )


def to_volume(found: EngineVolume) -> VolumeView:
    """What the agent sees of a volume. Pure."""
    return VolumeView(
        volume_id=found.volume_id,
        size_bytes=found.size_bytes,
        used_bytes=found.used_bytes,
        vm_id=found.vm_id,
        snapshots=tuple(
            SnapshotView(snapshot_id=each.snapshot_id, used_bytes=each.used_bytes) for each in found.snapshots
        ),
    )


def _revealed(order: VmOrder) -> dict[str, str]:
    """Here the values leave their wrapping: the engine writes no environment to a disk, a log or a command line."""
    return {name: value.reveal_text() for name, value in order.secrets.items()}


def to_view(vm: Vm) -> VmView:
    """What the agent sees of a VM. Pure."""
    status, labels = vm.status, vm.spec.labels
    phase = _PHASES[status.state]
    preparing = phase in (VmPhase.PREPARING, VmPhase.STARTING)
    addresses = [endpoint.removeprefix("tcp:") for endpoint in status.endpoints]
    return VmView(
        vm_id=vm.spec.id,
        instance_id=labels.get("instance", ""),
        attempt=int(labels.get("attempt", "0")),
        phase=phase,
        address=addresses[0] if addresses else "",
        detail=status.reason_code if preparing else "",
        asked=phase is VmPhase.STOPPING or status.reason_code == "stopped",
        exit_code=status.exit_code,
        reason=status.reason,
        reason_code="" if preparing else status.reason_code,
        permanent=status.permanent,
        log_tail=status.log_tail,
        acceleration=status.acceleration,
        labels=labels,
    )


def to_usage(used: types.VmUsage) -> VmUsage:
    """What a VM uses, in the platform's words. Pure."""
    pressed = used.pressure
    return VmUsage(
        memory_bytes=used.memory_rss_bytes,
        cpu_seconds=used.cpu_seconds,
        disk_bytes=used.disk_bytes,
        pressure={} if pressed is None else {"cpu": pressed.cpu, "memory": pressed.memory, "io": pressed.io},
    )


@contextmanager
def translated() -> Iterator[None]:
    """The engine's errors in the platform's words."""
    try:
        yield
    except engine_errors.NotFoundError as error:
        raise NotFoundError(error.code, error.brief, resolution=error.resolution) from error
    except (engine_errors.ConflictError, engine_errors.GuestError) as error:
        raise ConflictError(error.code, _told(error), resolution=error.resolution) from error
    except engine_errors.InvalidSpecError as error:
        raise InvalidError(error.code, error.brief, resolution=error.resolution) from error
    except engine_errors.PlasmaError as error:
        kind: type[ShellWeGoError] = UnavailableError if error.temporary else InvalidError
        raise kind(error.code, _told(error), resolution=error.resolution) from error


def _told(error: engine_errors.PlasmaError) -> str:
    """What happened and what was seen; the remedy goes its own way."""
    return " — ".join(filter(None, (error.brief, error.details)))


class PlasmaExec:
    """An exec session of the engine in the platform's words."""

    def __init__(self, session: ExecSession) -> None:
        self._session = session

    async def send(self, data: bytes) -> None:
        with translated():
            await self._session.send(data)

    async def send_eof(self) -> None:
        with translated():
            await self._session.send_eof()

    async def resize(self, rows: int, columns: int) -> None:
        with translated():
            await self._session.resize(TerminalSize(rows, columns))

    async def signal(self, number: int) -> None:
        with translated():
            await self._session.signal(number)

    async def output(self) -> AsyncIterator[ExecData | ExecDone]:
        with translated():
            async for item in self._session.output():
                match item:
                    case ExecExit(code):
                        yield ExecDone(code=code)
                    case _:
                        yield ExecData(stream=item.stream.value, data=item.data)

    async def aclose(self) -> None:
        await self._session.aclose()


class PlasmaEngine:
    """`ports.engine.Engine` and `VolumeEngine` on a `VmManager`."""

    def __init__(
        self,
        manager: VmManager,
        *,
        backends: Callable[[], tuple[Backend, ...]],
        disk_dir: Path,
        version: str,
        confinement: Callable[[], str],
        connect: Callable[[Sequence[Peer]], Awaitable[tuple[Peer, ...]]],
        images: Callable[[], tuple[str, ...]] = tuple,
        subnet: str = "",
        probe: Probe | None = None,
        upkeep: Upkeep | None = None,
        processes: Callable[[], tuple[ProcessId, ...]] = tuple,
    ) -> None:
        self._manager = manager
        self._probe = probe
        self._processes = processes
        self._upkeep = upkeep
        self._beside: list[asyncio.Task[None]] = []
        self._backends = backends
        self._disk_dir = disk_dir
        self._version = version
        self._confinement = confinement
        self._connect = connect
        self._images = images
        self._subnet = subnet
        self._seen = -1
        self._hosts: dict[str, tuple[tuple[str, str], ...]] = {}
        self._hosts_due = 0.0
        self._hosts_of: tuple[str, ...] = ()
        self._stops: dict[str, asyncio.Task[Vm]] = {}

    async def connect(self, peers: Sequence[PeerNode]) -> tuple[PeerNode, ...]:
        wanted = {Peer(IPv4Network(peer.subnet), IPv4Address(peer.address)): peer for peer in peers}
        with translated():
            return tuple(wanted[peer] for peer in await self._connect(tuple(wanted)))

    async def start(self) -> None:
        with translated():
            await self._manager.recover(self._processes())
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
            warnings=_warnings(backends, self._confinement(), self._manager.volumes.driver),
            subnet=self._subnet,
            disk_free_bytes=capacity.disk_free_bytes(self._disk_dir),
            images=self._images(),
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
            task.add_done_callback(lambda _task: self._stops.pop(vm_id, None))

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

    async def changed(self) -> None:
        await self._manager.changed(self._seen)

    async def volumes(self) -> tuple[VolumeView, ...]:
        with translated():
            return tuple(to_volume(volume) for volume in await self._manager.volumes.list())

    async def create_volume(self, volume_id: str, size_bytes: int) -> None:
        with translated():
            await self._manager.volumes.create(volume_id, size_bytes)

    async def clone_volume(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        with translated():
            await self._manager.volumes.clone(snapshot_id, volume_id, size_bytes)

    async def resize_volume(self, volume_id: str, size_bytes: int) -> None:
        with translated():
            await self._manager.volumes.resize(volume_id, size_bytes)

    async def snapshot_volume(self, volume_id: str, snapshot_id: str, *, freeze: bool) -> None:
        with translated():
            await self._manager.volumes.snapshot(volume_id, snapshot_id, freeze=freeze)

    async def restore_volume(self, volume_id: str, snapshot_id: str) -> None:
        with translated():
            await self._manager.volumes.restore(volume_id, snapshot_id)

    async def delete_volume(self, volume_id: str) -> None:
        with translated():
            await self._manager.volumes.delete(volume_id)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        with translated():
            await self._manager.volumes.delete_snapshot(snapshot_id)

    async def exec(self, vm_id: str, request: StreamRequest) -> PlasmaExec:
        spec = ExecSpec(
            command=request.command,
            env=request.env,
            workdir=request.workdir or None,
            user=request.user or None,
            terminal=_terminal(request),
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
                    return PlasmaExec(self._manager.attach(vm_id, _terminal(request)))

    async def logs(self, vm_id: str, *, follow: bool, tail: int, since: float) -> AsyncIterator[LogRecord]:
        with translated():
            async for line in self._manager.logs(vm_id, follow=follow, tail=tail, since=since):
                yield LogRecord(time=line.time, stream=line.stream.value, text=line.text)

    async def close(self, *, keep_vms: bool) -> None:
        for task in self._beside:
            task.cancel()
        await self._manager.close(keep_vms=keep_vms)


def _terminal(request: StreamRequest) -> TerminalSize | None:
    return TerminalSize(request.rows, request.columns) if request.rows and request.columns else None


def _warnings(backends: tuple[Backend, ...], confinement: str, volumes: str) -> tuple[str, ...]:
    """What is weaker on this host than it should be."""
    warnings = [
        f"the CPU is emulated, so VMs are slow and isolated by software only: {backend.reason}"
        for backend in backends
        if backend.acceleration == "tcg"
    ]
    if confinement == "rlimits":
        warnings.append("no cgroups are available: VMs are bounded by rlimits only, CPU shares are not enforced")
    if volumes == "file":
        warnings.append(
            "its file system shares no blocks: each snapshot of a volume is a whole copy, and the VM stands still meanwhile"
            " — Have the data directory on XFS or Btrfs."
        )
    return tuple(warnings)


def to_words(traits: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What is told of a host, by name; what is long is told by its digest. Pure."""
    short = {
        name: text if len(text) <= LONGEST_WORD else hashlib.sha256(text.encode()).hexdigest()
        for name, text in traits.items()
    }
    return tuple(sorted(short.items()))


def to_backend(capabilities: BackendCapabilities, *, reason: str = "") -> Backend:
    """A usable backend as the platform tells it."""
    return Backend(
        name=capabilities.name,
        status="ready",
        acceleration=capabilities.acceleration.value,
        isolation=capabilities.isolation.value,
        reason=reason,
        max_vcpus=capabilities.max_vcpus,
        max_memory_bytes=capabilities.max_memory_bytes,
        suspend=capabilities.suspend,
        volumes=capabilities.max_disks > OWN_DISKS,
    )
