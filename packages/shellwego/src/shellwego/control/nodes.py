"""Nodes: what they are told, and what is believed of what they say.

`Nodes` is the control plane's end of `ports.uplink.NodeUplink`. A report is guarded three times: by the node's epoch (a node
that was judged lost must first learn so), by the sequence of each instance's last observation, and by the table of phases.
What a node sends is input from outside: bounded, and an address must be one that a VM can have.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import replace

import structlog

from shellwego.control import memories
from shellwego.control.announcements import announce
from shellwego.control.changes import instance_data
from shellwego.control.delivery import Delivery
from shellwego.control.facts import releases_of, volumes_of
from shellwego.control.holds import let_go
from shellwego.control.images import doubt_image
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.nodeadmin import wake_waiting
from shellwego.control.peers import PeerBook
from shellwego.control.sealing import Sealer
from shellwego.control.sleep import give_up_sleep
from shellwego.control.unit import Control, Unit
from shellwego.control.volumereports import restart_sequences, take_volumes, volume_orders
from shellwego.core.apps import App, Process, Release, RestartMode, RestartPolicy
from shellwego.core.assignments import (
    Assignment,
    Assignments,
    NodeReport,
    Registration,
    SecretsRequest,
    SecretValues,
    Workload,
    WorkloadMount,
)
from shellwego.core.errors import FieldError, ForbiddenError, InvalidError
from shellwego.core.images import blames_image
from shellwego.core.instances import (
    MEMORY_LOST,
    PHASE_MOVES,
    SUSPEND_FAILED,
    TERMINAL,
    Desired,
    Instance,
    Observed,
    OwnerKind,
    Phase,
    Sleep,
)
from shellwego.core.liveness import BEAT_S, come_up
from shellwego.core.nodes import MAX_IMAGES, MAX_OVERCOMMIT, ROADS, Backend, Node, NodeFacts, NodeHealth, steady
from shellwego.core.peers import is_host_address
from shellwego.core.routes import service_port
from shellwego.core.subnets import is_subnet
from shellwego.core.tenancy import Project
from shellwego.ports.store import Transaction, eq, within
from shellwego.wire import subjects

MAX_TEXT = 1000
MAX_LOG_LINES = 50
MAX_INSTANCES = 10_000
"""In one report."""
MAX_EPOCH = 1 << 30
"""That a node may claim to know. An epoch rises once whenever the node is lost, so no honest one comes near, and what the
store can hold stays beyond it."""
_FEW = 32
"""Instances that are looked up one by one."""
MAX_WORD = 64
"""Characters of what is a name or a kind, and no sentence."""
MAX_TRAITS = 32
"""Of a host, on which its snapshots depend."""
_VM_SOCKET = re.compile(r"unix:/run/shellwego/[a-z0-9]{1,40}/vm/[a-z2-7]{12}/http\.sock")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REPORTABLE = frozenset(
    {
        Phase.STARTING,
        Phase.HEALTHY,
        Phase.UNHEALTHY,
        Phase.ASLEEP,
        Phase.STOPPING,
        Phase.STOPPED,
        Phase.FAILED,
    }
)
_TOLD = frozenset({Phase.HEALTHY, Phase.UNHEALTHY, Phase.ASLEEP, Phase.STOPPED, Phase.FAILED})
"""Phases whose beginning is an event."""
_BAD = frozenset({Phase.UNHEALTHY, Phase.FAILED})

_log = structlog.get_logger(__name__)


class Nodes:
    """See `ports.uplink.NodeUplink`."""

    def __init__(self, control: Control, sealer: Sealer) -> None:
        self._control = control
        self._delivery = Delivery(control, sealer)
        self._peers = PeerBook(control.clock)

    async def register(self, registration: Registration) -> Assignments:
        return await self._control.commit(lambda unit: register(unit, registration))

    async def assignments(self, node_id: str) -> Assignments:
        def work(tx: Transaction) -> Assignments:
            return replace(assignments(tx, node_id), peers=self._peers.of(tx, node_id))

        return await self._control.read(work)

    async def report(self, report: NodeReport) -> int:
        return await self._control.commit(lambda unit: accept(unit, report))

    async def secrets(self, request: SecretsRequest) -> SecretValues:
        return await self._delivery.values(request)


def register(unit: Unit, registration: Registration) -> Assignments:
    """Make a node known, or known again: by the id that it kept, else by its name.

    A node may know a higher epoch than we do, when the store was restored from a backup; it would refuse ours for ever, so
    ours is raised to it.

    Raises:
        InvalidError: the name is not usable, or the epoch cannot be.
        ForbiddenError: it joined, and was removed since.
    """
    if registration.known_epoch > MAX_EPOCH:
        fault = FieldError("known_epoch", "out-of-range", f"no node knows an epoch above {MAX_EPOCH}")
        raise InvalidError("bad-epoch", f"known_epoch: {fault.message}", errors=(fault,))
    if not registration.name or len(registration.name) > 253 or not registration.name.isprintable():
        raise InvalidError("bad-node-name", "a node's name has 1 to 253 printable characters")
    known = unit.tx.nodes.get(registration.known_node_id) or next(
        iter(unit.tx.nodes.select(eq("name", registration.name), limit=1)), None
    )
    if known is None and registration.joined:
        raise ForbiddenError("node-unknown", f"the node {registration.name} was removed", resolution="Join it again.")
    if known is None:
        node = _insert_node(unit, registration)
    else:
        node = unit.tx.nodes.update(
            replace(
                known,
                facts=_bounded_facts(registration.facts),
                epoch=max(known.epoch, registration.known_epoch),
                last_heard_at=unit.now(),
            )
        )
        if registration.known_node_id != node.id:
            _restart_sequences(unit, node)
    wake_waiting(unit)
    return assignments(unit.tx, node.id)


def _insert_node(unit: Unit, registration: Registration) -> Node:
    node = Node(
        id=unit.new_id("node"),
        name=registration.name,
        facts=_bounded_facts(registration.facts),
        epoch=max(1, registration.known_epoch),
        last_heard_at=unit.now(),
        created_at=unit.now(),
    )
    unit.emit("node.registered", node.id, data={"name": node.name})
    return unit.tx.nodes.insert(node)


def _restart_sequences(unit: Unit, node: Node) -> None:
    """An agent that lost its memory counts its reports from one."""
    for instance in _instances_on(unit.tx, node.id):
        if instance.observed.sequence:
            unit.tx.instances.update(replace(instance, observed=replace(instance.observed, sequence=0)))
    restart_sequences(unit, node)


def assignments(tx: Transaction, node_id: str) -> Assignments:
    """All that a node should hold now.

    Raises:
        ForbiddenError: this node is not known.
    """
    node = _known(tx, node_id)
    instances = _instances_on(tx, node_id)
    releases = releases_of(tx, {instance.release_id for instance in instances})
    apps = {app_id: tx.apps.get(app_id) for app_id in {instance.app_id for instance in instances}}
    items = []
    for instance in instances:
        app, release = apps[instance.app_id], releases.get(instance.release_id)
        project = tx.projects.get(app.project_id) if app else None
        if app is None or release is None or project is None:
            _log.error("assignments.dangling", instance=instance.id, app=instance.app_id)
            continue
        items.append(
            Assignment(
                instance_id=instance.id,
                workload=workload(instance, app, release, project, node, mounts=_mounts(tx, instance, release)),
                present=instance.desired is not Desired.STOP,
                asleep=instance.sleep is Sleep.ASLEEP,
                memory_of=instance.memory_of,
            )
        )
    return Assignments(node_id=node_id, epoch=node.epoch, items=tuple(items), volumes=volume_orders(tx, node_id))


def _mounts(tx: Transaction, instance: Instance, release: Release) -> tuple[WorkloadMount, ...]:
    """What an instance has of volumes, which are on its node from when it was placed."""
    names = {volume.id: volume.name for volume in volumes_of(tx, instance, release.config)}
    return tuple(
        WorkloadMount(
            volume_id=mount.volume_id,
            name=names.get(mount.volume_id, mount.source),
            destination=mount.destination,
            read_only=mount.read_only,
        )
        for mount in release.config.mounts_of(instance.process)
        if instance.owner is OwnerKind.APP
    )


def workload(
    instance: Instance,
    app: App,
    release: Release,
    project: Project,
    node: Node,
    *,
    mounts: tuple[WorkloadMount, ...] = (),
) -> Workload:
    """What a VM of the instance is, with every name resolved. A one-off run serves nothing and is tried once."""
    config = release.config
    run = instance.owner is OwnerKind.RUN
    process = next((p for p in config.processes if p.name == instance.process), Process(name=instance.process))
    port = 0 if run else service_port(config, instance.process)
    return Workload(
        organization_id=project.organization_id,
        project_id=project.id,
        network_id=project.network_id,
        app_id=app.id,
        app_name=app.name,
        process=instance.process,
        release=release.number,
        image_digest=release.image_digest,
        command=instance.command if instance.command is not None else process.command,
        entrypoint=() if run else process.entrypoint,
        env={**_environment(app, instance.process, release, node, port), **config.env, **process.env},
        secrets=tuple(config.secrets),
        memory_bytes=instance.memory_bytes,
        cpu_milli=instance.cpu_milli,
        vcpus=process.vcpus,
        disk_bytes=instance.disk_bytes,
        port=port,
        checks=() if run else tuple(check for check in config.checks if check.process == instance.process),
        restart=RestartPolicy(mode=RestartMode.NEVER) if run else process.restart,
        stop_signal=process.stop_signal,
        stop_grace_s=process.stop_grace_s,
        backend=config.backend,
        mounts=mounts,
    )


def _environment(app: App, process: str, release: Release, node: Node, port: int) -> dict[str, str]:
    """What every guest is told about itself (API §4); the engine adds the id of its VM."""
    told = {
        "SHELLWEGO_APP": app.name,
        "SHELLWEGO_PROCESS": process,
        "SHELLWEGO_RELEASE": f"v{release.number}",
        "SHELLWEGO_REGION": node.region,
        "SHELLWEGO_NODE": node.name,
    }
    return {**told, "PORT": str(port)} if port else told


def accept(unit: Unit, report: NodeReport) -> int:
    """Take what a node saw; returns its epoch. A report of a past epoch changes nothing.

    Raises:
        ForbiddenError: this node is not known, or knows a higher epoch than we do: it has to register again.
        InvalidError: it names more instances than a node can hold.
    """
    node = _known(unit.tx, report.node_id)
    if report.epoch > node.epoch:
        raise ForbiddenError("node-ahead", f"node {node.id} reports epoch {report.epoch}", resolution="Register again.")
    if report.epoch < node.epoch:
        return node.epoch
    if len(report.instances) > MAX_INSTANCES or len(report.volumes) > MAX_INSTANCES:
        raise InvalidError("report-too-large", f"a report names at most {MAX_INSTANCES} instances, and as many volumes")
    for instance in _named(unit.tx, node.id, report.instances):
        observed = report.instances[instance.id]
        _observe(unit, node, instance, replace(observed, epoch=report.epoch, sequence=report.sequence))
    take_volumes(unit, node, report)
    _hear(unit, node, _bounded_facts(report.facts))
    return node.epoch


def _named(tx: Transaction, node_id: str, ids: Collection[str]) -> list[Instance]:
    """Those of the node among these. Where they are many, all that it has are read instead: it may name thousands that are
    none of its own, and nobody else is heard while each of them is looked up."""
    if len(ids) > _FEW:
        return [instance for instance in _instances_on(tx, node_id) if instance.id in ids]
    found = filter(None, map(tx.instances.get, ids))
    return [instance for instance in found if instance.node_id == node_id and instance.live]


def _hear(unit: Unit, node: Node, facts: NodeFacts) -> None:
    """Note that the node lives; written once a beat, so that an idle platform hardly writes."""
    facts = steady(facts, node.facts)
    news = facts != node.facts or node.health is not NodeHealth.READY
    if not news and unit.now() - node.last_heard_at < BEAT_S / 2:
        return
    if node.health is not NodeHealth.READY:
        unit.emit("node.ready", node.id, data={"name": node.name})
        node = come_up(node, unit.now())
    unit.tx.nodes.update(replace(node, facts=facts, last_heard_at=unit.now()))
    if news:
        wake_waiting(unit)


def _observe(unit: Unit, node: Node, instance: Instance, observed: Observed) -> None:
    before = instance.observed
    if (observed.epoch, observed.sequence) <= (before.epoch, before.sequence):
        return
    if not _is_vm_address(observed.address, node):
        _log.warning("report.address_refused", instance=instance.id, address=observed.address[:64])
        return
    if observed.phase not in _REPORTABLE or not _may_follow(instance.phase, observed.phase):
        _log.warning("report.phase_refused", instance=instance.id, judged=instance.phase, said=observed.phase)
        return
    observed = _bounded(observed)
    if replace(observed, epoch=before.epoch, sequence=before.sequence) == before and observed.phase is instance.phase:
        return
    _store_observation(unit, instance, observed)


def _may_follow(phase: Phase, said: Phase) -> bool:
    return said is phase or said in PHASE_MOVES[phase]


def _store_observation(unit: Unit, instance: Instance, observed: Observed) -> None:
    now = unit.now()
    moved = observed.phase is not instance.phase
    if moved and observed.phase is Phase.FAILED and blames_image(observed.reason_code):
        release = unit.tx.releases.get(instance.release_id)
        doubt_image(unit, release.image_digest if release else "")
    stored = unit.tx.instances.update(
        replace(
            instance,
            observed=observed,
            phase=observed.phase,
            phase_since=now if moved else instance.phase_since,
            stopped_at=now if observed.phase in TERMINAL else None,
        )
    )
    unit.hint(subjects.app(stored.app_id))
    if not stored.live:
        _make_room(unit, stored)
    app = unit.tx.apps.get(stored.app_id)
    if app is None:
        return
    if observed.reason_code == SUSPEND_FAILED and stored.sleep is Sleep.ASLEEP:
        give_up_sleep(unit, app, stored, observed)
    if stored.memory_of and observed.phase is Phase.ASLEEP:
        memories.arrived(unit, app, stored)
    elif stored.memory_of and observed.reason_code == MEMORY_LOST:
        memories.leave(unit, app, stored, observed.reason)
    data = {**instance_data(stored), "reason": observed.reason[:200]}
    if observed.reason_code == MEMORY_LOST != instance.observed.reason_code:
        announce(unit, app, "instance.memory_lost", data, resource=stored.id, severity="warning")
    if moved and stored.phase in _TOLD:
        severity = "warning" if stored.phase in _BAD else "info"
        announce(unit, app, f"instance.{stored.phase.value}", data, resource=stored.id, severity=severity)
    elif observed.ends > instance.observed.ends:
        ended = {**data, "ends": str(observed.ends)}
        announce(unit, app, "instance.ended", ended, resource=stored.id, severity="warning")


def _make_room(unit: Unit, ended: Instance) -> None:
    """What it had is free: its volumes, and its place where another one waited for it to leave."""
    let_go(unit, ended)
    waiting = unit.tx.instances.get(ended.makes_room_for) if ended.preempted else None
    if waiting is not None:
        unit.hint(subjects.app(waiting.app_id))


def _bounded(observed: Observed) -> Observed:
    """The observation within bounds."""
    return replace(
        observed,
        vm_id=observed.vm_id[:64],
        reason=observed.reason[:MAX_TEXT],
        reason_code=observed.reason_code[:MAX_WORD],
        detail=observed.detail[:MAX_WORD],
        log_tail=tuple(line[:MAX_TEXT] for line in observed.log_tail[-MAX_LOG_LINES:]),
    )


def _is_vm_address(text: str, node: Node) -> bool:
    """None, or one that a VM of this node can have: edges will send requests to it. A node that joined has its own subnet,
    and VMs that are reached by addresses only; on the platform's own host no socket is one but a VM's own."""
    if not text or (_VM_SOCKET.fullmatch(text) and not node.subnet):
        return True
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    if node.subnet:
        return address in ipaddress.IPv4Network(node.subnet)
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)


def _bounded_facts(facts: NodeFacts) -> NodeFacts:
    return replace(
        facts,
        hostname=facts.hostname[:253],
        version=facts.version[:MAX_WORD],
        cpu_milli=max(0, facts.cpu_milli),
        memory_bytes=max(0, facts.memory_bytes),
        disk_bytes=max(0, facts.disk_bytes),
        disk_free_bytes=None if facts.disk_free_bytes is None else max(0, facts.disk_free_bytes),
        cpu_overcommit=min(max(1, facts.cpu_overcommit), MAX_OVERCOMMIT),
        disk_overcommit=min(max(1, facts.disk_overcommit), MAX_OVERCOMMIT),
        backends=tuple(map(_bounded_backend, facts.backends[:16])),
        confinement=facts.confinement[:MAX_WORD],
        warnings=_texts(facts.warnings),
        subnet=facts.subnet if is_subnet(facts.subnet) else "",
        address=facts.address if is_host_address(facts.address) else "",
        images=tuple(sorted(filter(_DIGEST.fullmatch, facts.images[:MAX_IMAGES]))),
        hints=facts.hints if facts.hints in ROADS else "",
    )


def _bounded_backend(backend: Backend) -> Backend:
    return replace(
        backend,
        name=backend.name[:MAX_WORD],
        status=backend.status[:MAX_WORD],
        acceleration=backend.acceleration[:MAX_WORD],
        isolation=backend.isolation[:MAX_WORD],
        reason=backend.reason[:MAX_TEXT],
        max_vcpus=max(0, backend.max_vcpus),
        max_memory_bytes=max(0, backend.max_memory_bytes),
        snapshot_host=backend.snapshot_host if _is_bounded(backend.snapshot_host) else (),
    )


def _is_bounded(words: tuple[tuple[str, str], ...]) -> bool:
    """Cut short they would stand for another host."""
    return len(words) <= MAX_TRAITS and all(len(name) <= MAX_WORD and len(word) <= MAX_TEXT for name, word in words)


def _texts(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(line[:MAX_TEXT] for line in list(lines)[:32])


def _known(tx: Transaction, node_id: str) -> Node:
    node = tx.nodes.get(node_id)
    if node is None:
        raise ForbiddenError("node-unknown", f"this platform has no node {node_id[:64]}", resolution="Register again.")
    return node


def _instances_on(tx: Transaction, node_id: str) -> list[Instance]:
    return tx.instances.select(eq("node_id", node_id), within("phase", LIVE_PHASES))
