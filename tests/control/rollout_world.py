"""A control plane on memory drivers and virtual time, with nodes and an edge that do as they are told by the real rules.

`FakeNode` runs `core.convergence` over VMs that are rows in a dictionary; `FakeEdge` applies tables. Both can be silenced.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

from shellwego.agent.report import Reports, Sight
from shellwego.control.edges import Edges
from shellwego.control.loops import drains as drains_loop
from shellwego.control.loops import moves as moves_loop
from shellwego.control.loops import nodes as nodes_loop
from shellwego.control.loops import rollout as rollout_loop
from shellwego.control.loops import routes as routes_loop
from shellwego.control.loops import standbys as standbys_loop
from shellwego.control.nodes import Nodes
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control, Unit
from shellwego.core.apps import App, AppConfig, Mount, Process, Release, RestartMode, Service, content_hash
from shellwego.core.assignments import Assignments, Registration
from shellwego.core.attempts import Memory
from shellwego.core.convergence import DeleteVm, ResumeVm, RunVm, StopVm, SuspendVm, converge
from shellwego.core.deployments import Deployment, DeploymentState, Stage
from shellwego.core.errors import UnavailableError
from shellwego.core.health import Health, Verdict
from shellwego.core.images import Image, ImageState
from shellwego.core.instances import Desired, Instance
from shellwego.core.nodes import Backend, Node, NodeFacts
from shellwego.core.placement_rules import ANYWHERE, PlacementRules
from shellwego.core.routing import EdgeReport, RouteTable
from shellwego.core.tenancy import Organization, Project
from shellwego.core.vms import VmPhase, VmView
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.store import Store, Transaction, eq

T = TypeVar("T")
GIB = 1 << 30
ORG, PRJ = "org_x", "prj_x"
PROCESS = Process()


def node_facts(**changes: object) -> NodeFacts:
    facts = NodeFacts(
        hostname="host",
        version="1",
        cpu_milli=8000,
        memory_bytes=8 * GIB,
        disk_bytes=100 * GIB,
        backends=(Backend(name="kvm", status="ready"),),
    )
    return replace(facts, **changes)  # type: ignore[arg-type]


@dataclass(slots=True)
class FakeNode:
    """An agent with a make-believe engine: VMs boot at once; `exits` images end at once, `sick` ones pass no check."""

    clock: VirtualClock
    uplink: Nodes
    name: str = "one"
    facts: NodeFacts = field(default_factory=node_facts)
    exits: set[str] = field(default_factory=set)
    sick: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    """Instances whose checks fail after they had passed."""
    boots_fail: bool = False
    slow_to_stop: bool = False
    """A VM goes on until the look after the one that stops it."""
    commands_end: int | None = 0
    """The exit code of what is to run once; None: it runs on."""
    commands: list[str] = field(default_factory=list)
    """The images of the commands that were started, one for each start."""
    builds: Callable[[str], bool] = lambda _: True
    """Whether the layers that it gets of an image are what they should be."""
    silent: bool = False
    node_id: str = ""
    epoch: int = 0
    sequence: int = 0
    vms: dict[str, VmView] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    reports: Reports = field(default_factory=Reports)
    boots: int = 0

    async def run(self) -> None:
        answer = await self.uplink.register(
            Registration(name=self.name, facts=self.facts, known_node_id=self.node_id, known_epoch=self.epoch)
        )
        self.node_id, self.epoch = answer.node_id, answer.epoch
        self.reports.start_over()
        while True:
            pause_s = 0.1
            if not self.silent:
                try:
                    await self.look()
                except UnavailableError:
                    pause_s = 1.0
            await self.clock.sleep(pause_s)

    async def look(self) -> None:
        told = await self.uplink.assignments(self.node_id)
        if told.epoch > self.epoch:
            self.epoch = told.epoch
            self.reports.start_over()
        now = self.clock.monotonic()
        for vm in [vm for vm in self.vms.values() if vm.phase is VmPhase.STOPPING]:
            self._stopped(vm.vm_id)
        health = {vm.vm_id: self._check(vm) for vm in self.vms.values()}
        look = converge(told.items, self.vms.values(), self.memories, health, now)
        self.memories = dict(look.memories)
        self.sequence += 1
        seen = Sight(instances=look.observed)
        report = self.reports.build(
            node_id=self.node_id, epoch=self.epoch, sequence=self.sequence, facts=self.facts, seen=seen, now=now
        )
        await self.uplink.report(report)
        self.reports.confirm(report, seen)
        for action in look.actions:
            match action:
                case RunVm():
                    self._boot(action)
                case StopVm(vm_id=vm_id) if self.slow_to_stop:
                    self.vms[vm_id] = replace(self.vms[vm_id], phase=VmPhase.STOPPING)
                case StopVm(vm_id=vm_id):
                    self._stopped(vm_id)
                case SuspendVm(vm_id=vm_id):
                    self.vms[vm_id] = replace(self.vms[vm_id], phase=VmPhase.ASLEEP)
                case ResumeVm(vm_id=vm_id):
                    self.vms[vm_id] = replace(self.vms[vm_id], phase=VmPhase.RUNNING)
                case DeleteVm():
                    del self.vms[action.vm_id]

    def _stopped(self, vm_id: str) -> None:
        self.vms[vm_id] = replace(self.vms[vm_id], phase=VmPhase.ENDED, asked=True, exit_code=143)

    def _check(self, vm: VmView) -> Health:
        if vm.instance_id in self.failing:
            return Health(vm_id=vm.vm_id, verdict=Verdict.FAILING, reason="connection refused")
        if self.images[vm.vm_id] in self.sick:
            return Health(vm_id=vm.vm_id, verdict=Verdict.WAITING, reason="connection refused")
        return Health(vm_id=vm.vm_id, verdict=Verdict.PASSING)

    def _boot(self, order: RunVm) -> None:
        self.boots += 1
        digest = self.images[order.vm_id] = order.workload.image_digest
        view = VmView(vm_id=order.vm_id, instance_id=order.instance_id, attempt=order.attempt, phase=VmPhase.RUNNING)
        view = replace(view, identity=order.workload.app_id)
        if digest in self.exits or self.boots_fail:
            view = replace(
                view,
                phase=VmPhase.ENDED,
                exit_code=1,
                reason="the workload ended with exit code 1",
                reason_code="exited",
                log_tail=("boom",),
            )
        if order.workload.restart.mode is RestartMode.NEVER:
            self.commands.append(digest)
            code = self.commands_end
            words = f"the workload ended with exit code {code}"
            ended = replace(view, phase=VmPhase.ENDED, exit_code=code, reason=words, log_tail=("migrating", "done"))
            view = view if code is None else ended
        if not self.builds(digest):
            view = replace(view, phase=VmPhase.ENDED, reason_code="digest-mismatch", permanent=True)
        self.vms[order.vm_id] = replace(view, address=f"10.64.0.{self.boots % 250 + 2}")

    def end(self, vm_id: str, code: int) -> None:
        """The workload of a VM ends by itself."""
        reason = f"the workload ended with exit code {code}"
        self.vms[vm_id] = replace(self.vms[vm_id], phase=VmPhase.ENDED, exit_code=code, reason=reason)

    def kill_all(self) -> None:
        """As if somebody had killed every VMM."""
        for vm_id, vm in self.vms.items():
            if vm.phase is VmPhase.RUNNING:
                self.vms[vm_id] = replace(vm, phase=VmPhase.ENDED, reason="the VM's process ended", exit_code=None)

    def images_running(self) -> list[str]:
        """Of each VM that has not ended, commands too."""
        return sorted(self.images[vm.vm_id] for vm in self.vms.values() if vm.phase is not VmPhase.ENDED)

    def running(self) -> int:
        return sum(vm.phase is VmPhase.RUNNING for vm in self.vms.values())


@dataclass(slots=True)
class FakeEdge:
    """Applies each table at once, unless it is silent; `open_sessions` are what it tells."""

    clock: VirtualClock
    uplink: Edges
    name: str = "edge-1"
    silent: bool = False
    table: RouteTable = field(default_factory=lambda: RouteTable(version=0))
    open_sessions: dict[str, int] = field(default_factory=dict)
    tables: list[RouteTable] = field(default_factory=list)

    async def run(self) -> None:
        edge_id = await self.uplink.register_edge(self.name)
        while True:
            if not self.silent:
                with suppress(UnavailableError):
                    await self._look(edge_id)
            await self.clock.sleep(0.05)

    async def _look(self, edge_id: str) -> None:
        table = await self.uplink.routes(edge_id, self.table.version)
        if table is not None:
            self.table = table
            self.tables.append(table)
        applied, open_sessions = self.table.version, dict(self.open_sessions)
        await self.uplink.report_edge(EdgeReport(edge_id=edge_id, applied_version=applied, open_sessions=open_sessions))

    def endpoints(self, host: str = "shop.localhost") -> set[str]:
        return {e.instance_id for route in self.table.routes if route.host == host for e in route.endpoints}


class World:
    """All of it, with one app `shop`."""

    def __init__(self, open_store: Callable[[VirtualClock], Store] = MemoryStore) -> None:
        """The store must answer at once: what a thread will bring is not seen by virtual time."""
        self.clock = VirtualClock()
        self.store = open_store(self.clock)
        self.control = Control(self.store, MemoryBus(), self.clock)
        self.sealer = Sealer(self.control, MemoryKms())
        self.nodes = Nodes(self.control, self.sealer)
        self.edges = Edges(self.control)
        self.tasks: list[asyncio.Task[None]] = []
        self.loops: list[asyncio.Task[None]] = []
        self.app_id = ""

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self.tasks.append(task)
        return task

    async def begin(self, *, loops: bool = True) -> None:
        await self.control.commit(self._seed)
        if loops:
            self.start_loops()
            await self.clock.advance(0)  # they have looked once, before any node is there

    def start_loops(self) -> None:
        for loop in (rollout_loop, routes_loop, nodes_loop, drains_loop, moves_loop, standbys_loop):
            self.loops.append(self.spawn(loop.run(self.control)))

    async def restart_loops(self) -> None:
        """As a server that was killed and started again."""
        for task in self.loops:
            task.cancel()
        await asyncio.gather(*self.loops, return_exceptions=True)
        self.loops.clear()
        self.start_loops()

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def node(self, name: str = "one", **facts: object) -> FakeNode:
        node = FakeNode(self.clock, self.nodes, name, node_facts(**facts))
        self.spawn(node.run())
        await self.clock.until(lambda: bool(node.node_id))
        return node

    async def edge(self, name: str = "edge-1") -> FakeEdge:
        edge = FakeEdge(self.clock, self.edges, name)
        self.spawn(edge.run())
        await self.clock.advance(0.01)
        return edge

    def _seed(self, unit: Unit) -> None:
        now = unit.now()
        unit.tx.organizations.insert(Organization(id=ORG, name="acme", plan="unlimited", created_at=now))
        unit.tx.projects.insert(
            Project(id=PRJ, organization_id=ORG, name="web", network_id="net_x", first=True, created_at=now)
        )
        self.app_id = unit.new_id("app")
        unit.tx.apps.insert(
            App(
                id=self.app_id,
                project_id=PRJ,
                name="shop",
                hostname="shop.localhost",
                config=AppConfig(),
                counts={},
                created_at=now,
                updated_at=now,
            )
        )

    async def deploy(
        self,
        image: str,
        *,
        digest: str = "",
        state: ImageState = ImageState.READY,
        port: int = 8080,
        process: Process = PROCESS,
        wait_timeout_s: float = 60.0,
        rollback: bool = True,
        strategy: str = "rolling",
        mounts: tuple[Mount, ...] = (),
        placement: PlacementRules = ANYWHERE,
        **numbers: object,
    ) -> str:
        """As the use case does it: a release and a deployment, nothing else. `numbers` are more fields of the deployment."""
        services = (Service(process=process.name, port=port),) if port else ()
        known = digest or f"sha256:{image}"
        config = AppConfig(image=image, processes=(process,), services=services, mounts=mounts, placement=placement)

        def ask(unit: Unit) -> str:
            app = self._app(unit.tx)
            release = unit.tx.releases.insert(
                Release(
                    id=unit.new_id("rel"),
                    app_id=app.id,
                    number=app.last_release_number + 1,
                    config=config,
                    image_digest=known,
                    content_hash=content_hash(config, known),
                    created_at=unit.now(),
                    created_by="me",
                )
            )
            unit.tx.apps.update(replace(app, last_release_number=release.number))
            if not unit.tx.images.select(eq("digest", release.image_digest)):
                unit.tx.images.insert(
                    Image(
                        id=unit.new_id("img"),
                        project_id=PRJ,
                        reference=image,
                        digest=release.image_digest,
                        state=state,
                        created_at=unit.now(),
                    )
                )
            deployment = Deployment(
                id=unit.new_id("dep"),
                app_id=app.id,
                release_id=release.id,
                state=DeploymentState.PENDING,
                stage=Stage.ADMISSION,
                strategy=strategy,
                rollback_on_failure=rollback,
                wait_timeout_s=wait_timeout_s,
                created_at=unit.now(),
                created_by="me",
            )
            unit.hint(f"app.{app.id}")
            return unit.tx.deployments.insert(replace(deployment, **numbers)).id  # type: ignore[arg-type]

        return await self.control.commit(ask)

    async def image(self, image: str, state: ImageState, reason: str = "") -> None:
        def change(unit: Unit) -> None:
            (row,) = unit.tx.images.select(eq("digest", f"sha256:{image}"))
            unit.tx.images.update(replace(row, state=state, reason=reason))
            unit.hint(f"app.{self.app_id}")

        await self.control.commit(change)

    async def ask(self, use_case: Callable[[Unit, App], T]) -> T:
        """Run a use case on the app as it is then."""
        return await self.control.commit(lambda unit: use_case(unit, self._app(unit.tx)))

    async def change_app(self, **changes: object) -> None:
        def change(unit: Unit) -> None:
            unit.tx.apps.update(replace(self._app(unit.tx), **changes))  # type: ignore[arg-type]
            unit.hint(f"app.{self.app_id}")

        await self.control.commit(change)

    def _app(self, tx: Transaction) -> App:
        app = tx.apps.get(self.app_id)
        assert app is not None
        return app

    def peek(self, fn: Callable[[Transaction], T]) -> T:
        """Read without giving way, for conditions of `clock.until`."""
        run = self.store.read(fn)
        try:
            while True:
                run.send(None)  # type: ignore[attr-defined]
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def app(self) -> App:
        return self.peek(self._app)

    def deployment(self, id_: str) -> Deployment:
        found = self.peek(lambda tx: tx.deployments.get(id_))
        assert found is not None
        return found

    def instances(self) -> list[Instance]:
        return self.peek(lambda tx: tx.instances.select(eq("app_id", self.app_id)))

    def serving(self) -> list[Instance]:
        return [instance for instance in self.instances() if instance.serving]

    def live(self) -> list[Instance]:
        return [instance for instance in self.instances() if instance.live]

    async def finished(self, deployment_id: str, timeout: float = 300.0) -> Deployment:
        await self.clock.until(lambda: self.deployment(deployment_id).finished_at is not None, timeout)
        return self.deployment(deployment_id)

    async def release_of(self, deployment_id: str) -> Release:
        release = self.peek(lambda tx: tx.releases.get(self.deployment(deployment_id).release_id))
        assert release is not None
        return release


def drains(instances: list[Instance]) -> list[Instance]:
    return [instance for instance in instances if instance.desired is Desired.DRAIN and instance.live]


__all__ = ["Assignments", "FakeEdge", "FakeNode", "World", "drains", "node_facts"]


def node_row(world: World, node: FakeNode) -> Node:
    """What the platform knows of a node."""
    found = world.peek(lambda tx: tx.nodes.get(node.node_id))
    assert found is not None
    return found


@asynccontextmanager
async def living_world(
    open_store: Callable[[VirtualClock], Store] = MemoryStore, *, loops: bool = True
) -> AsyncIterator[World]:
    """A world that has begun, and ends."""
    world = World(open_store)
    await world.begin(loops=loops)
    try:
        yield world
    finally:
        await world.end()
