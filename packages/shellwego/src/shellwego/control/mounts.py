"""Mounts in a config: which volumes they mean when a release is made, and which apps need a volume.

A volume is exclusive: one process of one app mounts it. So an app takes a volume by its config, and lets go of it when
neither the config nor a release that runs, or may run again by itself, names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shellwego.control.config import refuse
from shellwego.control.references import live_releases
from shellwego.core.apps import App, AppConfig, Mount
from shellwego.core.errors import FieldError
from shellwego.core.volumes import Volume
from shellwego.ports.store import Transaction, eq

_RESOLUTION = "“swg volumes ls” lists the project's volumes; “swg volumes create NAME --size 1gb” makes one."


def volume_named(tx: Transaction, project_id: str, name: str) -> Volume | None:
    """The project's volume of this name."""
    return next(iter(tx.volumes.select(eq("project_id", project_id), eq("name", name), limit=1)), None)


def resolve_mounts(tx: Transaction, app: App, config: AppConfig) -> AppConfig:
    """The config with every mount resolved to a volume's id.

    Raises:
        InvalidError: there is no such volume, it is being deleted, another app has it, or volumes of one process live on
            different nodes.
    """
    faults: list[FieldError] = []
    homes: dict[str, Volume] = {}
    for number, mount in enumerate(config.mounts):
        at = f"mounts[{number}].source"
        volume = volume_named(tx, app.project_id, mount.source)
        fault = _fault(tx, app, at, mount, volume) or _apart(at, mount, volume, homes)
        faults += [fault] if fault else []
        if volume is not None and volume.node_id:
            homes[mount.process] = volume
    refuse("mount-refused", tuple(faults), resolution=_RESOLUTION)
    return named_volumes(tx, app, config) or config


def named_volumes(tx: Transaction, app: App, config: AppConfig) -> AppConfig | None:
    """The config with every mount resolved, whether the app may have the volumes or not; None where one is missing."""
    found = [(mount, volume_named(tx, app.project_id, mount.source)) for mount in config.mounts]
    mounts = tuple(replace(mount, volume_id=volume.id) for mount, volume in found if volume is not None)
    return replace(config, mounts=mounts) if len(mounts) == len(found) else None


def mounts_encrypted(tx: Transaction, app: App, config: AppConfig) -> bool:
    """Whether a volume that the config mounts is encrypted."""
    found = (volume_named(tx, app.project_id, mount.source) for mount in config.mounts)
    return any(volume is not None and volume.encrypted for volume in found)


def require_volumes(tx: Transaction, app: App, config: AppConfig) -> None:
    """Refuse to make a release again whose volumes it cannot have any more.

    Raises:
        InvalidError: one was deleted, another app has it now, or volumes of one process live on different nodes by now.
    """
    faults: list[FieldError] = []
    homes: dict[str, Volume] = {}
    for number, mount in enumerate(config.mounts):
        at, volume = f"mounts[{number}].source", tx.volumes.get(mount.volume_id)
        fault = _fault(tx, app, at, mount, volume) or _apart(at, mount, volume, homes)
        faults += [fault] if fault else []
        if volume is not None and volume.node_id:
            homes[mount.process] = volume
    refuse("mount-refused", tuple(faults), resolution="Go back to another release, or deploy with other volumes.")


def refuse_shared(config: AppConfig, counts: Mapping[str, int]) -> None:
    """Raise an error for more than one instance of a process that has a volume, which one instance only can have."""
    faults = tuple(
        FieldError(
            f"counts.{process.name}",
            "volume-is-exclusive",
            f"{counts[process.name]} of {process.name} cannot share the volume {mounts[0].source}",
        )
        for process in config.processes
        if counts.get(process.name, 1) > 1 and (mounts := config.mounts_of(process.name))
    )
    resolution = (
        "One instance has a volume: scale it to 1, or make a process for each volume (swg deploy, [processes])."
    )
    refuse("volume-is-exclusive", faults, resolution=resolution)


def users(tx: Transaction, volume: Volume) -> list[App]:
    """The apps that mount the volume: one, unless a release of another was left behind."""
    apps = tx.apps.select(eq("project_id", volume.project_id))
    return [app for app in apps if _uses(tx, app, volume)]


def _uses(tx: Transaction, app: App, volume: Volume) -> bool:
    wished = not app.deleting and any(mount.source == volume.name for mount in app.config.mounts)
    return wished or any(volume.id in _ids(release.config) for release in live_releases(tx, app))


def _ids(config: AppConfig) -> set[str]:
    return {mount.volume_id for mount in config.mounts}


def _fault(tx: Transaction, app: App, at: str, mount: Mount, volume: Volume | None) -> FieldError | None:
    name = mount.source[:63]
    if volume is None:
        return FieldError(at, "no-such-volume", f"the project has no volume “{name}”")
    if volume.deleting or volume.lost:
        return FieldError(
            at, "volume-gone", f"the volume {name} {'is being deleted' if volume.deleting else 'is lost'}"
        )
    others = [other.name for other in users(tx, volume) if other.id != app.id]
    if others:
        return FieldError(at, "volume-in-use", f"the volume {name} is mounted by the app {others[0]}")
    return None


def _apart(at: str, mount: Mount, volume: Volume | None, homes: Mapping[str, Volume]) -> FieldError | None:
    """A process cannot be on two nodes."""
    other = homes.get(mount.process)
    if volume is None or other is None or not volume.node_id or volume.node_id == other.node_id:
        return None
    message = f"the volumes {other.name} and {volume.name} live on different nodes, so no instance could have both"
    return FieldError(at, "volumes-apart", message)
