"""Instances, images, nodes, events, and the caller's own account."""

from __future__ import annotations

from datetime import datetime
from itertools import zip_longest
from typing import Annotated

from pydantic import Field

from shellwego.api.rest.schemas.common import Arguments, Body, Name, Pagination, Size, View, when, when_or_none
from shellwego.api.rest.schemas.nodes import DrainView
from shellwego.core.apps import Release
from shellwego.core.events import Event
from shellwego.core.images import Image
from shellwego.core.instances import PREEMPTED, Instance
from shellwego.core.liveness import steady_at
from shellwego.core.nodes import Node
from shellwego.core.vms import NetworkUsage, VmUsage


class NetworkUsageView(View):
    """What has passed a VM's interface since it was made: packets and bytes it sent (`transmit`) and got (`receive`)."""

    transmit_packets: int
    transmit_bytes: int
    receive_packets: int
    receive_bytes: int
    dropped: dict[str, int]
    """Frames that the node did not let pass, by reason: `source-mac`, `source-ipv4`, `arp` and others."""


class UsageView(View):
    """What a VM takes of its host, as of this answer."""

    memory_bytes: int
    cpu_seconds: float
    disk_bytes: int
    pressure: dict[str, float]
    """Share of the last ten seconds in which something waited for `cpu`, `memory`, `io`; empty where it is not measured."""
    network: NetworkUsageView | None
    """Null where the node does not count it."""


class InstanceView(View):
    """An instance, as judged; `address` is that of its VM. `sleep` is what is wanted: `awake`, `dozing` (it leaves the
    routes and is emptied) or `asleep`; whether it does is its phase."""

    id: str
    app_id: str
    owner: str
    process: str
    slot: int
    release: int | None
    release_id: str
    node_id: str | None
    vm_id: str | None
    phase: str
    desired: str
    sleep: str
    attempt: int
    address: str | None
    reason: str
    reason_code: str
    detail: str
    exit_code: int | None
    log_tail: list[str]
    memory_bytes: int
    cpu_milli: int
    disk_bytes: int
    priority: int
    """What its app asks for, as far as the organization's limit allows."""
    command: list[str] | None
    created_at: datetime
    phase_since: datetime
    stopped_at: datetime | None
    private_address: str | None = None
    """IPv6, by which VMs of its project reach it from any node."""
    usage: UsageView | None = None
    """Told of a single instance only, and where its node answers."""


class InstanceList(View):
    data: list[InstanceView]
    pagination: Pagination


class RunCreate(Body):
    """A one-off command in a new VM of the app's current release."""

    command: Annotated[Arguments, Field(min_length=1)]
    process: Name | None = None
    """Whose size and environment it gets; left out: the app's first process."""
    memory: Size | None = None


class ImageCreate(Body):
    """A reference of a registry, to be fetched now."""

    reference: Annotated[str, Field(min_length=1, max_length=512, examples=["registry.example/team/app:v1"])]


class ImageView(View):
    id: str
    project_id: str
    reference: str
    digest: str
    state: str
    size_bytes: int
    exposed_ports: list[int]
    loaded: bool
    reason: str
    created_at: datetime


class ImageList(View):
    data: list[ImageView]
    pagination: Pagination


class UploadView(View):
    """An upload under way; `offset` is the next byte that is expected."""

    id: str
    offset: int
    limit_bytes: int
    chunk_bytes: int


class LoadedView(View):
    """Images that a tar held, under all their names."""

    data: list[ImageView]


class BackendView(View):
    name: str
    status: str
    acceleration: str
    isolation: str
    reason: str
    suspend: bool
    """Its VMs can be suspended and resumed."""
    volumes: bool
    """Its VMs can have volumes of the node."""
    encryption: bool
    """Those can be encrypted."""


class TunnelKeyView(View):
    """A public key of WireGuard."""

    public_key: str
    since: datetime | None
    """When it was first told; null where that is not known."""


class NodeView(View):
    id: str
    name: str
    region: str
    zone: str
    labels: dict[str, str]
    hostname: str
    health: str
    flapping: bool
    """It goes down again and again, and gets nothing new until it was steady for a while; by `steady_at`, if it is heard
    until then, or by an uncordon."""
    steady_at: datetime | None
    scheduling: str
    drain: DrainView | None
    """While it is emptied."""
    epoch: int
    version: str
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
    cpu_overcommit: int
    disk_overcommit: int
    """How many times over CPU and disk are promised; memory never is."""
    instances: int
    """Instances that live on it."""
    backends: list[BackendView]
    confinement: str
    warnings: list[str]
    tunnel_keys: list[TunnelKeyView]
    """The keys by which other nodes know it now, where it is reached by WireGuard."""
    hints: str
    """By which road it hears hints: `bus`, or `link` for its TLS link to the servers; empty: it is in the platform's own
    process."""
    last_heard_at: datetime
    created_at: datetime


class NodeList(View):
    data: list[NodeView]
    pagination: Pagination


class EventView(View):
    seq: int
    id: str
    time: datetime
    organization_id: str | None
    project_id: str | None
    type: str
    resource: str
    actor: str
    severity: str
    data: dict[str, str]
    trace_id: str


class EventList(View):
    data: list[EventView]
    pagination: Pagination


class LogLineView(View):
    time: datetime
    instance_id: str
    process: str
    stream: str
    text: str


class LogList(View):
    data: list[LogLineView]


class ExecBody(Body):
    """A command to run in an instance to its end. `stdin` is text; output beyond 256 KiB each is dropped."""

    may_hold_nul = frozenset({"stdin"})
    command: Annotated[Arguments, Field(min_length=1)]
    instance: Annotated[str, Field(max_length=64)] | None = None
    process: Name | None = None
    stdin: Annotated[str, Field(max_length=65_536)] = ""
    timeout: Annotated[float, Field(gt=0, le=600)] = 60.0


class ExecView(View):
    """What the command left. Bytes that are no UTF-8 are replaced."""

    instance_id: str
    exit_code: int
    stdout: str
    stderr: str
    truncated: bool


_PREEMPTED = "its place was needed for an instance of higher priority"


def instance_view(instance: Instance, release: Release | None) -> InstanceView:
    observed = instance.observed
    return InstanceView(
        id=instance.id,
        app_id=instance.app_id,
        owner=instance.owner.value,
        process=instance.process,
        slot=instance.slot,
        release=release.number if release else None,
        release_id=release.id if release else instance.release_id,
        node_id=instance.node_id or None,
        vm_id=observed.vm_id or None,
        phase=instance.phase.value,
        desired=instance.wanted.value,
        sleep=instance.sleep.value,
        attempt=observed.attempt,
        address=observed.ipv4 or None,
        private_address=observed.private_address or None,
        reason=_PREEMPTED if instance.preempted else observed.reason or instance.placement_reason,
        reason_code=PREEMPTED if instance.preempted else observed.reason_code,
        detail=observed.detail,
        exit_code=observed.exit_code,
        log_tail=list(observed.log_tail),
        memory_bytes=instance.memory_bytes,
        cpu_milli=instance.cpu_milli,
        disk_bytes=instance.disk_bytes,
        priority=instance.priority,
        command=None if instance.command is None else list(instance.command),
        created_at=when(instance.created_at),
        phase_since=when(instance.phase_since),
        stopped_at=when_or_none(instance.stopped_at),
    )


def usage_view(used: VmUsage | None) -> UsageView | None:
    if used is None:
        return None
    return UsageView(
        memory_bytes=used.memory_bytes,
        cpu_seconds=used.cpu_seconds,
        disk_bytes=used.disk_bytes,
        pressure=dict(used.pressure),
        network=None if used.network is None else network_usage_view(used.network),
    )


def network_usage_view(used: NetworkUsage) -> NetworkUsageView:
    return NetworkUsageView(
        transmit_packets=used.transmit_packets,
        transmit_bytes=used.transmit_bytes,
        receive_packets=used.receive_packets,
        receive_bytes=used.receive_bytes,
        dropped=dict(used.dropped),
    )


def image_view(image: Image) -> ImageView:
    return ImageView(
        id=image.id,
        project_id=image.project_id,
        reference=image.reference,
        digest=image.digest,
        state=image.state.value,
        size_bytes=image.size_bytes,
        exposed_ports=list(image.exposed_ports),
        loaded=image.loaded,
        reason=image.reason,
        created_at=when(image.created_at),
    )


def node_view(node: Node, instances: int, drain: DrainView | None) -> NodeView:
    facts = node.facts
    return NodeView(
        id=node.id,
        name=node.name,
        region=node.region,
        zone=node.zone,
        labels=dict(node.labels),
        hostname=facts.hostname,
        health=node.health.value,
        flapping=node.flapping_since is not None,
        steady_at=when_or_none(steady_at(node)),
        scheduling=node.scheduling.value,
        drain=drain,
        epoch=node.epoch,
        version=facts.version,
        cpu_milli=facts.cpu_milli,
        memory_bytes=facts.memory_bytes,
        disk_bytes=facts.disk_bytes,
        cpu_overcommit=facts.cpu_overcommit,
        disk_overcommit=facts.disk_overcommit,
        instances=instances,
        backends=[
            BackendView(
                name=backend.name,
                status=backend.status,
                acceleration=backend.acceleration,
                isolation=backend.isolation,
                reason=backend.reason,
                suspend=backend.suspend,
                volumes=backend.volumes,
                encryption=backend.encryption,
            )
            for backend in facts.backends
        ],
        confinement=facts.confinement,
        warnings=[*facts.warnings, *([node.unreached] if node.unreached else [])],
        tunnel_keys=[
            TunnelKeyView(public_key=key, since=when_or_none(since))
            for key, since in zip_longest(facts.tunnel_keys, node.tunnel_keys_since[: len(facts.tunnel_keys)])
        ],
        hints=facts.hints,
        last_heard_at=when(node.last_heard_at),
        created_at=when(node.created_at),
    )


def event_view(event: Event) -> EventView:
    return EventView(
        seq=event.seq,
        id=event.id,
        time=when(event.time),
        organization_id=event.organization_id or None,
        project_id=event.project_id or None,
        type=event.type,
        resource=event.resource,
        actor=event.actor,
        severity=event.severity,
        data=dict(event.data),
        trace_id=event.trace_id,
    )
