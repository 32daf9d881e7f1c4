"""What is true of a healed platform that was left in peace: database, agents, engines and routes agree, and nothing is left
over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from itertools import zip_longest
from typing import TYPE_CHECKING

from shellwego.core.apps import App, Release, wanted_counts
from shellwego.core.deployments import FINISHED, ROLLING
from shellwego.core.images import ImageState
from shellwego.core.instances import Desired, Eviction, Instance, OwnerKind, Phase, Sleep
from shellwego.core.names import NamedApp, names_of_app
from shellwego.core.nodes import NodeHealth, Scheduling
from shellwego.core.replicas import marked
from shellwego.core.routes import service_port
from shellwego.core.slots import REPLACE_BACKOFF_S
from shellwego.core.vms import VmPhase, VmView
from shellwego.core.volumes import SnapshotState, Volume, VolumeState
from shellwego.edge.pool import instance_of
from shellwego.edge.targets import parse_address
from tests.sim import waits
from tests.sim.copied import copies

if TYPE_CHECKING:
    from tests.sim.hosts import NodeHost
    from tests.sim.world import World

_REACHED = (Phase.HEALTHY, Phase.ASLEEP, Phase.STOPPED)
QUIET_S = 30.0
"""Everything agrees within so long, or has come nearer to it: no pause of the platform's is longer than 20 s."""
MOST_S = 150.0
"""However much comes nearer. The longest way of what is right: a deployment finds no room and is taken back after its time;
then one boots after another, on the only node that is open, which has room for one more at a time."""


class Patience:
    """How long is waited until everything agrees."""

    def __init__(self, now: float, more_s: float = 0.0) -> None:
        """`more_s` passes before anything need happen at all."""
        self._steps: set[str] = set()
        self._until = now + QUIET_S + more_s
        self._at_most = now + MOST_S + more_s

    def lasts(self, now: float, steps: Set[str]) -> bool:
        """Whether to wait on, where `steps` have been done by now."""
        if not steps <= self._steps:
            self._steps |= steps
            self._until = max(self._until, now + QUIET_S)
        return now < min(self._until, self._at_most)


def steps(world: World) -> set[str]:
    """What has come to where it stays: each instance that serves, sleeps or has stopped, and each deployment that ended."""
    reached = {f"{row.id} {row.phase}" for row in world.rows("instances").values() if row.phase in _REACHED}
    return reached | {row.id for row in world.rows("deployments").values() if row.state in FINISHED}


def unsettled(world: World) -> Iterator[str]:
    """What is not yet as it should be; nothing: all agrees."""
    for look in (_deployments, _apps, _nodes, _names, _drains, _edges, _outbox, _images, _leases, _volumes, copies):
        yield from look(world)


def _volumes(world: World) -> Iterator[str]:
    rows, instances = world.rows("volumes"), world.rows("instances")
    for row in rows.values():
        if row.lost or waits.is_dead(world, row):
            continue
        holder = instances.get(row.instance_id)
        if row.instance_id and (holder is None or not holder.live or holder.node_id != row.node_id):
            yield f"volume {row.name} is held by {row.instance_id}, which is gone"
        moves = row.state is VolumeState.MOVING and waits.for_move(world, row)
        if row.state not in (VolumeState.AVAILABLE, VolumeState.ATTACHED) and not moves:
            yield f"volume {row.name} is {row.state}: {row.observed.reason}"
    for node in world.nodes:
        if not node.dead:
            yield from _disks(world, node, [row for row in rows.values() if row.node_id == node.node_id])


def _disks(world: World, node: NodeHost, own: list[Volume]) -> Iterator[str]:
    """What a host keeps is what its node should. What is lost, because its node was removed, nobody dares to delete."""
    kept, lost = node.engine.disks.kept, world.watch.lost_volumes
    copied = {row.volume_id for row in world.rows("replicas").values() if row.node_id == node.node_id}
    ids = {row.id for row in own} | copied
    yield from (f"{node.name} keeps {id_}, which is not its own" for id_ in kept if id_ not in ids | lost)
    for row in own:
        if row.id not in kept:
            yield f"{node.name} has not got {row.name}"
        elif kept[row.id].size_bytes != row.size_bytes:
            yield f"{row.name} is {kept[row.id].size_bytes} bytes large, and should be {row.size_bytes}"
        else:
            snapshots = {each.id for each in world.rows("snapshots").values() if each.volume_id == row.id}
            ready = {id_ for id_ in snapshots if world.rows("snapshots")[id_].state is SnapshotState.AVAILABLE}
            there = {id_ for id_ in kept[row.id].snapshots if marked(id_) is None}
            if not ready <= there <= snapshots:
                yield f"{row.name} has the snapshots {sorted(there)}, and should {sorted(ready)}"


def _deployments(world: World) -> Iterator[str]:
    for row in world.rows("deployments").values():
        if row.state not in FINISHED:
            yield f"deployment {row.id} is {row.state}, in {row.stage}: {row.reason}"


def _apps(world: World) -> Iterator[str]:
    rows: dict[str, list[Instance]] = defaultdict(list)
    for row in world.rows("instances").values():
        rows[row.app_id].append(row)
    for app in world.rows("apps").values():
        if app.deleting:
            yield f"{app.name} is still being destroyed"
        yield from _app(world, app, rows.pop(app.id, []))
    for app_id, left in rows.items():
        yield f"{len(left)} instances are left of {app_id}"


def _app(world: World, app: App, rows: list[Instance]) -> Iterator[str]:
    own = [row for row in rows if row.owner is OwnerKind.APP]
    release = world.rows("releases").get(app.stable_release_id)
    wanted = _wanted(world, app.id)
    serving = [row for row in own if row.live and row.desired is Desired.SERVE]
    bad = release is not None and release.image_digest in (world.sick | world.exits)
    """Rolled out while nothing of it was to run, so nobody knew."""
    stuck = bad or any(row.live and _stays_away(world, row) for row in own)
    """Then what serves of another release serves on."""
    for row in own:
        if row.live and row.desired is not Desired.SERVE:
            yield f"{app.name}: {row.id} is to {row.desired} and is {row.phase}"
    fresh = [row for row in serving if release is not None and _is_of(row, app, release) and row.process in wanted]
    for row in serving:
        as_wished = row.phase is (Phase.HEALTHY if row.sleep is Sleep.AWAKE else Phase.ASLEEP)
        if row not in fresh and not (stuck and as_wished):
            yield f"{app.name}: {row.id} in slot {row.slot} is not of the stable release"
        if not as_wished and not bad and not _stays_away(world, row):
            yield f"{app.name}: {row.id} is {row.phase}, and should be {row.sleep}: {row.observed.reason}"
    stands_in = _stand_ins(world, own)
    for process, count in wanted.items():
        filling = [row for row in fresh if row.process == process and row.id not in stands_in.values()]
        slots = {row.slot for row in filling}
        single = [row for row in filling if row.id not in stands_in]
        missing = [slot for slot in range(count) if slot not in slots][: count - len(filling)]
        excused = stuck or all(_waits(world, own, process, slot) for slot in missing)
        if len(filling) > count or len({row.slot for row in single}) < len(single) or (missing and not excused):
            yield f"{app.name}: {len(filling)} of {count} {process} are there"


def _is_of(row: Instance, app: App, release: Release) -> bool:
    return (row.content_hash, row.generation) == (release.content_hash, app.stable_generation)


def _stays_away(world: World, row: Instance) -> bool:
    """It has no node, and can have none."""
    return not row.node_id and (bool(waits.for_volume(world, row)) or waits.for_room(world, row))


def _stand_ins(world: World, rows: list[Instance]) -> dict[str, str]:
    """Of an app, by id: those that have to leave their nodes and rightly serve on, each for one that was to come, and for
    which there is no room, or whose image never serves. It may be of another slot: whoever came in its own serves beside
    it, and they are too few yet. Where as many are there as may be, nobody comes for the others (empty) before that one."""
    found: dict[str, str] = {}
    serving = sorted((row for row in rows if row.live and row.desired is Desired.SERVE), key=lambda row: row.id)
    for owner, process in {(row.owner, row.process) for row in serving}:
        own = [row for row in serving if (row.owner, row.process) == (owner, process)]
        comes = [row for row in own if not row.evicted]
        taken = {row.slot for row in comes}
        gentle = [row for row in own if row.eviction is Eviction.GENTLE]
        absent = [row.id for row in comes if _stays_away(world, row) or _never_serves(world, row)]
        count = _wanted(world, own[0].app_id).get(process, 0) if owner is OwnerKind.APP else 0
        full = bool(absent) and len(own) >= count + min(len(gentle), ROLLING.surge(count))
        few = max(len(absent), count - (len(comes) - len(absent))) if full else len(absent)
        leaving = [row.id for row in gentle if full or row.slot in taken][:few]
        found |= zip_longest(leaving, absent[: len(leaving)], fillvalue="")
    return found


def _wanted(world: World, app_id: str) -> Mapping[str, int]:
    """How many there are to be of each process."""
    app = world.rows("apps").get(app_id)
    release = world.rows("releases").get(app.stable_release_id) if app else None
    return wanted_counts(app, release.config) if app and release else {}


def _never_serves(world: World, row: Instance) -> bool:
    release = world.rows("releases").get(row.release_id)
    return release is not None and release.image_digest in (world.sick | world.exits)


def _waits(world: World, rows: list[Instance], process: str, slot: int) -> bool:
    """It failed a moment ago, and pauses before it is filled again."""
    ended = [row for row in rows if (row.process, row.slot) == (process, slot) and row.phase is Phase.FAILED]
    failed = sorted(row.phase_since for row in ended if row.desired is Desired.SERVE)
    if not failed:
        return False
    pause = REPLACE_BACKOFF_S[min(len(failed), len(REPLACE_BACKOFF_S)) - 1]
    return world.store_clock.now() < failed[-1] + pause + 1.0


def _nodes(world: World) -> Iterator[str]:
    living = {row.id: row for row in world.rows("instances").values() if row.live}
    exits = {id_ for id_, row in world.rows("releases").items() if row.image_digest in world.exits}
    by_name = {node.name: node for node in world.rows("nodes").values()}
    seen: set[str] = set()
    for host in world.nodes:
        node = by_name.get(host.name)
        expected = NodeHealth.DOWN if host.dead else NodeHealth.READY
        if node is not None or not host.dead:  # one that died before it could say that it is there
            if node is None or node.health is not expected:
                yield f"{host.name} is {node.health if node else 'not known'}"
            for view in host.engine.views:
                row = living.get(view.instance_id)
                own = row if row is not None and node is not None and row.node_id == node.id else None
                if own is None or own.release_id not in exits:
                    yield from _vm(host.name, view, own)
                if view.instance_id in seen:
                    yield f"{view.instance_id} has two VMs"
                seen.add(view.instance_id)
    for row in living.values():
        if row.node_id and row.id not in seen and row.release_id not in exits:
            yield f"{row.id} is {row.phase}, and has no VM"
        if not row.node_id and not _stays_away(world, row):
            yield f"{row.id} is placed nowhere: {row.placement_reason}"


def _names(world: World) -> Iterator[str]:
    """Guests of each node find what serves in their own networks, and know of no other."""
    nodes = {node.name: node.id for node in world.rows("nodes").values()}
    apps, projects = world.rows("apps"), world.rows("projects")
    living = [row for row in world.rows("instances").values() if row.live]
    ends_at_once = {id_ for id_, row in world.rows("releases").items() if row.image_digest in world.exits}
    for host in (host for host in world.nodes if not host.dead and host.name in nodes):
        own = {apps[row.app_id].project_id for row in living if row.node_id == nodes[host.name]}
        told = {network: names.hosts for network, names in host.engine.names.items()}
        if told.keys() != {projects[id_].network_id for id_ in own}:
            yield f"{host.name} knows the names of {sorted(told)}, and has instances of {sorted(own)}"
        for app in (app for app in apps.values() if app.project_id in own):
            rows = tuple(row for row in living if row.app_id == app.id)
            named = names_of_app(NamedApp(app=app, instances=rows, releases=world.rows("releases")))
            hosts = told.get(projects[app.project_id].network_id, {})
            flaps = any(row.release_id in ends_at_once for row in rows)
            if named is not None and not flaps and not named.hosts.items() <= hosts.items():
                yield f"{host.name} does not know {app.name} as it is: {named.hosts}"


def _drains(world: World) -> Iterator[str]:
    """Each node that is to be emptied is empty, or something there may stay: a one-off run, or what waits for a slot."""
    rows: dict[str, list[Instance]] = defaultdict(list)
    for row in world.rows("instances").values():
        rows[row.app_id].append(row)
        if row.live and row.eviction is Eviction.QUEUED:
            yield f"{row.id} still waits for its turn to move"
    for own in rows.values():
        stands_in = _stand_ins(world, own)
        for row in own:
            goes = row.live and row.evicted and not waits.home(world, row) and row.id not in stands_in
            if goes and not _waits(world, own, row.process, row.slot):
                yield f"{row.id} has not left its node"
    for node in world.rows("nodes").values():
        left = [row for own in rows.values() for row in own if row.live and row.node_id == node.id]
        moving = [row for row in left if row.owner is OwnerKind.APP and not row.evicted and not _bound(world, row)]
        if node.scheduling is Scheduling.DRAINING and (moving or not left):
            yield f"{node.name} is to be emptied, and has {len(left)} instances"
        if node.scheduling is Scheduling.DRAINED and left:
            yield f"{node.name} is drained, and has {len(left)} instances"


def _bound(world: World, row: Instance) -> bool:
    """It has nowhere else to go."""
    return waits.home(world, row) != "" or waits.for_room(world, row, made=False)


def _vm(host: str, view: VmView, row: Instance | None) -> Iterator[str]:
    """One VM against the row of its instance, if it has one on this node."""
    if row is None:
        yield f"{host}: {view.vm_id} is an orphan"
    elif view.phase not in (VmPhase.RUNNING, VmPhase.ASLEEP):
        yield f"{host}: {view.vm_id} is {view.phase}"
    elif row.observed.vm_id != view.vm_id or row.observed.address not in ("", view.address):
        yield f"{host}: {view.vm_id} is not what is known of {row.id}"


def _edges(world: World) -> Iterator[str]:
    counter = world.rows("counters").get("routes")
    expected = _expected(world)
    for host in world.edges:
        row = next((edge for edge in world.rows("edges").values() if edge.name == host.name), None)
        if row is None or row.applied_version != (counter.value if counter else 0):
            yield f"{host.name} has not applied the newest routes"
        served: dict[str, dict[str, str]] = {}
        for name, backend in host.pool.hosts.items():
            served[name] = {instance_of(key[1]): at for key, at in host.ready().items() if key[0] == backend}
        if served != expected:
            yield f"{host.name} serves {served}, and should {expected}"
        left = [key for key in host.pool.servers if key not in host.ready() and not host.pool.servers[key].connections]
        if left:
            yield f"{host.name} still holds {left}"


def _expected(world: World) -> dict[str, dict[str, str]]:
    """Host → instance → address, by the database."""
    expected: dict[str, dict[str, str]] = defaultdict(dict)
    releases, apps = world.rows("releases"), world.rows("apps")
    for row in world.rows("instances").values():
        app, release = apps.get(row.app_id), releases.get(row.release_id)
        wanted = row.desired is Desired.SERVE and row.sleep is Sleep.AWAKE and row.owner is OwnerKind.APP
        port = service_port(release.config, row.process) if release else 0
        if app is not None and wanted and row.phase is Phase.HEALTHY and port:
            expected[app.hostname][row.id] = parse_address(f"tcp:{row.observed.address}:{port}")
    return dict(expected)


def _outbox(world: World) -> Iterator[str]:
    numbers = sorted(event.seq for event in world.rows("events").values())
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"events are numbered {numbers[:3]} to {numbers[-3:]}, and there are {len(numbers)}"
    unchained = sum(not record.position for record in world.rows("audit").values())
    if unchained:
        yield f"{unchained} audit records are in no chain"


def _images(world: World) -> Iterator[str]:
    for row in world.rows("images").values():
        if row.state not in (ImageState.READY, ImageState.FAILED):
            yield f"the image {row.reference} is {row.state}"


def _leases(world: World) -> Iterator[str]:
    names = {server.name for server in world.servers}
    for lease in world.rows("leases").values():
        if lease.holder not in names or lease.until <= world.store_clock.now():
            yield f"{lease.id} is held by {lease.holder} until {lease.until}"
