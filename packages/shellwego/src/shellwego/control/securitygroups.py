"""Security groups of a project: made, changed, joined and left by apps, destroyed.

What a change means for each app of the project is worked out before and after it; the nodes that have something of an app
for which that differs are hinted. It travels with the assignments, without a release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from shellwego.control.config import refuse
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.scopes import missing, project_of
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.errors import ConflictError, FieldError, InvalidError, QuotaError
from shellwego.core.openings import Ingress
from shellwego.core.securitygroups import (
    MAX_GROUPS,
    MAX_GROUPS_OF_APP,
    MAX_OPENINGS,
    NAME,
    Known,
    RuleWish,
    SecurityGroup,
    SourceKind,
    changed,
    openings_of,
    parse_rules,
    without_app,
)
from shellwego.core.tenancy import Project
from shellwego.ports.store import Transaction, eq, within
from shellwego.wire import subjects

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Landscape:
    """A project's groups and apps, by id."""

    groups: Mapping[str, SecurityGroup]
    apps: Mapping[str, App]

    def ingress(self, app: App) -> Ingress:
        """What may be opened to the app's VMs."""
        return openings_of(app, self.groups, self.apps.values())

    def members(self, group: SecurityGroup) -> list[App]:
        """The apps in a group, by name."""
        return sorted((app for app in self.apps.values() if group.id in app.groups), key=lambda app: app.name)

    def naming(self, group: SecurityGroup) -> list[SecurityGroup]:
        """The groups with a rule that names this one, by name; perhaps itself."""
        named = SourceKind.GROUP, group.id
        found = (other for other in self.groups.values() if named in {(r.source, r.source_id) for r in other.rules})
        return sorted(found, key=lambda other: other.name)

    @property
    def known(self) -> Known:
        """What rules may name."""
        return Known(
            groups={group.name: group.id for group in self.groups.values()},
            apps={app.name: app.id for app in self.apps.values()},
        )


def landscape(tx: Transaction, project_id: str) -> Landscape:
    """A project's groups and apps as they are now."""
    groups = tx.security_groups.select(eq("project_id", project_id))
    apps = tx.apps.select(eq("project_id", project_id))
    return Landscape({group.id: group for group in groups}, {app.id: app for app in apps})


def create_group(unit: Unit, project: Project, name: str, allow: Sequence[RuleWish]) -> SecurityGroup:
    """Make a group, with rules where they are given; no app is in it.

    Raises:
        InvalidError: name or rules are not possible.
        ConflictError: the project has a group of this name.
        QuotaError: the project has as many as it may.
    """
    if not NAME.fullmatch(name):
        text = "a-z, 0-9, - and _, beginning with a letter, at most 63"
        refuse("group-refused", (FieldError("name", "bad-name", text),))
    known = landscape(unit.tx, project.id)
    if name in known.known.groups:
        fault = FieldError("name", "already-exists", "this name is in use in the project")
        raise ConflictError("group-exists", f"the project has a group {name} already", errors=(fault,))
    if len(known.groups) >= MAX_GROUPS:
        raise QuotaError("too-many-groups", f"a project has at most {MAX_GROUPS} security groups")
    now = unit.now()
    empty = SecurityGroup(
        id=unit.new_id("sgr"),
        project_id=project.id,
        name=name,
        created_at=now,
        updated_at=now,
        created_by=unit.caller.actor,
    )
    group = changed(empty, allow=parse_rules("allow", allow, known.known))
    _tell(unit, group, "group.created")
    return unit.tx.security_groups.insert(group)


def change_group(
    unit: Unit, group: SecurityGroup, allow: Sequence[RuleWish], deny: Sequence[RuleWish]
) -> SecurityGroup:
    """Change the rules of a group, for all VMs of the apps in it, those that run too.

    Raises:
        InvalidError: a rule is not possible, one that is to go is not there, or some app would have too many openings.
    """

    def work(known: Landscape) -> SecurityGroup:
        wanted = changed(
            group, allow=parse_rules("allow", allow, known.known), deny=parse_rules("deny", deny, known.known)
        )
        if wanted == group:
            return group
        _tell(unit, wanted, "group.changed")
        return unit.tx.security_groups.update(replace(wanted, updated_at=unit.now()))

    return _apply(unit, group.project_id, "allow", work)


def attach_group(unit: Unit, group: SecurityGroup, app: App) -> SecurityGroup:
    """Have an app be in a group; one that is, stays.

    Raises:
        NotFoundError: the app is of another project.
        ConflictError: it is being destroyed.
        InvalidError: it is in as many groups as it may, or some app would have too many openings.
    """
    _refuse_other_project(group, app)
    if app.deleting:
        raise ConflictError("app-deleting", f"the app {app.name} is being destroyed")
    if group.id in app.groups:
        return group
    if len(app.groups) >= MAX_GROUPS_OF_APP:
        text = f"an app is in {MAX_GROUPS_OF_APP} groups at most"
        refuse("group-refused", (FieldError("app", "too-many", text),))
    return _move(unit, group, app, (*app.groups, group.id), "group.attached")


def detach_group(unit: Unit, group: SecurityGroup, app: App) -> SecurityGroup:
    """Take an app out of a group; one that is not in it stays out. In none, it takes anything from its project again.

    Raises:
        NotFoundError: the app is of another project.
    """
    _refuse_other_project(group, app)
    if group.id not in app.groups:
        return group
    return _move(unit, group, app, tuple(each for each in app.groups if each != group.id), "group.detached")


def destroy_group(unit: Unit, group: SecurityGroup) -> None:
    """Remove a group.

    Raises:
        ConflictError: an app is in it, or a rule of another group names it.
    """
    known = landscape(unit.tx, group.project_id)
    apps = [app.name for app in known.members(group)]
    if apps:
        raise ConflictError(
            "group-attached",
            f"in the group {group.name} are apps: {', '.join(apps)}",
            resolution=f"Take them out first: swg groups detach {group.name} {apps[0]}",
        )
    naming = [other.name for other in known.naming(group) if other.id != group.id]
    if naming:
        raise ConflictError(
            "group-named",
            f"rules of groups name the group {group.name} as their source: {', '.join(naming)}",
            resolution=f"Remove those rules first: swg groups deny {naming[0]} group:{group.name}",
        )
    unit.tx.security_groups.delete(group.id)
    _tell(unit, group, "group.deleted")


def forget_groups(unit: Unit, project_id: str) -> None:
    """Remove the groups of a project that goes, which has no apps any more."""
    for group in unit.tx.security_groups.select(eq("project_id", project_id)):
        unit.tx.security_groups.delete(group.id)
        _tell(unit, group, "group.deleted")


def forget_app(unit: Unit, app: App) -> None:
    """Take the rules away that name an app that is gone."""
    for group in unit.tx.security_groups.select(eq("project_id", app.project_id)):
        left = without_app(group, app.id)
        if left != group:
            _tell(unit, left, "group.changed")
            unit.tx.security_groups.update(replace(left, updated_at=unit.now()))


def _move(unit: Unit, group: SecurityGroup, app: App, groups: tuple[str, ...], type_: str) -> SecurityGroup:
    def work(known: Landscape) -> None:
        unit.tx.apps.update(replace(app, groups=groups, updated_at=unit.now()))

    _apply(unit, group.project_id, "app", work)
    _tell(unit, group, type_, {"app": app.id, "app_name": app.name})
    return group


def _apply(unit: Unit, project_id: str, field: str, work: Callable[[Landscape], T]) -> T:
    """Do some work on groups; where it gives an app more openings than nodes take, refuse it, naming `field`."""
    before = landscape(unit.tx, project_id)
    done = work(before)
    after = landscape(unit.tx, project_id)
    now = {app.id: after.ingress(app) for app in after.apps.values()}
    others = [app for app in before.apps.values() if app.id in now and before.ingress(app) != now[app.id]]
    for app in others:
        if len(now[app.id] or ()) > MAX_OPENINGS:
            text = f"the app {app.name} would take from more than {MAX_OPENINGS} sources and ranges; name fewer, or project"
            raise InvalidError("group-refused", f"{field}: {text}", errors=(FieldError(field, "too-many", text),))
    _hint(unit, [app.id for app in others])
    return done


def _hint(unit: Unit, app_ids: Sequence[str]) -> None:
    live = unit.tx.instances.select(within("app_id", tuple(app_ids)), within("phase", LIVE_PHASES)) if app_ids else ()
    for node_id in sorted({instance.node_id for instance in live} - {""}):
        unit.hint(subjects.assignments(node_id))


def _refuse_other_project(group: SecurityGroup, app: App) -> None:
    if app.project_id != group.project_id:
        raise missing("app", app.id)


def _tell(unit: Unit, group: SecurityGroup, type_: str, data: Mapping[str, str] | None = None) -> None:
    project = project_of(unit.tx, group.project_id)
    unit.emit(
        type_,
        group.id,
        organization_id=project.organization_id,
        project_id=project.id,
        data={"name": group.name, "rules": str(len(group.rules)), **(data or {})},
    )
