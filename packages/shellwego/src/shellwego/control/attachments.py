"""Attaching: an app's config gets a mount, or loses it, and is rolled out."""

from __future__ import annotations

from dataclasses import replace

from shellwego.control import apps, deployments
from shellwego.control.config import ConfigWish
from shellwego.control.deployments import Rollout
from shellwego.control.mounts import users
from shellwego.control.scopes import missing
from shellwego.control.unit import Unit
from shellwego.core.apps import App, Mount
from shellwego.core.deployments import Deployment
from shellwego.core.errors import ConflictError
from shellwego.core.volumes import Volume
from shellwego.ports.store import Transaction, eq

_USUAL = Rollout()


def attach(
    unit: Unit, volume: Volume, app: App, mount: Mount, rollout: Rollout = _USUAL, *, stage: bool = False
) -> Deployment | None:
    """Have a process of an app mount the volume from its next release on, which is rolled out unless `stage`; None where
    nothing is. Where the app mounts it already, it does so anew.

    Raises:
        NotFoundError: the app is of another project.
        ConflictError: another app mounts the volume, or it is being deleted, or lost; or the app is being destroyed.
        InvalidError: the path or the process is not possible, or there would be more than one instance of the process.
    """
    if app.project_id != volume.project_id:
        raise missing("app", app.id)
    others = [other.name for other in users(unit.tx, volume) if other.id != app.id]
    if others or volume.deleting or volume.lost:
        why = f"is mounted by the app {others[0]}" if others else f"is {volume.state.value}"
        how = "Detach it there first: swg volumes detach" if others else ""
        raise ConflictError("volume-in-use", f"the volume {volume.name} {why}", resolution=how)
    return _change(unit, app, (*_without(app, volume), replace(mount, source=volume.name)), rollout, stage=stage)


def detach(
    unit: Unit, volume: Volume, app: App, rollout: Rollout = _USUAL, *, stage: bool = False
) -> Deployment | None:
    """Have the app's next release go without the volume; rolled out unless `stage`. What is on it stays.

    Raises:
        ConflictError: the app is being destroyed.
        InvalidError: the rest of the config cannot be rolled out.
    """
    return _change(unit, app, _without(app, volume), rollout, stage=stage)


def mounting_app(tx: Transaction, volume: Volume) -> App:
    """The app whose config mounts the volume.

    Raises:
        ConflictError: there is none.
    """
    for app in tx.apps.select(eq("project_id", volume.project_id)):
        if any(mount.source == volume.name for mount in app.config.mounts):
            return app
    raise ConflictError("volume-not-attached", f"no app mounts the volume {volume.name}")


def _without(app: App, volume: Volume) -> tuple[Mount, ...]:
    return tuple(mount for mount in app.config.mounts if mount.source != volume.name)


def _change(unit: Unit, app: App, mounts: tuple[Mount, ...], rollout: Rollout, *, stage: bool) -> Deployment | None:
    deployments.refuse_deleting(app)
    wish = ConfigWish(mounts=mounts)
    if stage:
        apps.configure(unit, app, wish)
        return None
    return deployments.change(unit, app, wish, rollout)
