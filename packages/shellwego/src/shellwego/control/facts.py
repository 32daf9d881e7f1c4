"""What the pure planners start from, read in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from shellwego.control.instances import LIVE_PHASES
from shellwego.core.apps import App, AppConfig, Process, Release
from shellwego.core.deployments import FINISHED, DeploymentState
from shellwego.core.evicted import EvictedFacts
from shellwego.core.images import ImageState
from shellwego.core.instances import Instance, OwnerKind, Phase
from shellwego.core.nodes import NodeHealth
from shellwego.core.placement import NOTHING, Home, NodeUsage, PlacementRequest
from shellwego.core.rollout_facts import ImageFacts, RolloutFacts
from shellwego.core.target import stable_target
from shellwego.core.volumes import Volume
from shellwego.ports.store import Op, Transaction, Where, eq, within

UNFINISHED = tuple(state.value for state in DeploymentState if state not in FINISHED)
AMOUNTS = ("cpu_milli", "memory_bytes", "disk_bytes")
"""What `NodeUsage` sums of instances."""
_MOST_IDS = 100
"""That one question names: each count of them is a statement of its own."""


def rollout_facts(tx: Transaction, app: App) -> RolloutFacts:
    """All that `plan_rollout` needs of an app."""
    deployments = tuple(tx.deployments.select(eq("app_id", app.id), within("state", UNFINISHED)))
    instances = tuple(tx.instances.select(eq("app_id", app.id)))
    named = {app.release_id, app.stable_release_id}
    named |= {deployment.release_id for deployment in deployments}
    releases = releases_of(tx, [*named, *(instance.release_id for instance in instances if instance.live)])
    return RolloutFacts(
        app=app,
        releases=releases,
        deployments=deployments,
        instances=instances,
        images={d.release_id: image_facts(tx, app, releases[d.release_id]) for d in deployments},
        edges=tuple(tx.edges.select()),
        published=frozenset(port.process for port in tx.published_ports.select(eq("app_id", app.id))),
        dead_nodes=_dead_nodes(tx, instances),
    )


def releases_of(tx: Transaction, ids: Iterable[str]) -> dict[str, Release]:
    """Releases by id, without those that do not exist."""
    named = (id_ for id_ in set(ids) if id_)
    return {found.id: found for some in portions(named) for found in tx.releases.select(within("id", some))}


def apps_of(tx: Transaction, ids: Iterable[str]) -> list[App]:
    """Apps by id, without those that do not exist."""
    return [app for some in portions(ids) for app in tx.apps.select(within("id", some))]


def portions(ids: Iterable[str], most: int = _MOST_IDS) -> Iterator[tuple[str, ...]]:
    """The ids in order, at most so many at a time: as a question may name, where nothing else is said."""
    every = sorted(ids)
    return (tuple(every[first : first + most]) for first in range(0, len(every), most))


def live_by_app(tx: Transaction, app_ids: Iterable[str]) -> dict[str, tuple[Instance, ...]]:
    """By app: those of its instances that live, one-off runs too; without the apps that have none."""
    found: dict[str, tuple[Instance, ...]] = {}
    for some in portions(app_ids):
        living = [within("phase", LIVE_PHASES)] if len(some) == 1 else []  # of many, SQLite would look by the phase
        for row in tx.instances.select(within("app_id", some), *living):
            if row.live:
                found[row.app_id] = (*found.get(row.app_id, ()), row)
    return found


def instance_rows(tx: Transaction, app_ids: Iterable[str], *conditions: Where) -> dict[str, int]:
    """By app: how many rows its instances have, those that have ended too; without the apps that have none."""
    counts = (tx.instances.sums("app_id", (), within("app_id", some), *conditions) for some in portions(app_ids))
    return {app_id: count for found in counts for app_id, (count,) in found.items()}


def evicted_facts(tx: Transaction, instances: Iterable[Instance]) -> EvictedFacts:
    """Whatever may come in the place of those of the instances that are evicted."""
    ids = {instance.app_id for instance in instances if instance.evicted}
    apps = apps_of(tx, ids)
    releases = releases_of(tx, [app.stable_release_id for app in apps])
    return EvictedFacts(
        relatives={app_id: tx.instances.select(eq("app_id", app_id)) for app_id in ids},
        deploying=frozenset(a for a in ids if tx.deployments.count(eq("app_id", a), within("state", UNFINISHED))),
        aims={app.id: stable_target(app, releases) for app in apps},
    )


def image_facts(tx: Transaction, app: App, release: Release) -> ImageFacts:
    """The state of a release's image in the app's project: one row that is ready is enough."""
    rows = tx.images.select(eq("project_id", app.project_id), eq("digest", release.image_digest))
    reference = release.config.image
    if not rows:
        reason = "it was deleted from the project"
        return ImageFacts(state=ImageState.FAILED, reference=reference, reason=reason)
    if any(row.state is ImageState.READY for row in rows):
        return ImageFacts(state=ImageState.READY, reference=reference)
    coming = [row for row in rows if row.state is not ImageState.FAILED]
    row = coming[0] if coming else rows[-1]
    return ImageFacts(state=row.state, reference=reference or row.reference, reason=row.reason)


def _dead_nodes(tx: Transaction, instances: Iterable[Instance]) -> frozenset[str]:
    ids = {instance.node_id for instance in instances if instance.live and instance.node_id}
    nodes = {id_: tx.nodes.get(id_) for id_ in ids}
    return frozenset(id_ for id_, node in nodes.items() if node is None or node.health is NodeHealth.DOWN)


def placement_request(tx: Transaction, instance: Instance, release: Release) -> PlacementRequest:
    """What the instance needs of a node; it may be larger or smaller than its process, as one-off runs are, and those have
    no volumes."""
    process = next((p for p in release.config.processes if p.name == instance.process), Process(name=instance.process))
    sized = replace(
        process,
        cpu_milli=instance.cpu_milli,
        memory_bytes=instance.memory_bytes,
        disk_bytes=instance.disk_bytes,
    )
    volumes = volumes_of(tx, instance, release.config)
    request = process_request(sized, release.config, volumes)
    returns = not instance.node_id and any(volume.given_back(tx.now()) for volume in volumes)
    home = replace(request.home, returns=returns) if request.home is not None else None
    return replace(request, image=release.image_digest, home=home)


def volumes_of(tx: Transaction, instance: Instance, config: AppConfig) -> list[Volume]:
    """The volumes that an instance is to have, as far as there are any."""
    mounts = config.mounts_of(instance.process) if instance.owner is OwnerKind.APP else ()
    return [volume for volume in (tx.volumes.get(mount.volume_id) for mount in mounts) if volume is not None]


def process_request(process: Process, config: AppConfig, volumes: Sequence[Volume]) -> PlacementRequest:
    """What an instance of a process with these volumes needs of a node: that one on which they live, or room for them."""
    home = next((Home(volume.node_id, volume.name) for volume in volumes if volume.node_id), None)
    return PlacementRequest(
        cpu_milli=process.cpu_milli,
        memory_bytes=process.memory_bytes,
        disk_bytes=process.disk_bytes + sum(volume.size_bytes for volume in volumes if not volume.node_id),
        vcpus=process.vcpus,
        backend=config.backend,
        rules=config.placement,
        volumes=bool(volumes),
        encryption=any(volume.encrypted for volume in volumes),
        home=home,
    )


def node_usage(tx: Transaction, node_id: str | None = None) -> dict[str, NodeUsage]:
    """What is placed on each node, or on this one: everything that has not ended there, the volumes that live and the copies
    that are kept there, and the room that is kept for what waits until others have left (it is no instance there yet)."""
    only = [] if node_id is None else [eq("node_id", node_id)]
    sums = tx.instances.sums("node_id", AMOUNTS, within("phase", LIVE_PHASES), *only)
    usage = {
        place: NodeUsage(instances=count, cpu_milli=cpu, memory_bytes=memory, disk_bytes=disk)
        for place, (count, cpu, memory, disk) in sums.items()
        if place
    }
    for where, (_, size) in tx.volumes.sums("node_id", ("size_bytes",), *only).items():
        if where:
            usage[where] = usage.get(where, NOTHING).together(NodeUsage(disk_bytes=size))
    for where, (_, size) in tx.replicas.sums("node_id", ("size_bytes",), *only).items():
        usage[where] = usage.get(where, NOTHING).together(NodeUsage(disk_bytes=size))
    place = Where("reserved_node_id", Op.GT, "") if node_id is None else eq("reserved_node_id", node_id)
    kept = tx.instances.sums("reserved_node_id", AMOUNTS, place, eq("phase", Phase.PENDING.value))
    for where, (_, cpu, memory, disk) in kept.items():
        room = NodeUsage(cpu_milli=cpu, memory_bytes=memory, disk_bytes=disk)
        usage[where] = usage.get(where, NOTHING).together(room)
    return usage


def process_peers(tx: Transaction, app_id: str) -> dict[str, Counter[str]]:
    """By process of an app: how many of its instances each node has."""
    peers: dict[str, Counter[str]] = {}
    for instance in tx.instances.select(eq("app_id", app_id), within("phase", LIVE_PHASES)):
        if instance.node_id:
            peers.setdefault(instance.process, Counter())[instance.node_id] += 1
    return peers
