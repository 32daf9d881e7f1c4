"""One agent on memory drivers and virtual time, with a control plane of a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from shellwego.agent.daemon import Agent
from shellwego.agent.probes import Target
from shellwego.agent.state import NodeState
from shellwego.core.apps import Check, RestartPolicy
from shellwego.core.assignments import (
    Assignment,
    Assignments,
    NodeReport,
    Registration,
    SecretsRequest,
    SecretValues,
    VolumeKey,
    VolumeKeyRequest,
    VolumeOrder,
    Workload,
    WorkloadMount,
)
from shellwego.core.backups import BackupAccess, BackupAccessRequest
from shellwego.core.errors import ForbiddenError, NotFoundError, ShellWeGoError
from shellwego.core.instances import Observed
from shellwego.core.names import NodeNames
from shellwego.core.nodes import WHOLE
from shellwego.core.publishing import NodePorts
from shellwego.core.sensitive import Sensitive
from shellwego.core.volumes import ObservedVolume
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.drivers.uplink.memory import MemoryLink, MemoryNodeUplink
from shellwego.wire import subjects
from tests.agent.kept import kept_in

NODE = "node_1"


def workload(
    *command: str,
    port: int = 8080,
    checks: tuple[Check, ...] = (),
    restart: RestartPolicy = RestartPolicy(),  # noqa: B008 - frozen
    stop_grace_s: float = 10.0,
    secrets: tuple[str, ...] = (),
    mounts: tuple[WorkloadMount, ...] = (),
) -> Workload:
    return Workload(
        organization_id="org_1",
        project_id="prj_1",
        network_id="net_1",
        app_id="app_1",
        app_name="hello",
        process="web",
        release=1,
        image_digest="sha256:" + "0" * 64,
        command=command or None,
        entrypoint=None,
        env={"KEY": "value"},
        memory_bytes=1 << 28,
        cpu_milli=1000,
        vcpus=1,
        disk_bytes=1 << 30,
        port=port,
        checks=checks,
        restart=restart,
        stop_signal=None,
        stop_grace_s=stop_grace_s,
        secrets=secrets,
        mounts=mounts,
    )


@dataclass
class FakeControl:
    """The control plane's side of the uplink: hands out what the test assigns, keeps what it is told."""

    bus: MemoryBus
    epoch: int = 1
    node_id: str = NODE
    known: bool = True
    turned_away: ShellWeGoError | None = None
    """What each call but those for secrets and keys meets."""
    items: dict[str, Assignment] = field(default_factory=dict)
    reports: list[NodeReport] = field(default_factory=list)
    registrations: list[Registration] = field(default_factory=list)
    observed: dict[str, Observed] = field(default_factory=dict)
    volumes: dict[str, VolumeOrder] = field(default_factory=dict)
    seen: dict[str, ObservedVolume] = field(default_factory=dict)
    """Of the volumes."""
    sequence: int = 0
    secrets_of: dict[str, dict[str, str]] = field(default_factory=dict)
    """By instance id."""
    refusal: ShellWeGoError | None = None
    """What asking for secrets, or a volume's key, meets."""
    handed: int = 0
    names_told: NodeNames = NodeNames(version="")  # noqa: RUF009 - frozen
    names_fetched: int = 0
    ports_told: NodePorts = NodePorts(version="")  # noqa: RUF009 - frozen
    ports_fetched: int = 0
    keys: dict[str, Sensitive] = field(default_factory=dict)
    """Of the encrypted volumes."""

    async def register(self, registration: Registration) -> Assignments:
        self.registrations.append(registration)
        self._check_in()
        self.known = True
        return self._assignments()

    async def assignments(self, node_id: str) -> Assignments:
        self._check(node_id)
        return self._assignments()

    async def report(self, report: NodeReport) -> int:
        self._check(report.node_id)
        self.reports.append(report)
        if report.epoch == self.epoch and report.sequence > self.sequence:
            self.sequence = report.sequence
            self.observed.update(report.instances)
            self.seen.update(report.volumes)
        return self.epoch

    async def names(self, node_id: str) -> NodeNames:
        self._check(node_id)
        self.names_fetched += 1
        return self.names_told

    async def ports(self, node_id: str) -> NodePorts:
        self._check(node_id)
        self.ports_fetched += 1
        return self.ports_told

    async def secrets(self, request: SecretsRequest) -> SecretValues:
        self._check(request.node_id)
        if self.refusal is not None:
            raise self.refusal
        self.handed += 1
        values = self.secrets_of.get(request.instance_id, {})
        return SecretValues(values={name: Sensitive.of(value) for name, value in values.items()})

    async def backup_access(self, request: BackupAccessRequest) -> BackupAccess:
        raise NotFoundError("backup-not-found", f"there is no {request.backup_id}")

    async def volume_key(self, request: VolumeKeyRequest) -> VolumeKey:
        self._check(request.node_id)
        if self.refusal is not None:
            raise self.refusal
        if request.volume_id not in self.keys:
            raise NotFoundError("volume-not-found", f"there is no volume {request.volume_id}")
        self.handed += 1
        return VolumeKey(key=self.keys[request.volume_id])

    async def assign(self, instance_id: str, work: Workload | None = None, *, present: bool = True) -> None:
        """Put an instance on the node (or ask to stop it), and hint."""
        work = work or self.items[instance_id].workload
        self.items[instance_id] = Assignment(instance_id=instance_id, workload=work, present=present)
        await self.hint()

    async def hint(self) -> None:
        await self.bus.publish(subjects.assignments(self.node_id))

    def phase(self, instance_id: str) -> str:
        seen = self.observed.get(instance_id)
        return seen.phase.value if seen else ""

    def is_(self, phase: str, instance_id: str = "ins_1") -> Callable[[], bool]:
        """A condition to wait for."""
        return lambda: self.phase(instance_id) == phase

    async def order(self, order: VolumeOrder) -> None:
        """Want a volume of the node, and hint."""
        self.volumes[order.volume_id] = order
        await self.hint()

    def _assignments(self) -> Assignments:
        items, volumes = tuple(self.items.values()), tuple(self.volumes.values())
        return Assignments(
            node_id=self.node_id,
            epoch=self.epoch,
            items=items,
            volumes=volumes,
            names_version=self.names_told.version,
            ports_version=self.ports_told.version,
        )

    def _check_in(self) -> None:
        if self.turned_away is not None:
            raise self.turned_away

    def _check(self, node_id: str) -> None:
        self._check_in()
        if not self.known or node_id != self.node_id:
            raise ForbiddenError("node-not-known", f"node {node_id} is not known")


@dataclass
class FakeProber:
    """Every check passes, except where the test says why not."""

    clock: VirtualClock
    reason: str = ""
    tries: list[tuple[float, str]] = field(default_factory=list)

    async def probe(self, target: Target, check: Check, connect_s: float) -> str:
        self.tries.append((self.clock.monotonic(), target.vm_id))
        return self.reason


class World:
    """Everything around one agent; the agent itself can be killed and started again."""

    def __init__(self, state_dir: Path) -> None:
        self.clock = VirtualClock()
        self.bus = MemoryBus()
        self.streams = MemoryStreams()
        self.engine = MemoryEngine(self.clock)
        self.control = FakeControl(self.bus)
        self.link = MemoryLink(self.clock)
        self.prober = FakeProber(self.clock)
        self.offer = WHOLE
        self.keep: Callable[[Path], NodeState] = kept_in
        """How what the agent keeps is kept."""
        self._state_dir = state_dir
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start an agent on this host."""
        agent = Agent(
            engine=self.engine,
            uplink=MemoryNodeUplink(self.control, self.link),
            listener=self.streams,
            bus=self.bus,
            clock=self.clock,
            name="one",
            state=self.keep(self._state_dir),
            prober=self.prober,
            offer=self.offer,
        )
        self._running = asyncio.create_task(agent.run())

    async def kill(self) -> None:
        """End the agent; the VMs stay."""
        assert self._running is not None
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
        self._running = None

    async def vms(self) -> dict[str, tuple[int, str]]:
        """Attempt and phase of each instance's newest VM."""
        views = sorted(await self.engine.observe(), key=lambda view: view.attempt)
        return {view.instance_id: (view.attempt, view.phase.value) for view in views}

    async def vm_id(self, instance_id: str = "ins_1") -> str:
        views = [view for view in await self.engine.observe() if view.instance_id == instance_id]
        return max(views, key=lambda view: view.attempt).vm_id


@asynccontextmanager
async def world(state_dir: Path) -> AsyncIterator[World]:
    """A world with a running agent that has registered."""
    one = World(state_dir)
    one.start()
    await one.clock.until(lambda: bool(one.control.reports))
    try:
        yield one
    finally:
        if one._running is not None:
            await one.kill()
        await one.engine.close(keep_vms=False)
