"""What a tenant asks of volumes, and what must be stored of them by the answers that were given.

Each app has two names of volumes for itself, so no other tenant is in the way, and a volume is still there when its app was
destroyed and made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shellwego.control import apps, attachments, volumes
from shellwego.control.authorization import Access
from shellwego.control.deployments import Rollout
from shellwego.control.targets import AppTarget
from shellwego.control.unit import Unit
from shellwego.control.volumes import VolumeWish
from shellwego.core.apps import MIB, Mount
from shellwego.core.errors import ConflictError
from shellwego.core.replicas import ReplicaPurpose
from shellwego.core.tenancy import Project
from shellwego.core.volumes import SnapshotState, Volume
from shellwego.ports.store import eq
from tests.sim import copies
from tests.sim.client import Request, Told
from tests.sim.copies import Work

if TYPE_CHECKING:
    from tests.sim.world import World

EFFECTS = {
    "volume-create": "volume.requested",
    "attach": "app.deployment.requested",
    "detach": "app.deployment.requested",
    "volume-resize": "volume.resizing",
    "snapshot": "volume.snapshot.requested",
    "snapshot-delete": "volume.snapshot.deleting",
    "restore": "volume.restoring",
    "volume-delete": "volume.deleting",
    **copies.EFFECTS,
}
"""The event by which each operation is told, once."""
SIZE_BYTES = 64 * MIB
_SECOND = 5
"""One in so many requests is for the second volume."""


@dataclass(slots=True)
class Disk:
    """What must be stored of a volume."""

    volume_id: str
    size_bytes: int = SIZE_BYTES
    deleted: bool = False
    snapshots: set[str] = field(default_factory=set)
    followed: bool = False
    """A standby copy is kept."""


class Disks:
    """The volumes of one app, by name."""

    def __init__(self, world: World, app: str) -> None:
        self._world = world
        self._app = app
        self._known: dict[str, Disk] = {}

    def name(self, number: int) -> str:
        return f"data-{self._app}-{int(number // 7 % _SECOND == 0)}"

    def meant(self, operation: str, number: int) -> str:
        """What can be asked: nothing of what there is not; where nothing is on it yet, that something is to be."""
        disk = self._known.get(self.name(number))
        if disk is None:
            return "volume-create"
        row = self._world.rows("volumes").get(disk.volume_id)
        if operation in copies.EFFECTS and row is not None and not row.made:
            return "attach"
        return "snapshot" if operation in ("restore", "snapshot-delete") and not disk.snapshots else operation

    def learn(self, request: Request, answer: Told) -> None:
        """It was done."""
        name = self.name(request.number)
        match request.operation:
            case "volume-create":
                self._known[name] = Disk(str(answer["volume"]))
            case "volume-resize":
                self._known[name].size_bytes = int(str(answer["size"]))
            case "snapshot":
                self._known[name].snapshots.add(str(answer["snapshot"]))
            case "snapshot-delete":
                self._known[name].snapshots.discard(str(answer["snapshot"]))
            case "replicate" | "replicate-off":
                self._known[name].followed = request.operation == "replicate"
            case "volume-delete":
                self._known[name].deleted = True

    def gone(self, request: Request) -> str:
        """There is none of this name; returns what is wrong with that."""
        disk = self._known.pop(self.name(request.number), None)
        return "" if disk is None or disk.deleted else f"the volume {disk.volume_id} is gone"

    def faults(self) -> list[str]:
        """What was acknowledged and is not stored."""
        rows, snapshots = self._world.rows("volumes"), self._world.rows("snapshots")
        found = []
        for name, disk in self._known.items():
            row = rows.get(disk.volume_id)
            if row is None or disk.deleted:
                if not disk.deleted or (row is not None and not row.deleting):
                    found.append(f"{name} should be {'deleted' if disk.deleted else 'there'}")
            elif row.size_bytes != disk.size_bytes:
                found.append(f"{name} has {row.size_bytes} bytes, and should have {disk.size_bytes}")
            elif missing := disk.snapshots - snapshots.keys():
                found.append(f"{name} should have the snapshots {sorted(missing)}")
            elif not row.lost and disk.followed is not self._is_followed(row.id):
                found.append(f"{name} should have {'a' if disk.followed else 'no'} standby copy")
        return found

    def _is_followed(self, volume_id: str) -> bool:
        rows = self._world.rows("replicas").values()
        own = (row for row in rows if row.volume_id == volume_id and row.purpose is ReplicaPurpose.STANDBY)
        return any(not row.dropping for row in own)


def create(request: Request, name: str) -> Callable[[Unit, Project], Told]:
    wish = VolumeWish(name=name, size_bytes=SIZE_BYTES)
    return lambda unit, project: {"volume": volumes.create_volume(unit, project, wish).id}


def work(access: Access, request: Request, project: str, rollout: Rollout) -> Work:
    """What is to be done to a volume."""
    if request.operation in ("attach", "detach"):
        target = AppTarget(request.name, project)
        return _attach(access, target, rollout) if request.operation == "attach" else _detach(access, rollout)
    return _WORK[request.operation](request.number)


def _attach(access: Access, target: AppTarget, rollout: Rollout) -> Work:
    """To one instance, which alone can have it."""

    def attach(unit: Unit, volume: Volume) -> Told:
        app = access.require(unit.tx, target, "apps:write")
        scaled = apps.scale_app(unit, app, {"web": 1})
        mount = Mount(source=volume.name, destination=f"/{volume.name}")
        made = attachments.attach(unit, volume, scaled, mount, rollout)
        after = unit.tx.apps.get(app.id)
        effect = after is not None and after.last_release_number != app.last_release_number
        return {"deployment": made.id if made else "", "effect": effect}

    return attach


def _detach(access: Access, rollout: Rollout) -> Work:
    def detach(unit: Unit, volume: Volume) -> Told:
        app = access.require(unit.tx, AppTarget(attachments.mounting_app(unit.tx, volume).id), "apps:write")
        made = attachments.detach(unit, volume, app, rollout)
        after = unit.tx.apps.get(app.id)
        effect = after is not None and after.last_release_number != app.last_release_number
        return {"deployment": made.id if made else "", "effect": effect}

    return detach


def _resize(number: int) -> Work:
    def resize(unit: Unit, volume: Volume) -> Told:
        project, size = unit.tx.projects.get(volume.project_id), volume.size_bytes + (1 + number % 3) * MIB
        assert project is not None
        return {"size": volumes.resize_volume(unit, project, volume, size).size_bytes}

    return resize


def _snapshot(number: int) -> Work:
    return lambda unit, volume: {"snapshot": volumes.take_snapshot(unit, volume, freeze=number % 2 == 0).id}


def _delete_snapshot(number: int) -> Work:
    def delete(unit: Unit, volume: Volume) -> Told:
        snapshots = unit.tx.snapshots.select(eq("volume_id", volume.id))
        if not snapshots:
            raise ConflictError("no-snapshot", "there is none")
        chosen = snapshots[number % len(snapshots)]
        volumes.delete_snapshot(unit, volume, chosen)
        return {"snapshot": chosen.id, "effect": chosen.state is not SnapshotState.DELETING}

    return delete


def _restore(number: int) -> Work:
    def restore(unit: Unit, volume: Volume) -> Told:
        snapshots = unit.tx.snapshots.select(eq("volume_id", volume.id))
        if not snapshots:
            raise ConflictError("no-snapshot", "there is none")
        return {"volume": volumes.restore_volume(unit, volume, snapshots[number % len(snapshots)]).id}

    return restore


def _delete(number: int) -> Work:
    def delete(unit: Unit, volume: Volume) -> Told:
        left = volumes.delete_volume(unit, volume)
        return {"volume": volume.id, "effect": left is not None and not volume.deleting}

    return delete


_WORK: Mapping[str, Callable[[int], Work]] = {
    "volume-resize": _resize,
    "snapshot": _snapshot,
    "snapshot-delete": _delete_snapshot,
    "restore": _restore,
    "volume-delete": _delete,
    **copies.WORK,
}
