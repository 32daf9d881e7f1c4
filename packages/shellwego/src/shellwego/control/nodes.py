"""Nodes: how they become known, and what comes of their reports.

`Nodes` is the control plane's end of `ports.uplink.NodeUplink`. A report is guarded three times: by the node's epoch (a node
that was judged lost must first learn so), by the sequence of each instance's last observation, and by the table of phases.
What a node is told: `control.assignments`. What is believed of what it says: `core.claims`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import structlog

from shellwego.control import memories
from shellwego.control.announcements import announce
from shellwego.control.assignments import assignments, projects_on
from shellwego.control.backupreports import take_backups
from shellwego.control.changes import instance_data
from shellwego.control.delivery import Delivery
from shellwego.control.holds import let_go
from shellwego.control.images import doubt_image
from shellwego.control.instances import instances_on
from shellwego.control.names import NameBook, names_version
from shellwego.control.networks import address_of
from shellwego.control.nodeadmin import wake_waiting
from shellwego.control.nodecalls import known_node
from shellwego.control.peers import PeerBook
from shellwego.control.publishing import PortBook
from shellwego.control.replicareports import take_replicas
from shellwego.control.sealing import Sealer
from shellwego.control.sleep import give_up_sleep
from shellwego.control.traffic import TrafficBook
from shellwego.control.unit import Control, Unit
from shellwego.control.vaults import Vaults
from shellwego.control.volumekeys import VolumeKeys
from shellwego.control.volumereports import take_volumes
from shellwego.core.assignments import (
    Assignments,
    NodeReport,
    Registration,
    SecretsRequest,
    SecretValues,
    VolumeKey,
    VolumeKeyRequest,
)
from shellwego.core.backups import BackupAccess, BackupAccessRequest, RepositoryPlace
from shellwego.core.claims import (
    MAX_WORD,
    bounded_facts,
    bounded_observation,
    bounded_traffic,
    check_registration,
    check_report,
    is_vm_address,
    may_follow,
)
from shellwego.core.errors import ForbiddenError
from shellwego.core.images import blames_image
from shellwego.core.instances import MEMORY_LOST, SUSPEND_FAILED, TERMINAL, Instance, Observed, Phase, Sleep
from shellwego.core.liveness import BEAT_S, come_up
from shellwego.core.names import NodeNames
from shellwego.core.nodes import Node, NodeFacts, NodeHealth, steady
from shellwego.core.peers import DAY_S, keys_since, without_keys_of_others
from shellwego.core.publishing import NodePorts
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

_FEW = 32
"""Instances that are looked up one by one."""
_TOLD = frozenset({Phase.HEALTHY, Phase.UNHEALTHY, Phase.ASLEEP, Phase.STOPPED, Phase.FAILED})
"""Phases whose beginning is an event."""
_BAD = frozenset({Phase.UNHEALTHY, Phase.FAILED})

_log = structlog.get_logger(__name__)


class Nodes:
    """See `ports.uplink.NodeUplink`."""

    def __init__(
        self,
        control: Control,
        sealer: Sealer,
        repository: RepositoryPlace | None = None,
        *,
        key_generation_s: float = DAY_S,
        traffic: TrafficBook | None = None,
    ) -> None:
        """`repository`: where backups lie; None: nowhere. `key_generation_s`: so long nodes use a key between them.
        `traffic`: where it is noted what nodes tell of theirs."""
        self._control = control
        self._vaults = Vaults(control, sealer, repository)
        self._delivery = Delivery(control, sealer)
        self._volume_keys = VolumeKeys(control, sealer)
        self._peers = PeerBook(control.clock, key_generation_s)
        self._names = NameBook()
        self._traffic = traffic or TrafficBook(control.clock)
        self._ports = PortBook(control.clock)

    async def register(self, registration: Registration) -> Assignments:
        return await self._control.commit(lambda unit: register(unit, registration))

    async def assignments(self, node_id: str) -> Assignments:
        def work(tx: Transaction) -> Assignments:
            assigned = assignments(tx, node_id)
            return replace(
                assigned,
                peers=self._peers.of(tx, node_id),
                key_step=self._peers.key_step(tx),
                names_version=names_version(tx, {item.workload.project_id for item in assigned.items}),
                ports_version=self._ports.of(tx).version,
            )

        return await self._control.read(work)

    async def names(self, node_id: str) -> NodeNames:
        return await self._control.read(lambda tx: self._names.of(tx, projects_on(tx, node_id)))

    async def ports(self, node_id: str) -> NodePorts:
        def work(tx: Transaction) -> NodePorts:
            known_node(tx, node_id)
            return self._ports.of(tx)

        return await self._control.read(work)

    async def report(self, report: NodeReport) -> int:
        epoch = await self._control.commit(lambda unit: accept(unit, report))
        if report.traffic is not None and report.epoch == epoch:
            self._traffic.note(report.node_id, bounded_traffic(report.traffic))
        return epoch

    async def secrets(self, request: SecretsRequest) -> SecretValues:
        return await self._delivery.values(request)

    async def backup_access(self, request: BackupAccessRequest) -> BackupAccess:
        return await self._vaults.access(request)

    async def volume_key(self, request: VolumeKeyRequest) -> VolumeKey:
        return await self._volume_keys.hand_out(request)


def register(unit: Unit, registration: Registration) -> Assignments:
    """Make a node known, or known again: by the id that it kept, else by its name.

    A node may know a higher epoch than we do, when the store was restored from a backup; it would refuse ours for ever, so
    ours is raised to it. One that has lost its memory counts its reports from one, so it gets a new epoch: what it said
    before, or what comes late of that, counts no more, and it tells everything anew.

    Raises:
        InvalidError: the name is not usable, or the epoch cannot be.
        ForbiddenError: it joined, and was removed since.
    """
    check_registration(registration)
    known = unit.tx.nodes.get(registration.known_node_id) or next(
        iter(unit.tx.nodes.select(eq("name", registration.name), limit=1)), None
    )
    if known is None and registration.joined:
        raise ForbiddenError("node-unknown", f"the node {registration.name} was removed", resolution="Join it again.")
    if known is None:
        node = _insert_node(unit, registration)
    else:
        facts = _with_own_keys(unit, known.id, bounded_facts(registration.facts), known.facts.tunnel_keys)
        node = unit.tx.nodes.update(
            replace(
                _told(known, facts, unit.now()),
                epoch=max(known.epoch, registration.known_epoch) + (registration.known_node_id != known.id),
                last_heard_at=unit.now(),
            )
        )
    wake_waiting(unit)
    return assignments(unit.tx, node.id)


def _insert_node(unit: Unit, registration: Registration) -> Node:
    facts = _with_own_keys(unit, "", bounded_facts(registration.facts))
    node = Node(
        id=unit.new_id("node"),
        name=registration.name,
        facts=facts,
        tunnel_keys_since=keys_since((), (), facts.tunnel_keys, unit.now()),
        epoch=max(1, registration.known_epoch),
        last_heard_at=unit.now(),
        created_at=unit.now(),
    )
    unit.emit("node.registered", node.id, data={"name": node.name})
    return unit.tx.nodes.insert(node)


def accept(unit: Unit, report: NodeReport) -> int:
    """Take what a node saw; returns its epoch. A report of a past epoch changes nothing.

    Raises:
        ForbiddenError: this node is not known, or knows a higher epoch than we do: it has to register again.
        InvalidError: it names more instances than a node can hold.
    """
    node = known_node(unit.tx, report.node_id)
    if report.epoch > node.epoch:
        raise ForbiddenError("node-ahead", f"node {node.id} reports epoch {report.epoch}", resolution="Register again.")
    if report.epoch < node.epoch:
        return node.epoch
    check_report(report)
    for instance in _named(unit.tx, node.id, report.instances):
        observed = report.instances[instance.id]
        _observe(unit, node, instance, replace(observed, epoch=report.epoch, sequence=report.sequence))
    take_volumes(unit, node, report)
    take_backups(unit, node, report)
    take_replicas(unit, node, report)
    _hear(unit, node, _with_own_keys(unit, node.id, bounded_facts(report.facts), node.facts.tunnel_keys))
    return node.epoch


def _named(tx: Transaction, node_id: str, ids: Collection[str]) -> list[Instance]:
    """Those of the node among these. Where they are many, all that it has are read instead: it may name thousands that are
    none of its own, and nobody else is heard while each of them is looked up."""
    if len(ids) > _FEW:
        return [instance for instance in instances_on(tx, node_id) if instance.id in ids]
    found = filter(None, map(tx.instances.get, ids))
    return [instance for instance in found if instance.node_id == node_id and instance.live]


def _hear(unit: Unit, node: Node, facts: NodeFacts) -> None:
    """Note that the node lives; written once a beat, so that an idle platform hardly writes."""
    facts = steady(facts, node.facts)
    news = facts != node.facts or node.health is not NodeHealth.READY
    if not news and abs(unit.now() - node.last_heard_at) < BEAT_S / 2:  # the store's clock may be set back
        return
    if node.health is not NodeHealth.READY:
        unit.emit("node.ready", node.id, data={"name": node.name})
        node = come_up(node, unit.now())
    unit.tx.nodes.update(replace(_told(node, facts, unit.now()), last_heard_at=unit.now()))
    if news:
        wake_waiting(unit)


def _told(node: Node, facts: NodeFacts, now: float) -> Node:
    """A node with the facts that it tells."""
    since = keys_since(node.facts.tunnel_keys, node.tunnel_keys_since, facts.tunnel_keys, now)
    return replace(node, facts=facts, tunnel_keys_since=since)


def _observe(unit: Unit, node: Node, instance: Instance, observed: Observed) -> None:
    before = instance.observed
    if (observed.epoch, observed.sequence) <= (before.epoch, before.sequence):
        return
    if not is_vm_address(observed.address, node):
        _log.warning("report.address_refused", instance=instance.id, address=observed.address[:64])
        return
    if not may_follow(instance.phase, observed.phase):
        _log.warning("report.phase_refused", instance=instance.id, judged=instance.phase, said=observed.phase)
        return
    observed = bounded_observation(instance.id, _with_true_address(unit, node, instance, observed))
    if replace(observed, epoch=before.epoch, sequence=before.sequence) == before and observed.phase is instance.phase:
        # Noted all the same: else an older one that comes after it would be believed.
        unit.tx.instances.update(replace(instance, observed=observed))
        unit.hint(subjects.app(instance.app_id))
        return
    _store_observation(unit, instance, observed)


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
    if observed.reason_code == SUSPEND_FAILED and stored.sleep is not Sleep.AWAKE:
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


def _with_true_address(unit: Unit, node: Node, instance: Instance, said: Observed) -> Observed:
    """Others trust what a private address says of project and node, so it is that VM's very own, or none."""
    if not said.private_address:
        return said
    app = unit.tx.apps.get(instance.app_id)
    if app is not None and said.private_address == address_of(unit.tx, node, app.project_id, said.ipv4):
        return said
    _log.warning("report.private_address_refused", instance=instance.id, address=said.private_address[:MAX_WORD])
    return replace(said, private_address="")


def _with_own_keys(unit: Unit, node_id: str, facts: NodeFacts, known: tuple[str, ...] = ()) -> NodeFacts:
    """Whoever told another node's key could shut that one out."""
    if facts.tunnel_keys in ((), known):
        return facts
    return replace(facts, tunnel_keys=without_keys_of_others(node_id, facts.tunnel_keys, unit.tx.nodes.select()))
