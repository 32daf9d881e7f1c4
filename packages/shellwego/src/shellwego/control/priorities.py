"""How much instances matter: what the release of their app asks for, as far as the app's organization may.

The limit is applied where an instance is made, and again when either number changes; so what placement reads is on the
instance's row, and no tenant makes room for itself by writing a number.
"""

from __future__ import annotations

from dataclasses import replace

from shellwego.control.instances import LIVE_PHASES
from shellwego.control.unit import Unit
from shellwego.core.apps import App, AppConfig
from shellwego.core.quota import priority_limit
from shellwego.core.tenancy import Organization
from shellwego.ports.store import Transaction, eq, within
from shellwego.wire import subjects


def allowed_priority(tx: Transaction, app: App, config: AppConfig) -> int:
    """What an instance with this config gets."""
    return min(config.placement.priority, _limit(tx, app))


def reprioritize(unit: Unit, app: App) -> None:
    """Give all of the app's instances, older ones too, what the release that it aims at asks for."""
    release = unit.tx.releases.get(app.release_id) if app.release_id else None
    if release is None:
        return
    priority = allowed_priority(unit.tx, app, release.config)
    for instance in unit.tx.instances.select(eq("app_id", app.id), within("phase", LIVE_PHASES)):
        if instance.priority != priority:
            unit.tx.instances.update(replace(instance, priority=priority))
            unit.hint(subjects.app(app.id))


def reprioritize_all(unit: Unit, organization: Organization) -> None:
    """As `reprioritize`, for every app of an organization whose limit is another now."""
    for project in unit.tx.projects.select(eq("organization_id", organization.id)):
        for app in unit.tx.apps.select(eq("project_id", project.id)):
            reprioritize(unit, app)


def _limit(tx: Transaction, app: App) -> int:
    project = tx.projects.get(app.project_id)
    return priority_limit(tx.quotas.get(project.organization_id) if project else None)
