"""Apps: made, listed, started, stopped, scaled, destroyed.

These use cases change what is wanted and hint; the rollout loop makes it so. Destroying is a wish too: the row stays,
`deleting`, until the loop has stopped the last instance, and only then the name and the hostname are free again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shellwego.control.announcements import announce
from shellwego.control.config import MAX_COUNT, ConfigWish, merge, processes_there, refuse, refuse_uncontainable
from shellwego.control.mounts import refuse_shared
from shellwego.control.quotas import charge_app, check_priority
from shellwego.control.unit import Unit
from shellwego.core import hostnames
from shellwego.core.apps import App, AppConfig
from shellwego.core.deployments import FINISHED, Deployment, DeploymentState
from shellwego.core.errors import ConflictError, FieldError
from shellwego.core.tenancy import Project
from shellwego.ports.store import Order, Transaction, eq
from shellwego.wire import subjects


@dataclass(frozen=True, slots=True, kw_only=True)
class AppWish:
    name: str
    config: ConfigWish = field(default_factory=ConfigWish)
    counts: Mapping[str, int] = field(default_factory=dict)


def create_app(unit: Unit, project: Project, wish: AppWish, domain: str) -> App:
    """Make an app; nothing of it runs before its first deployment.

    Raises:
        InvalidError: the name, the config or a count is not possible.
        ConflictError: the project has an app of this name.
        QuotaError: the project or its organization has as many apps as it may, or no app of it may have this priority.
    """
    hostnames.check_name(wish.name)
    if unit.tx.apps.select(eq("project_id", project.id), eq("name", wish.name), limit=1):
        fault = FieldError("name", "already-exists", "this name is in use in the project")
        raise ConflictError("app-exists", f"the project has an app “{wish.name}” already", errors=(fault,))
    check_priority(unit.tx, project.id, wish.config.placement.priority)
    config = merge(AppConfig(), wish.config)
    now = unit.now()
    app = App(
        id=unit.new_id("app"),
        project_id=project.id,
        name=wish.name,
        hostname=_free_hostname(unit.tx, project, wish.name, domain),
        config=config,
        counts=_checked_counts(config, wish.counts),
        created_at=now,
        updated_at=now,
    )
    charge_app(unit, None, app)
    unit.tx.apps.insert(app)
    announce(unit, app, "app.created")
    unit.hint(subjects.app(app.id))  # its hostname is routed from now on, to a page that says that it is stopped
    return app


def _free_hostname(tx: Transaction, project: Project, name: str, domain: str) -> str:
    for candidate in hostnames.candidates(name, project, domain):
        if not tx.apps.select(eq("hostname", candidate), limit=1):
            return candidate
    raise ConflictError("hostname-taken", f"every hostname for the app “{name}” is taken", resolution="Rename it.")


def configure(unit: Unit, app: App, wish: ConfigWish) -> App:
    """Change the current config without a release: the next deployment takes it along.

    Raises:
        InvalidError: the result makes no sense.
        QuotaError: it may not have this priority.
    """
    check_priority(unit.tx, app.project_id, wish.placement.priority)
    return save(unit, replace(app, config=merge(app.config, wish)))


def destroy_app(unit: Unit, app: App) -> App:
    """Say that the app is to go; asking again changes nothing."""
    if app.deleting:
        return app
    announce(unit, app, "app.deleting")
    return save(unit, replace(app, deleting=True))


def start_app(unit: Unit, app: App) -> App:
    """Run the wanted counts again."""
    return _set_stopped(unit, app, stopped=False)


def stop_app(unit: Unit, app: App) -> App:
    """Stop every instance; counts and release are kept for the next start."""
    return _set_stopped(unit, app, stopped=True)


def _set_stopped(unit: Unit, app: App, *, stopped: bool) -> App:
    if app.deleting:
        raise ConflictError("app-deleting", f"the app {app.name} is being destroyed")
    if app.stopped == stopped:
        return app
    announce(unit, app, "app.stopped" if stopped else "app.started")
    return save(unit, replace(app, stopped=stopped))


def scale_app(unit: Unit, app: App, counts: Mapping[str, int], sizes: ConfigWish | None = None) -> App:
    """Set how many of some processes should run. `sizes` are what they will have by another change, if any.

    Raises:
        InvalidError: the app has no such process, the count is out of range, or it rises beyond what the nodes could hold.
    """
    _checked_counts(app.config, counts)
    scaled = with_counts(unit.tx, app, merge(app.config, sizes or ConfigWish()), counts)
    data = {name: str(count) for name, count in counts.items()}
    announce(unit, app, "app.scaled", data)
    return save(unit, scaled)


def with_counts(tx: Transaction, app: App, config: AppConfig, counts: Mapping[str, int]) -> App:
    """The app with so many of some processes, as they are in `config`. Raises as `scale_app`; stores nothing."""
    wanted = {**app.counts, **_checked_counts(config, counts)}
    refuse_shared(config, wanted)
    rising = {name: count for name, count in counts.items() if count > app.counts.get(name, 1)}
    refuse_uncontainable(config, rising, tx.nodes.select())
    return replace(app, counts=wanted) if wanted != app.counts else app


def _checked_counts(config: AppConfig, counts: Mapping[str, int]) -> dict[str, int]:
    names = {process.name for process in config.processes}
    faults = []
    for name, count in counts.items():
        if name not in names:
            faults.append(FieldError(f"counts.{name[:40]}", "no-such-process", f"there is no process “{name[:40]}”"))
        elif not 0 <= count <= MAX_COUNT:
            faults.append(FieldError(f"counts.{name}", "out-of-range", f"between 0 and {MAX_COUNT}"))
    refuse("counts-refused", tuple(faults), resolution="" if counts.keys() <= names else processes_there(config))
    return dict(counts)


def save(unit: Unit, app: App) -> App:
    """Store the app, and have it planned again.

    Raises:
        QuotaError: more is wanted of it than before, and than may be.
    """
    charge_app(unit, unit.tx.apps.get(app.id), app)
    unit.hint(subjects.app(app.id))
    return unit.tx.apps.update(replace(app, updated_at=unit.now()))


def current_deployment(tx: Transaction, app: App) -> Deployment | None:
    """The deployment that was asked for last."""
    newest = Order("created_at", descending=True)
    return next(iter(tx.deployments.select(eq("app_id", app.id), order=newest, limit=1)), None)


def deploying(deployment: Deployment | None) -> bool:
    """Whether this deployment is still under way."""
    return deployment is not None and deployment.state not in FINISHED


def failed(deployment: Deployment | None) -> bool:
    """Whether this deployment ended without its release."""
    return deployment is not None and deployment.state is DeploymentState.FAILED
