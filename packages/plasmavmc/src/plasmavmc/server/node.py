"""This host as the one node that a stand-alone server knows. Implements `NodeApi`.

Whether it takes new VMs is kept in a file, for a host is cordoned because something is about to be done to it, restarts
included. `drained` is not kept: it is seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from plasmavmc.errors import CapacityError, ConflictError, HostError, NotFoundError
from plasmavmc.host import capacity
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.images.files import write_durably
from plasmavmc.manager import VmManager
from plasmavmc.rpc.api import KERNEL_LABEL, VOLUMES_LABEL, Amount, Node, Scheduling
from plasmavmc.states import ENDED, VmState
from plasmavmc.types import MIB, Vm, VmResources

_AT_REST = ENDED | {VmState.PENDING, VmState.SUSPENDED}
"""States in which nothing runs here."""

log = structlog.get_logger("plasmavmc.node")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSite:
    """What is known of this host once and for all."""

    id: str
    name: str
    version: str
    state_file: Path
    disk_dir: Path
    max_vms: int
    kernel: str = ""
    """The kernel that guests are started with now."""
    volumes: str = ""
    """The driver of volumes in use."""

    @property
    def labels(self) -> Mapping[str, str]:
        """What it tells of itself, where that is known."""
        told = {KERNEL_LABEL: self.kernel, VOLUMES_LABEL: self.volumes}
        return {name: value for name, value in told.items() if value}


class _State(msgspec.Struct, frozen=True):
    """The file."""

    scheduling: Scheduling = Scheduling.OPEN


class EngineNode:
    """See the module's head."""

    def __init__(self, site: NodeSite, manager: VmManager, registry: HypervisorRegistry) -> None:
        """Raises `HostError`: `bad-node-state`, its file cannot be read."""
        self._site = site
        self._manager = manager
        self._registry = registry
        self._scheduling = _read(site.state_file)
        self._capacity = Amount(
            capacity.cpu_milli(), capacity.memory_bytes(), capacity.disk_bytes(site.disk_dir), site.max_vms
        )
        self._coming: list[Mapping[str, VmResources]] = []
        self._news = asyncio.Event()
        self._stops: set[asyncio.Task[Vm]] = set()

    # What others ask before they start something

    def check_open(self) -> None:
        """Raises `ConflictError`: `node-cordoned`, no new VM is started here."""
        if self._scheduling is not Scheduling.OPEN:
            raise ConflictError(
                "node-cordoned",
                f"the node is {self._view().scheduling}: no new VM is started here",
                resolution="Uncordon it, or use another node.",
            )

    @contextmanager
    def promising(self, wanted: Mapping[str, VmResources]) -> Iterator[None]:
        """Within it these VMs, by id, have what they need: they are being made, or made anew, and what comes meanwhile finds
        it promised. One that has not ended counts once.

        Raises:
            CapacityError: `no-memory`, more would be promised than there is.
        """
        before = self._promises()
        more = sum(max(each.memory_bytes - _memory(before, vm_id), 0) for vm_id, each in wanted.items())
        left = self._capacity.memory_bytes - _sum(before.values()).memory_bytes
        if more and more > left:  # who asks for no more is not refused where too much was promised before
            raise CapacityError(
                "no-memory",
                f"{more // MIB} MiB of memory are asked,"
                f" {max(left, 0) // MIB} of {self._capacity.memory_bytes // MIB} MiB are left",
                resolution="Delete VMs that are not needed, or ask for less.",
            )
        self._coming.append(wanted)
        try:
            yield
        finally:
            self._coming.remove(wanted)

    def tell_news(self) -> None:
        """Something changed that watchers may want to see."""
        self._news.set()
        self._news = asyncio.Event()

    # NodeApi

    async def get_node(self, node_id: str) -> Node:
        self._check_id(node_id)
        return self._view()

    async def list_nodes(self, *, after: str, limit: int) -> Sequence[Node]:
        return (self._view(),) if self._site.id > after else ()

    async def watch_nodes(self) -> AsyncGenerator[Node]:
        told: Node | None = None
        while True:
            news, now = self._news, self._view()
            if now != told:
                told = now
                yield now
            else:
                await news.wait()

    async def cordon(self, node_id: str) -> Node:
        self._check_id(node_id)
        if self._scheduling is Scheduling.OPEN:
            self._set(Scheduling.CORDONED)
        return self._view()

    async def uncordon(self, node_id: str) -> Node:
        self._check_id(node_id)
        self._set(Scheduling.OPEN)
        return self._view()

    async def drain(self, node_id: str, deadline_s: float) -> Node:
        self._check_id(node_id)
        self._set(Scheduling.DRAINING)
        stops = {self._stop(vm, deadline_s) for vm in self._manager.list_vms() if vm.status.state not in _AT_REST}
        if stops:
            await asyncio.wait(stops, timeout=deadline_s)
        return self._view()

    def _stop(self, vm: Vm, deadline_s: float) -> asyncio.Task[Vm]:
        """Ends a VM; it is carried to its end though the caller may leave."""
        grace_s = min(vm.spec.stop_grace_s, deadline_s)
        task = asyncio.create_task(self._manager.stop(vm.spec.id, grace_s), name=f"drain {vm.spec.id}")
        self._stops.add(task)
        task.add_done_callback(self._stopped)
        return task

    def _stopped(self, task: asyncio.Task[Vm]) -> None:
        self._stops.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("node.drain", task=task.get_name(), error=str(error))

    # Small parts

    def _check_id(self, node_id: str) -> None:
        if node_id not in ("", self._site.id):
            raise NotFoundError("node-not-found", f"there is no node {node_id}")

    def _set(self, scheduling: Scheduling) -> None:
        write_durably(self._site.state_file, msgspec.json.encode(_State(scheduling)))
        self._scheduling = scheduling
        self.tell_news()

    def _view(self) -> Node:
        scheduling = self._scheduling
        if scheduling is Scheduling.DRAINING and all(vm.status.state in _AT_REST for vm in self._manager.list_vms()):
            scheduling = Scheduling.DRAINED
        return Node(
            id=self._site.id,
            name=self._site.name,
            scheduling=scheduling,
            capacity=self._capacity,
            promised=self._promised(),
            backends=self._registry.statuses(),
            version=self._site.version,
            labels=self._site.labels,
        )

    def _promised(self) -> Amount:
        """The memory of what sleeps lies on the disk."""
        amount = _sum(self._promises().values())
        asleep = [vm.spec.resources for vm in self._manager.list_vms() if vm.status.state is VmState.SUSPENDED]
        return replace(amount, disk_bytes=amount.disk_bytes + sum(each.memory_bytes for each in asleep))

    def _promises(self) -> Mapping[str, VmResources]:
        """What each VM was promised: those that have not ended, and those that are being made. Of several that are to be
        made under one id only one can come to be; the largest counts."""
        promises = {vm.spec.id: vm.spec.resources for vm in self._manager.list_vms() if vm.status.state not in ENDED}
        for wanted in self._coming:
            for vm_id, each in wanted.items():
                if each.memory_bytes > _memory(promises, vm_id):
                    promises[vm_id] = each
        return promises


def _memory(promises: Mapping[str, VmResources], vm_id: str) -> int:
    found = promises.get(vm_id)
    return 0 if found is None else found.memory_bytes


def _sum(promised: Collection[VmResources]) -> Amount:
    return Amount(
        sum(each.cpu_milli for each in promised),
        sum(each.memory_bytes for each in promised),
        sum(each.disk_bytes for each in promised),
        len(promised),
    )


def _read(path: Path) -> Scheduling:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_State).scheduling
    except FileNotFoundError:
        return Scheduling.OPEN
    except (OSError, ValueError) as error:  # msgspec tells bad UTF-8 by a plain ValueError
        raise HostError(
            "bad-node-state", f"{path} cannot be read: {error}", resolution="Remove it; the node is open then."
        ) from error
