"""Security groups: made, listed, changed, joined and left by apps, destroyed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, Project, contains
from shellwego.api.rest.routes.common import Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.securitygroups import (
    GroupCreate,
    GroupList,
    GroupPatch,
    GroupView,
    MemberBody,
    group_view,
)
from shellwego.control import securitygroups
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.targets import AppTarget, GroupTarget, ProjectTarget
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.securitygroups import SecurityGroup
from shellwego.core.tenancy import Project as ProjectRow
from shellwego.ports.store import Transaction, eq

router = resource_router("security-groups")
_SORTS: dict[str, type[str] | type[float]] = {"name": str, "created_at": float}


def _told(tx: Transaction, group: SecurityGroup, status: int = 200) -> Answer:
    known = securitygroups.landscape(tx, group.project_id)
    return body_answer(group_view(group, known), status, group.version)


@operation(router, "POST", "/security-groups", permission="network:write", answer=GroupView, status=201)
async def create_group(*, access: Granted, body: GroupCreate, project: Project = "") -> Response:
    """Make a group of ingress rules. It means something once an app is in it."""

    def work(unit: Unit, row: ProjectRow) -> Answer:
        group = securitygroups.create_group(unit, row, body.name, [each.wish() for each in body.allow])
        return _told(unit.tx, group, 201)

    return await write(access, ProjectTarget(project), work)


@operation(router, "GET", "/security-groups", permission="network:read", answer=GroupList)
async def list_groups(
    *,
    access: Granted,
    listing: Listing,
    project: Project = "",
    q: Annotated[str | None, Query(alias="filter[q]", max_length=128, description="Part of the name.")] = None,
) -> Response:
    """The security groups of a project."""
    request = listing.page(_SORTS, "name")

    def look(tx: Transaction, row: ProjectRow) -> Answer:
        found = page(tx.security_groups, request, eq("project_id", row.id), *contains("name", q))
        known = securitygroups.landscape(tx, row.id)
        views = [group_view(group, known) for group in found.items]
        return body_answer(GroupList(data=views, pagination=pagination(found)))

    return await read(access, ProjectTarget(project), look)


@operation(router, "GET", "/security-groups/{group}", permission="network:read", answer=GroupView)
async def get_group(*, access: Granted, group: Ref, project: Project = "") -> Response:
    """One group with its rules, the apps in it, and the groups that name it."""
    return await read(access, GroupTarget(group, project), _told)


@operation(router, "PATCH", "/security-groups/{group}", permission="network:write", answer=GroupView, refusals=(412,))
async def change_group(
    *, access: Granted, match: IfMatch, group: Ref, body: GroupPatch, project: Project = ""
) -> Response:
    """Change its rules for all VMs of the apps in it, those that run too, within seconds and without a deploy."""

    def work(unit: Unit, row: SecurityGroup) -> Answer:
        match.check(row.version)
        allow, deny = ([each.wish() for each in rules] for rules in (body.allow, body.deny))
        return _told(unit.tx, securitygroups.change_group(unit, row, allow, deny))

    return await write(access, GroupTarget(group, project), work)


@operation(
    router, "DELETE", "/security-groups/{group}", permission="network:write", answer=None, status=204, refusals=(412,)
)
async def delete_group(*, access: Granted, match: IfMatch, group: Ref, project: Project = "") -> Response:
    """Remove a group; refused while an app is in it, or a rule of another group names it."""

    def work(unit: Unit, row: SecurityGroup) -> Answer:
        match.check(row.version)
        securitygroups.destroy_group(unit, row)
        return Answer(204, "")

    return await write(access, GroupTarget(group, project), work)


@operation(router, "POST", "/security-groups/{group}/actions/attach", permission="network:write", answer=GroupView)
async def attach_group(*, access: Granted, group: Ref, body: MemberBody, project: Project = "") -> Response:
    """Have an app be in the group: its VMs take from others of the project what rules of its groups let in, and no more."""
    return await _moved(access, GroupTarget(group, project), body, securitygroups.attach_group)


@operation(router, "POST", "/security-groups/{group}/actions/detach", permission="network:write", answer=GroupView)
async def detach_group(*, access: Granted, group: Ref, body: MemberBody, project: Project = "") -> Response:
    """Take an app out of the group. One that is in none takes anything from its project."""
    return await _moved(access, GroupTarget(group, project), body, securitygroups.detach_group)


async def _moved(
    access: Granted,
    target: GroupTarget,
    body: MemberBody,
    move: Callable[[Unit, SecurityGroup, App], SecurityGroup],
) -> Response:
    def work(unit: Unit, row: SecurityGroup) -> Answer:
        app = access.require(unit.tx, AppTarget(body.app, row.project_id), "network:write")
        return _told(unit.tx, move(unit, row, app))

    return await write(access, target, work)
