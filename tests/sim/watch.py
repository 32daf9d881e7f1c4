"""The invariants that hold at every commit and every order to an engine, whatever goes wrong.

Names of violations are what a failing story is known by while it is cut down.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from shellwego.core.apps import App, Release
from shellwego.core.deployments import DEPLOYMENT_MOVES, Deployment, DeploymentState
from shellwego.core.events import AuditRecord, Event, LoopLease
from shellwego.core.events import Counter as Number
from shellwego.core.instances import PHASE_MOVES, TERMINAL, Desired, Instance, OwnerKind, Phase, Sleep
from shellwego.core.liveness import DEFAULT_TERMS, FLAPS
from shellwego.core.moves import MoveStage
from shellwego.core.nodes import Node, NodeHealth, Scheduling
from shellwego.core.routes import EDGE_TIMEOUT_S, service_port
from shellwego.core.slots import DRAINABLE
from shellwego.core.vms import VmPhase, VmView
from shellwego.ports.engine import VmOrder
from shellwego.ports.store import Transaction, eq
from tests.sim import holdings, moves
from tests.sim.contents import Contents
from tests.sim.server import reporting

if TYPE_CHECKING:
    from tests.sim.hosts import NodeHost
    from tests.sim.world import World

T = TypeVar("T")
_DESIRES = {
    Desired.SERVE: {Desired.SERVE, Desired.DRAIN, Desired.STOP},
    Desired.DRAIN: {Desired.DRAIN, Desired.STOP},
    Desired.STOP: {Desired.STOP},
}
_LOOPED = frozenset({MoveStage.STOPPING, MoveStage.LAST, MoveStage.ARRIVING, MoveStage.CLEARING, MoveStage.DONE})
"""Stages that the loop begins, and nobody else."""
_MOVE_NEWS = {
    MoveStage.STOPPING: ("volume.move.stopping",),
    MoveStage.ARRIVING: ("volume.move.switched",),
    MoveStage.DONE: ("volume.moved",),
    MoveStage.FAILED: ("volume.move.failed",),
    MoveStage.CANCELLED: ("volume.move.cancelled",),
}
_WOKEN_S = 20.0
"""One that slept passes its checks anew, and may have slept so shortly that nobody heard of it."""
_TOLD = 400
"""Lines of the trace that are kept for a story."""


@dataclass(frozen=True, slots=True)
class Violation:
    name: str
    detail: str
    at: float

    def __str__(self) -> str:
        return f"{self.name} at {self.at:.3f} s: {self.detail}"


@dataclass(frozen=True, slots=True)
class Write:
    """One row of a commit; None: there is, or was, none."""

    table: str
    old: Any
    new: Any


def _writes(tx: Transaction) -> list[Write]:
    """What a transaction of the memory store has written so far, each write of a row by itself."""
    befores: dict[tuple[str, str], list[Any]] = {}
    now = {}
    for rows, id_, old in tx._scope.undo:  # type: ignore[attr-defined]
        befores.setdefault((rows.name, id_), []).append(old)
        now[rows.name, id_] = rows.by_id.get(id_)
    return [
        Write(key[0], old, new)
        for key, olds in befores.items()
        for old, new in zip(olds, [*olds[1:], now[key]], strict=True)
    ]


class Watch:
    """Sees each commit and each order, and keeps a trace by which two runs are compared."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[Violation] = []
        self.trace: list[str] = []
        self.events: Counter[tuple[str, str]] = Counter()
        """Events by the request that they are of, and their type."""
        self.refusals: Counter[str] = Counter()
        """Audit records of refusals, by request."""
        self.commits = 0
        self._digest = hashlib.sha256()
        self._heard: dict[str, float] = {}
        self._slept: dict[str, float] = {}
        """When an instance was told last that it is to sleep."""
        self._power_losses: set[tuple[str, tuple[int, int]]] = set()
        """Nodes whose host lost its power, and the last epoch and sequence that its agent may have told before: attempts are
        counted from the first again, so what runs under a known id after it is a VM that has passed no check."""
        self._memories = holdings.Memories(world)
        self.contents = Contents(world)
        self._made: dict[str, str] = {}
        self.lost_volumes: set[str] = set()
        """Whose node was removed, or that of a copy: what was there nobody dares to delete."""

    @property
    def digest(self) -> str:
        """Of all that happened."""
        return self._digest.hexdigest()

    def heard_at(self, node_id: str) -> float:
        """When it was stored last that a node was heard, by virtual time."""
        return self._heard.get(node_id, 0.0)

    def note(self, text: str) -> None:
        line = f"{self._world.clock.monotonic():9.3f} {text}"
        self._digest.update(line.encode())
        self.trace.append(line)
        if len(self.trace) > 2 * _TOLD and not self._world.keep_trace:
            del self.trace[:_TOLD]

    def violated(self, name: str, detail: str) -> None:
        self.note(f"VIOLATION {name}: {detail}")
        self.violations.append(Violation(name, detail, self._world.clock.monotonic()))

    def committing(self, server: str, tx: Transaction, fn: Callable[[Transaction], T]) -> T:
        """Run a transaction's function, and look at what it wrote."""
        result = fn(tx)
        writes = _writes(tx)
        if writes:
            self.commits += 1
            self._look(server, tx, writes)
        return result

    def _look(self, server: str, tx: Transaction, writes: list[Write]) -> None:
        said = []
        for write in writes:
            said.append(_said(write))
            check = _CHECKS.get(write.table)
            for name, detail in check(self, server, tx, write) if check else ():
                self.violated(name, detail)
        for name, detail in (*_unannounced(writes), *moves.floors(tx, writes)):
            self.violated(name, detail)
        self.note(f"{server} commits {'; '.join(filter(None, said))}")

    def _app(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old, new = write.old, write.new
        if old is not None and new is not None:
            if old.deleting and not new.deleting:
                yield "declared-transitions", f"{new.name} is not deleted any more"
            if new.hostname != old.hostname:
                yield "declared-transitions", f"{new.name} has another hostname"
        if new is None and (old is None or not old.deleting):
            yield "declared-transitions", f"{old.name} is gone, and nobody asked for it"

    def _release(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old, new = write.old, write.new
        if isinstance(old, Release) and isinstance(new, Release):
            yield "declared-transitions", f"release v{new.number} of {new.app_id} was changed"

    def _deployment(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old, new = write.old, write.new
        if old is None or new is None or old.state is new.state:
            return
        if new.state not in DEPLOYMENT_MOVES[old.state]:
            yield "declared-transitions", f"deployment {new.id}: {old.state} to {new.state}"
        if new.state is not DeploymentState.CANCELLED:
            yield from self._held(server, tx, "loop.rollout", f"deployment {new.id} {new.state}")

    def _instance(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old, new = write.old, write.new
        if old is None:
            if new.owner is OwnerKind.APP:
                yield from self._held(server, tx, "loop.rollout", f"a start of {new.process}.{new.slot}")
            return
        if new is None:
            if old.phase not in TERMINAL:
                yield "live-row-deleted", f"instance {old.id} was {old.phase}"
            return
        yield from _undeclared(old, new)
        yield from moves.placed(tx, old, new)
        yield from holdings.evicted(tx, old, new)
        if new.evicted and not old.evicted:
            yield from self._held(server, tx, _evicting(tx, new), f"{new.id} has to leave its node")
        if new.sleep is Sleep.ASLEEP:
            self._slept[new.id] = self._world.clock.monotonic()
        if new.observed != old.observed:
            yield from self._observation(tx, old, new)
        if new.desired is Desired.STOP and old.phase in DRAINABLE and new.live and old.owner is OwnerKind.APP:
            yield from self._stopped(tx, old)
        if new.sleep is Sleep.ASLEEP and old.sleep is Sleep.DOZING:
            yield from self._emptied(tx, old, "put to sleep")

    def _observation(self, tx: Transaction, old: Instance, new: Instance) -> Iterator[tuple[str, str]]:
        report, seen, before = reporting.get(), new.observed, old.observed
        if report is None:
            return
        if seen.sequence and (seen.epoch, seen.sequence) <= (before.epoch, before.sequence):
            yield "stale-observation", f"instance {new.id}: {seen.sequence} of {seen.epoch} after {before.sequence}"
        node = tx.nodes.get(new.node_id)
        if node is not None and seen.sequence and report.epoch != node.epoch:
            yield "stale-observation", f"instance {new.id}: of epoch {report.epoch}, the node's is {node.epoch}"
        same = (seen.vm_id, seen.attempt) == (before.vm_id, before.attempt) and not self._begins_anew(old, new)
        slept = self._world.clock.monotonic() < self._slept.get(new.id, float("-inf")) + _WOKEN_S
        if same and not slept and (old.phase, new.phase, seen.detail) == (Phase.HEALTHY, Phase.STARTING, "checks"):
            yield "forgot-health", f"instance {new.id}: {seen.reason or seen.detail}"

    def _begins_anew(self, old: Instance, new: Instance) -> bool:
        """Whether the host of an instance lost its power between two observations of it."""
        before, after = ((seen.epoch, seen.sequence) for seen in (old.observed, new.observed))
        return any(node_id == new.node_id and before <= last < after for node_id, last in self._power_losses)

    def _stopped(self, tx: Transaction, instance: Instance) -> Iterator[tuple[str, str]]:
        if instance.desired is Desired.DRAIN or instance.sleeps:
            yield from self._emptied(tx, instance, "stopped")
        elif instance.desired is Desired.SERVE:
            release = tx.releases.get(instance.release_id)
            if release is not None and service_port(release.config, instance.process):
                yield "stopped-while-routed", f"{instance.id} was not drained"

    def _emptied(self, tx: Transaction, instance: Instance, what: str) -> Iterator[tuple[str, str]]:
        """Whoever leaves is empty, or its time is over."""
        release, app = tx.releases.get(instance.release_id), tx.apps.get(instance.app_id)
        if release is None or app is None or not service_port(release.config, instance.process):
            return
        waited = tx.now() - (instance.drain_since or 0.0)
        for edge in self._world.edges:
            own = [key for key in edge.pool.servers if key[1].partition(".")[0] == instance.id]
            if waited < EDGE_TIMEOUT_S and any(key in edge.ready() for key in own):
                yield "stopped-while-routed", f"{instance.id} is {what}, and {edge.name} sends it requests"
            used = sum(edge.pool.servers[key].connections for key in own)
            if used and waited < min(release.config.drain_timeout_s, EDGE_TIMEOUT_S):
                yield "stopped-while-used", f"{instance.id} is {what} after {waited:.1f} s with {used} sessions"

    def _node(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old, new = write.old, write.new
        if new is None:
            yield from moves.abandoned(tx, old)
            return
        now = self._world.clock.monotonic()
        if old is not None:
            if new.epoch < old.epoch:
                yield "declared-transitions", f"{new.name}: epoch {old.epoch} to {new.epoch}"
            if new.scheduling is not old.scheduling:
                yield from moves.scheduled(tx, old, new)
                if new.scheduling is Scheduling.DRAINED:
                    yield from self._held(server, tx, "loop.drains", f"{new.name} is drained")
            if new.health is not old.health:
                yield from self._judged(server, tx, old, new)
        if old is None or new.last_heard_at != old.last_heard_at:
            self._heard[new.id] = now

    def _judged(self, server: str, tx: Transaction, old: Node, new: Node) -> Iterator[tuple[str, str]]:
        report = reporting.get()
        if report is None:
            yield from self._held(server, tx, "loop.nodes", f"{new.name} judged {new.health}")
        elif report.epoch != new.epoch:
            yield "stale-observation", f"{new.name} is {new.health} by a report of epoch {report.epoch}"
        if new.health is NodeHealth.DOWN:
            if new.epoch == old.epoch:
                yield "declared-transitions", f"{new.name} is down, and its epoch is what it was"
            if len(new.downs) >= FLAPS and new.flapping_since is None:
                yield "not-damped", f"{new.name} went down {len(new.downs)} times, and may have anything new"
            silence = self._world.clock.monotonic() - self.heard_at(new.id)
            if silence < DEFAULT_TERMS.down_s - 1e-6:
                yield "judged-too-early", f"{new.name} is down, and was heard {silence:.3f} s ago"

    def _volume(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old, new = write.old, write.new
        removed = old is not None and old.node_id and tx.nodes.get(old.node_id) is None
        if removed or (new or old).lost:
            self.lost_volumes.add((new or old).id)
        yield from holdings.volume(tx, write, self.contents)
        if old is None or new is None:
            return
        if new.move is not None and old.move is not None and old.move.stage is not new.move.stage in _LOOPED:
            yield from self._held(server, tx, "loop.moves", f"the move of {new.name} is {new.move.stage}")

    def _replica(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old = write.old
        if old is not None and old.node_id and tx.nodes.get(old.node_id) is None:
            self.lost_volumes.add(old.volume_id)
        yield from self.contents.replica(tx, write)

    def _lease(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old, new = write.old, write.new
        if old is not None and new is not None and new.holder != old.holder and old.until > tx.now():
            yield "two-owners", f"{new.id}: {new.holder} took it from {old.holder}"

    def _counter(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old, new = write.old, write.new
        if old is not None and new is not None and new.value <= old.value:
            yield "declared-transitions", f"{new.id} went back"
        if new is not None and new.id == "routes":
            yield from self._held(server, tx, "loop.routes", "routes numbered")

    def _event(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old, new = write.old, write.new
        if old is None and new.trace_id:
            self.events[new.trace_id, new.type] += 1
        if isinstance(old, Event) and old.seq and new is not None:
            yield "declared-transitions", f"event {old.seq} was changed"

    def _audit(self, server: str, tx: Transaction, write: Write) -> Iterator[tuple[str, str]]:
        old, new = write.old, write.new
        if old is None and new.trace_id and not new.allowed:
            self.refusals[new.trace_id] += 1
        if isinstance(old, AuditRecord) and (new is None or old.position):
            yield "declared-transitions", f"audit record {old.id} was changed"

    def _held(self, server: str, tx: Transaction, lease_id: str, what: str) -> Iterator[tuple[str, str]]:
        """Whoever writes what a loop writes has the loop's lease."""
        lease = tx.leases.get(lease_id)
        if lease is None or lease.holder != server or lease.until <= tx.now():
            yield "unfenced-write", f"{server} wrote {what} without {lease_id}"

    def vm_ordered(self, node: str, order: VmOrder) -> None:
        self.note(f"{node} runs {order.vm_id} for {order.instance_id}")
        for other in self._world.nodes:
            for view in other.engine.views:
                own = view.instance_id == order.instance_id and view.vm_id != order.vm_id
                if own and view.phase is not VmPhase.ENDED:
                    self.violated("two-owners", f"{order.instance_id}: {order.vm_id} beside {view.vm_id}")
        for mount in order.workload.mounts:
            others = [vm for host in self._world.nodes for vm in _having(host, node, mount.volume_id)]
            if set(others) - {order.vm_id}:
                self.violated("two-owners", f"{mount.volume_id}: {order.vm_id} beside {others}")

    def power_lost(self, node_id: str, last: tuple[int, int]) -> None:
        """The host of a node lost its power; its agent told nothing above this epoch and sequence."""
        self._power_losses.add((node_id, last))

    def vm_woken(self, node: str, vm_id: str, memory: str) -> None:
        """A VM goes on with a memory."""
        self.note(f"{node} wakes {vm_id}")
        for name, detail in self._memories.woken(vm_id, memory):
            self.violated(name, detail)

    def volume_made(self, node: str, volume_id: str) -> None:
        """A volume is made once, where it lives; one that was lost there is not made anew elsewhere."""
        self.note(f"{node} makes {volume_id}")
        if self._made.setdefault(volume_id, node) != node:
            self.violated("two-owners", f"{volume_id} is made on {node}, and was on {self._made[volume_id]}")

    def vm_stopped(self, node: str, view: VmView) -> None:
        """A VM that nobody wants to end is not stopped, whatever its agent went through."""
        self.note(f"{node} stops {view.vm_id}")
        row = self._world.rows("instances").get(view.instance_id)
        if row is None or not row.live or row.desired is Desired.STOP or row.node_id != self._world.node_id(node):
            return
        host = next(host for host in self._world.nodes if host.name == node)
        if view.phase is VmPhase.RUNNING and not host.engine.runs_out(view.vm_id):
            self.violated("stopped-unasked", f"{view.vm_id} of {row.id}, which should be there")


def _having(host: NodeHost, node: str, volume_id: str) -> list[str]:
    """Who sleeps on a node from which a volume went has it no more, but for what it is called."""
    return host.engine.mounted(volume_id) if host.name == node else host.engine.running_with(volume_id)


def _evicting(tx: Transaction, evicted: Instance) -> str:
    """The lease of the loop by which an instance has to leave its node."""
    if any(held.closed for held in tx.volumes.select(eq("instance_id", evicted.id))):
        return "loop.moves"
    return "loop.rollout" if evicted.preempted else "loop.drains"


def _undeclared(old: Instance, new: Instance) -> Iterator[tuple[str, str]]:
    if new.phase is not old.phase and new.phase not in PHASE_MOVES[old.phase]:
        yield "declared-transitions", f"instance {new.id}: {old.phase} to {new.phase}"
    if new.desired not in _DESIRES[old.desired]:
        yield "declared-transitions", f"instance {new.id}: {old.desired} to {new.desired}"
    if old.node_id and new.node_id != old.node_id:
        yield "declared-transitions", f"instance {new.id} moved"


def _said(write: Write) -> str:
    """What the trace tells of a write."""
    row = write.new or write.old
    gone = "" if write.new is not None else " gone"
    match row:
        case Instance():
            seen = f"{row.observed.epoch}/{row.observed.sequence}"
            wished = f"{row.desired.value} {row.sleep.value} {row.eviction.value}"
            return f"{row.id}{gone} {row.phase.value} {wished} {row.node_id[-4:]} {seen}"
        case Deployment():
            return f"{row.id}{gone} {row.state.value} {row.stage.value} {row.reason}"
        case App():
            return (
                f"{row.name}{gone} {dict(row.counts)} gen {row.generation} stopped {row.stopped} {row.release_id[-4:]}"
            )
        case Node():
            return f"{row.name}{gone} {row.health.value} {row.scheduling.value} {row.epoch}"
        case LoopLease():
            return f"{row.id} {row.holder} {row.until:.3f}"
        case Number():
            return f"{row.id} {row.value}"
        case Event():
            return f"{row.type} {row.seq}"
        case _:
            return f"{write.table} {row.id}{gone}"


def _unannounced(writes: list[Write]) -> Iterator[tuple[str, str]]:
    """What people are told of is in the outbox, in the commit of the change."""
    types = {write.new.type for write in writes if write.table == "events" and write.new is not None}
    for write in writes:
        for expected in _news(write):
            if expected not in types:
                yield "unannounced", f"{expected} of {write.new.id}"


def _news(write: Write) -> Iterator[str]:
    """The types of the events by which a change is told."""
    old, new = write.old, write.new
    if old is None or new is None:
        return
    if write.table == "deployments" and old.state is not new.state:
        yield f"app.deployment.{new.state.value}"
    if write.table == "volumes" and old.move and new.move and old.move.stage is not new.move.stage and not new.lost:
        yield from _MOVE_NEWS.get(new.move.stage, ())
    if write.table == "volumes" and old.promotion != new.promotion and not new.promotion.arrived:
        yield "volume.promoted"
    if write.table == "nodes" and old.health is not new.health:
        yield f"node.{new.health.value}"
    if write.table == "nodes" and old.flapping_since is None and new.flapping_since is not None:
        yield "node.flapping"
    if write.table == "nodes" and old.scheduling is not new.scheduling:
        yield moves.NEWS[new.scheduling]


_CHECKS = {
    "apps": Watch._app,
    "releases": Watch._release,
    "deployments": Watch._deployment,
    "instances": Watch._instance,
    "nodes": Watch._node,
    "volumes": Watch._volume,
    "replicas": Watch._replica,
    "snapshots": lambda watch, server, tx, write: holdings.snapshot(tx, write),
    "leases": Watch._lease,
    "counters": Watch._counter,
    "events": Watch._event,
    "audit": Watch._audit,
}
