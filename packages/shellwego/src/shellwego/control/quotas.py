"""Quotas: counted in the transaction of the change that they bound, and refused there.

Counting is right because nothing else commits between the count and the change: SQLite has one writer, PostgreSQL runs use
cases at SERIALIZABLE and has the later of two that counted each other's rows begin again. There is no stored sum that could
differ from what it sums; what has no limit is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from shellwego.control.config import refuse
from shellwego.control.facts import UNFINISHED, live_by_app, releases_of
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.priorities import reprioritize_all
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.backups import BackupState
from shellwego.core.errors import FieldError, NotFoundError, QuotaError
from shellwego.core.images import ImageState
from shellwego.core.instances import Instance, OwnerKind
from shellwego.core.placement_rules import DEFAULT_PRIORITY
from shellwego.core.plans import PLANS
from shellwego.core.quota import (
    COUNTED,
    OF_ORGANIZATIONS,
    OF_PROJECTS,
    PRIORITY,
    Amounts,
    Excess,
    Limits,
    Quota,
    Standing,
    app_takes,
    binding,
    excess,
    growth,
    instances_take,
    most_of,
    organization_limits,
    priority_limit,
    project_limits,
    settled,
)
from shellwego.core.tenancy import Organization, Project, Token
from shellwego.ports.store import Transaction, eq, within

T = TypeVar("T")
_AT_ONCE = 500
"""Ids in one question to the store."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What is counted together: an organization, or one of its projects."""

    kind: str
    name: str
    limits: Limits
    organization_id: str
    project_ids: tuple[str, ...]


def of_organization(tx: Transaction, organization: Organization) -> Holding:
    projects = tx.projects.select(eq("organization_id", organization.id))
    return Holding(
        "organization",
        organization.name,
        organization_limits(organization.plan, tx.quotas.get(organization.id)),
        organization.id,
        tuple(project.id for project in projects),
    )


def of_project(tx: Transaction, project: Project) -> Holding:
    return Holding(
        "project", project.name, project_limits(tx.quotas.get(project.id)), project.organization_id, (project.id,)
    )


def charge(unit: Unit, project: Project, more: Amounts) -> None:
    """Refuse what would be more than the project or its organization may have; call it before the change is stored.

    Raises:
        QuotaError: `quota-exceeded`, with what is exceeded as its field.
    """
    charge_project(unit, project, more)
    charge_organization(unit, _organization(unit.tx, project.organization_id), more)


def charge_project(unit: Unit, project: Project, more: Amounts) -> None:
    """As `charge`, by the project's own limits alone: for what its organization has already."""
    _refuse_excess(unit.tx, of_project(unit.tx, project), more)


def charge_organization(unit: Unit, organization: Organization, more: Amounts) -> None:
    """As `charge`, for what lies in no project."""
    if binding(organization_limits(organization.plan, unit.tx.quotas.get(organization.id)), more):
        _refuse_excess(unit.tx, of_organization(unit.tx, organization), more)


def charge_app(unit: Unit, before: App | None, after: App) -> None:
    """Refuse a change of an app by which more is wanted than may be; call it before a deployment of it is stored, which is
    measured by the config that it brings."""
    standing = standings(unit.tx, [before] if before else []).get(after.id, Standing())
    more = growth(app_takes(before, standing) if before else {}, app_takes(after, standing))
    if before is None:
        more["apps"] = 1
    project = unit.tx.projects.get(after.project_id) if more else None
    if project is not None:
        charge(unit, project, more)


def check_priority(tx: Transaction, project_id: str, asked: int | None) -> None:
    """Refuse a priority that the project's organization may not have. Instances have no higher one in any case
    (`control.priorities`), so a rollback to what was allowed once is none of this; and what is the default is not refused
    where the limit is below.

    Raises:
        QuotaError: `quota-exceeded`.
    """
    project = tx.projects.get(project_id)
    if asked is None or project is None:
        return
    limit = priority_limit(tx.quotas.get(project.organization_id))
    if asked > max(limit, DEFAULT_PRIORITY):
        message = f"apps of this organization may have a priority of {limit} at most"
        fault = FieldError("placement.priority", "quota-exceeded", message, limit=limit, used=asked)
        raise QuotaError(
            "quota-exceeded",
            f"placement.priority: {message}",
            resolution="Ask for less, or have the platform's operator allow more.",
            errors=(fault,),
        )


def charge_run(unit: Unit, app: App, run: Instance) -> None:
    """Refuse a one-off command that would be more than may be."""
    project = unit.tx.projects.get(app.project_id)
    if project is not None:
        charge(unit, project, instances_take([run]))


def _organization(tx: Transaction, id_: str) -> Organization:
    organization = tx.organizations.get(id_)
    if organization is None:
        raise NotFoundError("organization-not-found", "the project's organization is gone")
    return organization


def _refuse_excess(tx: Transaction, holding: Holding, more: Amounts) -> None:
    counted = binding(holding.limits, more)
    found = excess(holding.limits, used(tx, holding, counted), more) if counted else None
    if found is not None:
        raise _exceeded(holding, found)


def _exceeded(holding: Holding, found: Excess) -> QuotaError:
    unit = f" {COUNTED[found.name]}" if COUNTED[found.name] else ""
    has = f"has {found.used}, and is to have {found.more} more"
    message = f"the {holding.kind} {holding.name} may have {found.limit}{unit}, {has}"
    fault = FieldError(found.name, "quota-exceeded", message, limit=found.limit, used=found.used)
    resolution = "Free some, or ask the platform's operator for more."
    if holding.kind == "project":
        resolution = "Free some, or have an owner of the organization raise the project's limits."
    return QuotaError("quota-exceeded", f"{found.name}: {message}", resolution=resolution, errors=(fault,))


def used(tx: Transaction, holding: Holding, names: Iterable[str] = tuple(COUNTED)) -> Counter[str]:
    """How much of these is there now."""
    wanted = set(names)
    counted: Counter[str] = Counter()
    if "projects" in wanted:
        counted["projects"] = len(holding.project_ids)
    if "tokens" in wanted:
        counted["tokens"] = sum(1 for _ in _valid_tokens(tx, holding.organization_id))
    if wanted & {"instances", "memory", "cpu"}:
        apps = list(_all(tx.apps.select, "project_id", holding.project_ids))
        counted["apps"] = len(apps)
        counted.update(_running(tx, apps))
        if PRIORITY in wanted:
            counted[PRIORITY] = max((app.config.placement.priority for app in apps), default=0)
    elif "apps" in wanted:
        counted["apps"] = sum(tx.apps.count(within("project_id", some)) for some in _some(holding.project_ids))
    if wanted & {"volumes", "storage"}:
        counted.update(_stored(tx, holding.project_ids))
    if "images" in wanted:
        images = _all(tx.images.select, "project_id", holding.project_ids)
        sizes = {image.digest: image.size_bytes for image in images if image.state is not ImageState.FAILED}
        counted["images"] = sum(sizes.values())
    if "backups" in wanted:
        there = within("state", [state.value for state in BackupState if state is not BackupState.FAILED])
        some = (within("project_id", some) for some in _some(holding.project_ids))
        counted["backups"] = sum(tx.backups.count(projects, there) for projects in some)
    if "ports" in wanted:
        found = (tx.published_ports.count(within("project_id", some)) for some in _some(holding.project_ids))
        counted["ports"] = sum(found)
    return counted


def standings(tx: Transaction, apps: Iterable[App]) -> dict[str, Standing]:
    """By app: what may run of those that were ever deployed. Their instances are read only where something of another
    release may serve."""
    deployed = {app.id: app for app in apps if app.last_release_number}
    named = {id_: {app.release_id, app.stable_release_id} for id_, app in deployed.items()}
    for some in _some(list(deployed)):
        for deployment in tx.deployments.select(within("app_id", some), within("state", UNFINISHED)):
            named[deployment.app_id].add(deployment.release_id)
    found = releases_of(tx, set().union(*named.values()))
    releases = {id_: tuple(found[each] for each in sorted(ids) if each in found) for id_, ids in named.items()}
    living = live_by_app(tx, [id_ for id_, app in deployed.items() if not settled(app, releases[id_])])
    return {id_: Standing(releases[id_], living.get(id_, ())) for id_ in deployed}


def _running(tx: Transaction, apps: Sequence[App]) -> Counter[str]:
    """Instances, memory and CPU. All names are there, also where nothing runs."""
    taken: Counter[str] = Counter(instances=0, memory=0, cpu=0)
    known = standings(tx, apps)
    for app in apps:
        taken.update(app_takes(app, known.get(app.id, Standing())))
    for some in _some([app.id for app in apps if app.last_release_number]):
        live = within("phase", LIVE_PHASES)
        taken.update(instances_take(tx.instances.select(within("app_id", some), eq("owner", OwnerKind.RUN), live)))
    return taken


def _stored(tx: Transaction, project_ids: Sequence[str]) -> Counter[str]:
    """Volumes, and their sizes together, with what their snapshots take. Both names are there, also where there are none."""
    counted: Counter[str] = Counter(volumes=0, storage=0)
    for some in _some(project_ids):
        for number, size in tx.volumes.sums("project_id", ("size_bytes",), within("project_id", some)).values():
            counted.update(volumes=number, storage=size)
        for _, taken in tx.snapshots.sums("project_id", ("used_bytes",), within("project_id", some)).values():
            counted.update(storage=taken)
    return counted


def _valid_tokens(tx: Transaction, organization_id: str) -> Iterator[Token]:
    accounts = [account.id for account in tx.service_accounts.select(eq("organization_id", organization_id))]
    for token in _all(tx.tokens.select, "principal_id", accounts):
        if token.holds(tx.now()):
            yield token


def _all(select: Callable[..., list[T]], field: str, values: Sequence[str]) -> Iterator[T]:
    for some in _some(values):
        yield from select(within(field, some))


def _some(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def set_organization_quota(unit: Unit, organization: Organization, plan: str | None, limits: Limits) -> Organization:
    """Have an organization be on a plan, and have limits of its own beside it; `limits` replaces all that was set before.

    Raises:
        InvalidError: a plan or a limit that there is not.
    """
    if plan is not None and plan not in PLANS:
        refuse("no-such-plan", (FieldError("plan", "unknown", f"one of {', '.join(PLANS)}"),))
    before = priority_limit(unit.tx.quotas.get(organization.id))
    _set(unit, organization.id, limits, OF_ORGANIZATIONS)
    changed = unit.tx.organizations.update(replace(organization, plan=plan or organization.plan))
    if priority_limit(unit.tx.quotas.get(organization.id)) != before:
        reprioritize_all(unit, organization)
    data = {"plan": changed.plan, **_told(limits)}
    unit.emit("organization.quota.changed", organization.id, organization_id=organization.id, data=data)
    return changed


def set_project_quota(unit: Unit, project: Project, limits: Limits) -> None:
    """Have a project be bounded within its organization; `limits` replaces all that was set before. Raises as above."""
    _set(unit, project.id, limits, OF_PROJECTS)
    unit.emit(
        "project.quota.changed",
        project.id,
        organization_id=project.organization_id,
        project_id=project.id,
        data=_told(limits),
    )


def forget_quota(unit: Unit, scope_id: str) -> None:
    """Remove what was set for a scope that goes."""
    if unit.tx.quotas.get(scope_id) is not None:
        unit.tx.quotas.delete(scope_id)


def _set(unit: Unit, scope_id: str, limits: Limits, names: Sequence[str]) -> None:
    faults = [
        FieldError(f"limits.{name[:40]}", "unknown", f"what has limits is {', '.join(names)}")
        for name in limits
        if name not in names
    ]
    faults += [
        FieldError(f"limits.{name}", "out-of-range", f"between 0 and {most_of(name)}, or null for none")
        for name, limit in limits.items()
        if name in names and limit is not None and not 0 <= limit <= most_of(name)
    ]
    refuse("limits-refused", tuple(faults))
    forget_quota(unit, scope_id)
    if limits:
        unit.tx.quotas.insert(Quota(id=scope_id, limits=dict(limits), created_at=unit.now()))


def _told(limits: Limits) -> Mapping[str, str]:
    return {name: "none" if limit is None else str(limit) for name, limit in limits.items()}
