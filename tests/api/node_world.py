"""The API's world with loops, an agent and its engine on memory parts: what is asked comes to run, and what the node would
hand to other programs can be looked at: command lines of VMMs, rules of the firewall, files of HAProxy.

All in real time, of which it takes little.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from plasmavmc.backends import Acceleration
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.helper import rules
from plasmavmc.host.helper.rules_members import Marks
from plasmavmc.hypervisor.backend import VmPlan
from plasmavmc.hypervisor.memory import MemoryBackend, PretendedVmms
from plasmavmc.hypervisor.qemu.argv import QemuMachine, command_line, kernel_parameters
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.types import VmHandle, VmSpec
from shellwego.agent.daemon import Agent
from shellwego.agent.probes import Target
from shellwego.control.edges import Edges
from shellwego.control.imagework import ImageWork
from shellwego.control.loops import images, names, rollout, routes
from shellwego.control.nodes import Nodes
from shellwego.control.unit import Unit
from shellwego.core.apps import Check
from shellwego.core.nodes import Backend
from shellwego.drivers.engine.plasmavmc import PlasmaEngine
from shellwego.drivers.uplink.memory import MemoryLink, MemoryNodeUplink
from shellwego.edge import config
from shellwego.edge.settings import EdgeSettings
from shellwego.edge.targets import read_table, want
from shellwego.ports.engine import VmOrder
from tests.agent.kept import kept_in
from tests.api.api_world import World
from tests.engine.engine_rig import EngineRig

T = TypeVar("T")
PATIENCE_S = 60.0
NAMES = HelperConfiguration("swg_test", 0, 0).names
"""Of the rig's host."""


class PassingProber:
    """Every check passes."""

    async def probe(self, target: Target, check: Check, connect_s: float) -> str:
        return ""


class SpellingBackend(MemoryBackend):
    """Keeps how QEMU would be told of each VM."""

    def __init__(self, vmms: PretendedVmms) -> None:
        super().__init__(vmms)
        self.spelt: list[str] = []

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        machine = QemuMachine("/usr/bin/qemu-system-x86_64", "swg_words", Acceleration.TCG, 2_000_000)
        self.spelt += [
            *command_line(machine, plan.key, spec.resources, plan.disks, plan.nics).argv,
            kernel_parameters(machine),
            str(plan.runtime_dir),
        ]
        return await super().create_vm(spec, plan)


class SampleEngine(PlasmaEngine):
    """Has one image, whatever is wanted; keeps what was."""

    sample = ""

    async def run(self, order: VmOrder) -> None:
        await super().run(replace(order, workload=replace(order.workload, image_digest=self.sample)))


@dataclass
class NodeWorld:
    """`begin` it in a running loop, and `close` it."""

    world: World
    directory: Path
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def begin(self) -> None:
        """Loops, and an agent that takes the place of the world's own node."""
        self.rig = EngineRig(self.directory / "engine")
        manager = self.rig.manager()
        self.backend = SpellingBackend(self.rig.vmms)
        self.rig.parts.registry.register(self.backend)
        self.rig.parts.network = BridgeNetwork(self.rig.host, NAMES, IPv4Network("10.64.0.0/20"), time.monotonic)
        self.engine = self._engine(manager)
        await self.engine.start()
        await self.world.commit(self._without_node)
        control = self.world.control
        for each in (rollout.run(control), routes.run(control), names.run(control), images.run(control, self._work)):
            self._spawn(each)
        self._spawn(self._agent().run())

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.engine.close(keep_vms=False)
        self.rig.host.close()

    async def until(self, look: Callable[[], Coroutine[Any, Any, T]], what: str) -> T:
        """Poll until `look` gives something true, and return that."""
        deadline = time.monotonic() + PATIENCE_S
        while not (seen := await look()):
            assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
            await asyncio.sleep(0.02)
        return seen

    async def for_others(self) -> dict[str, str]:
        """What other programs are given, by the name of each."""
        assert self.rig.host.rules is not None
        tables = rules.tables(NAMES, self.rig.host.rules, Marks().following(self.rig.host.rules.members))
        edges = Edges(self.world.control)
        table = await edges.routes(await edges.register_edge("edge-1"), -1)
        assert table is not None
        targets = read_table(table)
        wanted = want(targets, {app: number for number, app in enumerate(targets.apps)})
        settings = EdgeSettings(name="edge-1", run_dir=Path("/run/edge"), state_dir=Path("/var/edge"))
        proxy = config.files(settings, 16, wanted)
        assert wanted.hosts, "an app is served"
        return {
            "qemu": "\n".join(self.backend.spelt),
            "nft": rules.render(NAMES, tables),
            "haproxy": "".join(f"{path}\n{text}" for path, text in proxy.items()),
        }

    @property
    def _work(self) -> ImageWork:
        return ImageWork(self.world.images, self.world.clock)

    def _engine(self, manager: Any) -> SampleEngine:
        engine = SampleEngine(
            manager,
            backends=lambda: (Backend(name="memory", status="ready", suspend=True),),
            disk_dir=self.directory,
            version="test",
            confinement=lambda: "none",
            network=self.rig.parts.network,
        )
        engine.sample = self.rig.sample.digest
        return engine

    def _agent(self) -> Agent:
        control, clock = self.world.control, self.world.clock
        return Agent(
            engine=self.engine,
            uplink=MemoryNodeUplink(Nodes(control, self.world.sealer), MemoryLink(clock)),
            listener=self.world.streams,
            bus=control.bus,
            clock=clock,
            name="two",
            state=kept_in(self.directory / "agent"),
            prober=PassingProber(),
        )

    def _without_node(self, unit: Unit) -> None:
        unit.tx.nodes.delete(self.world.node.id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))


async def node_world(world: World, directory: Path) -> NodeWorld:
    """Begun."""
    made = NodeWorld(world, directory)
    try:
        await made.begin()
    except BaseException:
        with suppress(Exception):
            await made.close()
        raise
    return made
