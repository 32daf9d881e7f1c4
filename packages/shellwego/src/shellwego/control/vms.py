"""VMs as a client of the engine's services sees them: each instance, with what it takes to tell of it.

A VM here is an instance, by the instance's id: its attempts on the node come and go beneath it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from shellwego.control.scopes import Scope, project_scope
from shellwego.core.apps import App, Release
from shellwego.core.instances import Instance
from shellwego.core.tenancy import Project
from shellwego.ports.store import Op, Transaction, Where

_BATCH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownVm:
    instance: Instance
    app: App
    release: Release
    scope: Scope


@dataclass(slots=True)
class _Around:
    """What instances refer to, each read once."""

    tx: Transaction
    apps: dict[str, App | None] = field(default_factory=dict)
    releases: dict[str, Release | None] = field(default_factory=dict)
    projects: dict[str, Project | None] = field(default_factory=dict)

    def known(self, instance: Instance) -> KnownVm | None:
        """None where the app is just being forgotten."""
        if instance.app_id not in self.apps:
            self.apps[instance.app_id] = self.tx.apps.get(instance.app_id)
        if instance.release_id not in self.releases:
            self.releases[instance.release_id] = self.tx.releases.get(instance.release_id)
        app, release = self.apps[instance.app_id], self.releases[instance.release_id]
        if app is None or release is None:
            return None
        if app.project_id not in self.projects:
            self.projects[app.project_id] = self.tx.projects.get(app.project_id)
        project = self.projects[app.project_id]
        if project is None:
            return None
        return KnownVm(instance=instance, app=app, release=release, scope=project_scope(project))


def known_vm(tx: Transaction, instance: Instance) -> KnownVm | None:
    """One VM; None where what it belongs to is gone."""
    return _Around(tx).known(instance)


def known_vms(tx: Transaction, after: str = "") -> Iterator[KnownVm]:
    """All VMs of the platform in the order of their ids, those above `after`; read as far as they are taken."""
    around = _Around(tx)
    while True:
        batch = tx.instances.select(Where("id", Op.GT, after), limit=_BATCH)
        yield from (known for instance in batch if (known := around.known(instance)) is not None)
        if len(batch) < _BATCH:
            return
        after = batch[-1].id
