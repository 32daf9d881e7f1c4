"""Who holds a volume: one instance, from the transaction that places it until the one in which it has ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from shellwego.control.facts import releases_of, volumes_of
from shellwego.control.scopes import organization_of
from shellwego.control.unit import Unit
from shellwego.core.apps import AppConfig
from shellwego.core.instances import Instance, OwnerKind
from shellwego.core.progress import label
from shellwego.core.volumes import Volume, restated
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects


def obstacle(tx: Transaction, instance: Instance, config: AppConfig, claimed: Collection[str]) -> str:
    """Why an instance that waits for a node cannot have its volumes yet; empty: it can. `claimed` are those that others of
    the same look are to have."""
    mounts = config.mounts_of(instance.process) if instance.owner is OwnerKind.APP else ()
    for mount in mounts:
        volume = tx.volumes.get(mount.volume_id)
        if volume is None or volume.deleting:
            return f"the volume {mount.source} was deleted"
        if volume.lost:
            return f"the volume {volume.name} is lost: {volume.observed.reason}"
        if volume.closed or volume.restore_snapshot_id:
            done = "on its new node" if volume.closed else "restored"
            return f"waits until the volume {volume.name} is {done}"
        holder = tx.instances.get(volume.instance_id) if volume.instance_id else None
        if holder is not None and holder.live:
            return f"waits for the volume {volume.name}, which {label(holder)} ({holder.phase.value}) has"
        if volume.id in claimed:
            return f"waits for the volume {volume.name}, which another one is to have"
    return _apart(volumes_of(tx, instance, config))


def _apart(volumes: Sequence[Volume]) -> str:
    """Why nothing can have all of these; empty: something can. One may have become its standby copy, beside others."""
    living = [volume for volume in volumes if volume.node_id]
    other = next((volume for volume in living if volume.node_id != living[0].node_id), None)
    if other is None:
        return ""
    return f"the volumes {living[0].name} and {other.name} came to different nodes: detach one, and move it"


def hold(unit: Unit, instance: Instance) -> None:
    """Give an instance that was placed its volumes; those that live nowhere yet live on its node from now on."""
    release = releases_of(unit.tx, [instance.release_id])[instance.release_id]
    for volume in volumes_of(unit.tx, instance, release.config):
        if volume.node_id not in ("", instance.node_id):
            raise RuntimeError(
                f"{instance.id} was placed away from the volume {volume.id}, which is on {volume.node_id}"
            )
        held = restated(replace(volume, instance_id=instance.id, node_id=instance.node_id))
        tell(unit, unit.tx.volumes.update(held), "volume.attached", {"instance": instance.id, "node": held.node_id})


def let_go(unit: Unit, instance: Instance) -> None:
    """Take the volumes of an instance that has ended back from it."""
    for volume in unit.tx.volumes.select(eq("instance_id", instance.id)):
        free = unit.tx.volumes.update(restated(replace(volume, instance_id="")))
        tell(unit, free, "volume.detached", {"instance": instance.id, "node": free.node_id})
        if volume.moving:
            unit.hint(subjects.REPLICAS)
        unit.hint(subjects.app(instance.app_id))


def tell(
    unit: Unit,
    volume: Volume,
    type_: str,
    data: dict[str, str] | None = None,
    *,
    severity: str = "info",
) -> None:
    """Write an event about a volume, and have its node look."""
    unit.emit(
        type_,
        volume.id,
        organization_id=organization_of(unit.tx, volume.project_id),
        project_id=volume.project_id,
        severity=severity,
        data={"name": volume.name, **(data or {})},
    )
    if volume.node_id:
        unit.hint(subjects.assignments(volume.node_id))
