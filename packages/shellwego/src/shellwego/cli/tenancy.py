"""`swg orgs`, `projects`, `members`: whose things they are, and who works on them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import USAGE, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, cores, show, show_one, show_removed, size
from shellwego.cli.presence import look_first
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import MemberView, OrganizationView, ProjectView, QuotasView

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(cls=NounGroup, context_settings=_HELP)
def orgs() -> None:
    """List, create, show, rename and delete organizations; show and set what they may have."""


@click.group(cls=NounGroup, context_settings=_HELP)
def projects() -> None:
    """List, create, show, rename and delete projects; show and set what they may have."""


@click.group(cls=NounGroup, context_settings=_HELP)
def members() -> None:
    """List the members of an organization, change their roles, remove them."""


def the_organization(session: Session, name: str | None = None) -> str:
    """The organization that a command is about: the named one, else the only one that the token sees."""
    chosen = name or session.organization
    if chosen:
        return chosen
    found = session.client.list_organizations(limit=2).data
    if len(found) != 1:
        seen = "several" if found else "no"
        raise Failure(f"the token sees {seen} organizations", code=USAGE, resolution="Say which: -o ORG")
    return found[0].id


def _organization_row(organization: OrganizationView) -> dict[str, object]:
    return {
        "name": organization.name,
        "plan": organization.plan,
        "id": organization.id,
        "age": age(organization.created_at),
    }


def _show_organization(session: Session, organization: OrganizationView) -> None:
    import msgspec  # noqa: PLC0415

    show_one(session, msgspec.to_builtins(organization), _organization_row(organization), name=organization.name)


@orgs.command("ls")
@shared
@about_no_app
def list_organizations(session: Session) -> None:
    """List the organizations that you can see."""
    import msgspec  # noqa: PLC0415

    found = every(lambda cursor: session.client.list_organizations(limit=MOST, cursor=cursor))
    show(session, msgspec.to_builtins(found), [_organization_row(each) for each in found])


@orgs.command("create")
@click.argument("name")
@shared
@about_no_app
def create_organization(session: Session, name: str) -> None:
    """Make an organization, which you then own, with a first project."""
    from shellwego.client.generated import OrganizationCreate  # noqa: PLC0415

    _show_organization(session, session.client.create_organization(OrganizationCreate(name=name)))


@orgs.command("show")
@click.argument("name", required=False)
@shared
@about_no_app
def show_organization(session: Session, name: str | None) -> None:
    """Show one organization."""
    _show_organization(session, session.client.get_organization(the_organization(session, name)))


@orgs.command("rename")
@click.argument("name")
@click.argument("new_name")
@shared
@about_no_app
def rename_organization(session: Session, name: str, new_name: str) -> None:
    """Give an organization another name."""
    from shellwego.client.generated import OrganizationPatch  # noqa: PLC0415

    _show_organization(session, session.client.rename_organization(name, OrganizationPatch(name=new_name)))


@orgs.command("delete")
@click.argument("name")
@shared
@about_no_app
def delete_organization(session: Session, name: str) -> None:
    """Delete an organization that has no projects."""
    look_first(session, (name,), session.client.get_organization)
    session.confirm(f"Delete the organization {name} with its service accounts, roles and members' rights?")
    session.client.delete_organization(name)
    session.say(f"{name} is gone")
    show_removed(session, name)


_SET = click.option(
    "--set",
    "limits",
    multiple=True,
    metavar="NAME=LIMIT",
    help="A limit, such as apps=10, memory=8gb, cpu=4000m; none lifts it.",
)


@orgs.command("quotas")
@click.argument("name", required=False)
@click.option("--plan", metavar="PLAN", help="Put it on a plan: free, starter, growth, enterprise, unlimited.")
@_SET
@click.option("--reset", is_flag=True, help="Have all limits be as the plan says.")
@shared
@about_no_app
def organization_quotas(
    session: Session, name: str | None, plan: str | None, limits: tuple[str, ...], reset: bool
) -> None:
    """Show what an organization may have and has; set it, if you run the platform."""
    from shellwego.client.generated import OrganizationQuotasPut  # noqa: PLC0415

    organization = the_organization(session, name)
    known = session.client.get_organization_quotas(organization)
    if plan or limits or reset:
        wanted = _limits(known, limits, reset=reset)
        body = OrganizationQuotasPut(limits=wanted, plan=plan)
        known = session.client.set_organization_quotas(organization, body)
    _show_quotas(session, known)


@orgs.command("usage")
@click.argument("name", required=False)
@shared
@about_no_app
def organization_usage(session: Session, name: str | None) -> None:
    """Show what an organization has now, by project."""
    import msgspec  # noqa: PLC0415

    found = session.client.get_organization_usage(the_organization(session, name))
    rows = [{"project": project.name, **_amounts(project.used)} for project in found.projects]
    show(session, msgspec.to_builtins(found), [*rows, {"project": "all", **_amounts(found.used)}], name="project")


_SCALES = {
    "memory": {"": 1, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40},
    "cpu": {"": 1000, "m": 1},
    "storage": {"": 1, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40},
    "images": {"": 1, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40},
}
"""What a unit behind a limit stands for: bytes, and thousandths of a core."""


_SHOWN = ("apps", "instances", "memory", "cpu", "volumes", "storage", "images")
"""A server that is one version behind tells some of them only."""


def _amounts(used: dict[str, int]) -> dict[str, object]:
    return {name: _amount(name, used[name]) for name in _SHOWN if name in used}


def _amount(name: str, value: int | None) -> object:
    if value is None:
        return "no limit"
    return size(value) if name in ("memory", "storage", "images") else cores(value) if name == "cpu" else value


def _show_quotas(session: Session, found: QuotasView) -> None:
    import msgspec  # noqa: PLC0415

    rows = [
        {
            "name": each.name,
            "used": _amount(each.name, each.used),
            "limit": _amount(each.name, each.limit),
            "from": "set" if each.name in found.set else f"plan {found.plan}" if each.limit is not None else None,
        }
        for each in found.data
    ]
    show(session, msgspec.to_builtins(found), rows)


def _limits(known: QuotasView, given: tuple[str, ...], *, reset: bool) -> dict[str, int | None]:
    """What was set before, and what is to be set now."""
    limits = {} if reset else {each.name: each.limit for each in known.data if each.name in known.set}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise Failure(f"--set {text}: is not NAME=LIMIT", code=USAGE)
        limits[name] = None if value == "none" else _number(name, value)
    return limits


def _number(name: str, text: str) -> int:
    scales = _SCALES.get(name, {"": 1})
    digits = text.rstrip("".join(scales))
    unit = text[len(digits) :]
    if not (re.fullmatch("[0-9]{1,18}", digits) and unit in scales):
        units = " or ".join(filter(None, scales))
        remedy = f"A whole number, or with {units}." if units else "A whole number, or none."
        raise Failure(f"--set {name}={text}: is no limit", code=USAGE, resolution=remedy)
    return int(digits) * scales[unit]


def _project_row(project: ProjectView) -> dict[str, object]:
    return {
        "name": project.name,
        "organization": project.organization_id,
        "id": project.id,
        "age": age(project.created_at),
    }


def _show_project(session: Session, project: ProjectView) -> None:
    import msgspec  # noqa: PLC0415

    show_one(session, msgspec.to_builtins(project), _project_row(project), name=project.name)


def the_project(session: Session, name: str | None) -> str:
    """The project that a command is about: the named one, else that of the session, else the only one."""
    chosen = session.project_named(name) if name else session.project
    if chosen:
        return chosen
    found = session.client.list_projects(limit=2).data
    if len(found) != 1:
        seen = "several" if found else "no"
        raise Failure(f"the token sees {seen} projects", code=USAGE, resolution="Say which: -p PROJECT")
    return found[0].id


@projects.command("ls")
@shared
@about_no_app
def list_projects(session: Session) -> None:
    """List the projects that you can see, or (with -o) those of an organization."""
    import msgspec  # noqa: PLC0415

    owner = session.organization
    found = every(lambda cursor: session.client.list_projects(limit=MOST, cursor=cursor, organization=owner))
    show(session, msgspec.to_builtins(found), [_project_row(each) for each in found])


@projects.command("create")
@click.argument("name")
@shared
@about_no_app
def create_project(session: Session, name: str) -> None:
    """Make a project in an organization (-o, or the only one)."""
    from shellwego.client.generated import ProjectCreate  # noqa: PLC0415

    body = ProjectCreate(name=name, organization=session.organization or "")
    _show_project(session, session.client.create_project(body))


@projects.command("show")
@click.argument("name", required=False)
@shared
@about_no_app
def show_project(session: Session, name: str | None) -> None:
    """Show one project."""
    _show_project(session, session.client.get_project(the_project(session, name)))


@projects.command("rename")
@click.argument("name")
@click.argument("new_name")
@shared
@about_no_app
def rename_project(session: Session, name: str, new_name: str) -> None:
    """Give a project another name; hostnames of its apps stay."""
    from shellwego.client.generated import ProjectPatch  # noqa: PLC0415

    renamed = session.client.rename_project(the_project(session, name), ProjectPatch(name=new_name))
    _show_project(session, renamed)


@projects.command("delete")
@click.argument("name")
@shared
@about_no_app
def delete_project(session: Session, name: str) -> None:
    """Delete a project that has no apps, with its images."""
    project = the_project(session, name)
    look_first(session, (project,), session.client.get_project)
    session.confirm(f"Delete the project {name} and its images?")
    session.client.delete_project(project)
    session.say(f"{name} is gone")
    show_removed(session, name)


@projects.command("quotas")
@click.argument("name", required=False)
@_SET
@click.option("--reset", is_flag=True, help="Have no limits but the organization's.")
@shared
@about_no_app
def project_quotas(session: Session, name: str | None, limits: tuple[str, ...], reset: bool) -> None:
    """Show or set what a project may have within its organization."""
    from shellwego.client.generated import QuotasPut  # noqa: PLC0415

    project = the_project(session, name)
    known = session.client.get_project_quotas(project)
    if limits or reset:
        wanted = _limits(known, limits, reset=reset)
        known = session.client.set_project_quotas(project, QuotasPut(limits=wanted))
    _show_quotas(session, known)


_NO_MEMBERS = "nobody has a role on the organization itself yet: swg invitations create EMAIL"


def _member_row(member: MemberView) -> dict[str, object]:
    return {
        "email": member.email,
        "role": member.role,
        "id": member.user_id,
        "since": age(member.since),
    }


@members.command("ls")
@shared
@about_no_app
def list_members(session: Session) -> None:
    """List who has a role on the organization itself."""
    import msgspec  # noqa: PLC0415

    organization = the_organization(session)
    found = every(lambda cursor: session.client.list_members(organization, limit=MOST, cursor=cursor))
    show(session, msgspec.to_builtins(found), [_member_row(each) for each in found], name="email", empty=_NO_MEMBERS)


@members.command("role")
@click.argument("member")
@click.argument("role")
@shared
@about_no_app
def change_member(session: Session, member: str, role: str) -> None:
    """Give a member (email or id) another role: owner, admin, developer, viewer, billing, or one of your own."""
    import msgspec  # noqa: PLC0415

    from shellwego.client.generated import MemberPatch  # noqa: PLC0415

    found = session.client.change_member(the_organization(session), member, MemberPatch(role=role))
    show_one(session, msgspec.to_builtins(found), _member_row(found), name=found.email)


@members.command("rm")
@click.argument("member")
@shared
@about_no_app
def remove_member(session: Session, member: str) -> None:
    """Take all roles in the organization from a member (email or id)."""
    session.confirm(f"Remove {member} from the organization, with all that was granted below it?")
    session.client.remove_member(the_organization(session), member)
    session.say(f"{member} is no member any more")
    show_removed(session, member)
