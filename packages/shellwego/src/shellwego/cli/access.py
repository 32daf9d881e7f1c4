"""`swg service-accounts`, `roles`, `grants`: who or what may do something, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import CONFLICT, USAGE, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, show, show_one, show_removed
from shellwego.cli.presence import look_first
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.cli.tenancy import the_organization
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import RoleView, ScopedGrantView, ServiceAccountView, ServiceTokenView

_HELP = {"help_option_names": ["-h", "--help"]}
_DAY = 24 * 3600
_NO_ACCOUNTS = "no service accounts yet: swg service-accounts create NAME"
_NO_GRANTS = "nothing was granted here: swg grants add PRINCIPAL ROLE"


@click.group(cls=NounGroup, context_settings=_HELP)
def service_accounts() -> None:
    """List, create, show, change and delete service accounts, and their tokens."""


@service_accounts.group("tokens", cls=NounGroup, context_settings=_HELP)
def account_tokens() -> None:
    """List, create and revoke the tokens of a service account."""


@click.group(cls=NounGroup, context_settings=_HELP)
def roles() -> None:
    """List, create, show, change and delete roles of the organization's own."""


@click.group(cls=NounGroup, context_settings=_HELP)
def grants() -> None:
    """List, add, show, change and remove who has which role where."""


def _account_row(account: ServiceAccountView) -> dict[str, object]:
    return {
        "name": account.name,
        "description": account.description,
        "id": account.id,
        "age": age(account.created_at),
    }


def _show_account(session: Session, account: ServiceAccountView) -> None:
    import msgspec  # noqa: PLC0415

    show_one(session, msgspec.to_builtins(account), _account_row(account), name=account.name)


@service_accounts.command("ls")
@shared
@about_no_app
def list_accounts(session: Session) -> None:
    """List the service accounts of an organization."""
    import msgspec  # noqa: PLC0415

    organization = the_organization(session)
    found = every(lambda cursor: session.client.list_service_accounts(organization, limit=MOST, cursor=cursor))
    show(session, msgspec.to_builtins(found), [_account_row(each) for each in found], empty=_NO_ACCOUNTS)


@service_accounts.command("create")
@click.argument("name")
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@shared
@about_no_app
def create_account(session: Session, name: str, description: str) -> None:
    """Make a service account. It may nothing until it is granted a role."""
    from shellwego.client.generated import ServiceAccountCreate  # noqa: PLC0415

    body = ServiceAccountCreate(name=name, description=description)
    made = session.client.create_service_account(the_organization(session), body)
    _show_account(session, made)
    session.say(f"next: swg grants add {made.id} ROLE, then: swg service-accounts tokens create {made.name} TOKEN-NAME")


@service_accounts.command("show")
@click.argument("account")
@shared
@about_no_app
def show_account(session: Session, account: str) -> None:
    """Show a service account."""
    _show_account(session, session.client.get_service_account(the_organization(session), account))


@service_accounts.command("change")
@click.argument("account")
@click.option("--name", metavar="NAME", help="Another name.")
@click.option("--description", metavar="TEXT", help="What it is for.")
@shared
@about_no_app
def change_account(session: Session, account: str, name: str | None, description: str | None) -> None:
    """Rename or describe a service account."""
    from shellwego.client.generated import ServiceAccountPatch  # noqa: PLC0415

    if name is None and description is None:
        raise click.UsageError("Nothing to change: give --name or --description.")
    body = ServiceAccountPatch(name=name, description=description)
    _show_account(session, session.client.change_service_account(the_organization(session), account, body))


@service_accounts.command("delete")
@click.argument("account")
@shared
@about_no_app
def delete_account(session: Session, account: str) -> None:
    """Delete a service account; its tokens are void at once."""
    organization = the_organization(session)
    look_first(session, (account,), lambda name: session.client.get_service_account(organization, name))
    session.confirm(f"Delete the service account {account} and its tokens?")
    session.client.delete_service_account(organization, account)
    session.say(f"{account} is gone")
    show_removed(session, account)


def _token_row(token: ServiceTokenView) -> dict[str, object]:
    return {
        "name": token.name,
        "id": token.id,
        "scopes": ", ".join(token.scopes) or "all of the account",
        "expires": token.expires_at.date() if token.expires_at else None,
        "revoked": token.revoked_at is not None,
    }


@account_tokens.command("ls")
@click.argument("account")
@shared
@about_no_app
def list_tokens(session: Session, account: str) -> None:
    """List the tokens of a service account."""
    import msgspec  # noqa: PLC0415

    organization = the_organization(session)
    found = every(
        lambda cursor: session.client.list_service_account_tokens(organization, account, limit=MOST, cursor=cursor)
    )
    show(session, msgspec.to_builtins(found), [_token_row(each) for each in found])


@account_tokens.command("create")
@click.argument("account")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, metavar="RESOURCE:ACTION", help="Only this. [all of the account]")
@click.option("--days", type=click.IntRange(1, 90), default=90, show_default=True, help="How long it holds.")
@shared
@about_no_app
def create_token(session: Session, account: str, name: str, scopes: tuple[str, ...], days: int) -> None:
    """Make a token for a service account. It is printed on stdout, this once."""
    import msgspec  # noqa: PLC0415

    from shellwego.client.generated import ServiceTokenCreate  # noqa: PLC0415

    body = ServiceTokenCreate(name=name, scopes=list(scopes), expires_in=days * _DAY)
    made = session.client.create_service_account_token(the_organization(session), account, body)
    if session.output in ("json", "yaml"):
        show(session, msgspec.to_builtins(made), [])
        return
    click.echo(made.secret)
    session.say(f"token {made.id} of {account}; it is not shown again")


@account_tokens.command("revoke")
@click.argument("account")
@click.argument("token")
@shared
@about_no_app
def revoke_token(session: Session, account: str, token: str) -> None:
    """Make a token of a service account void, by its id."""
    session.client.revoke_service_account_token(the_organization(session), account, token)
    session.say(f"{token} is void")
    show_removed(session, token)


def _role_row(role: RoleView) -> dict[str, object]:
    return {"name": role.name, "id": role.id, "permissions": ", ".join(role.permissions)}


def _show_role(session: Session, role: RoleView) -> None:
    import msgspec  # noqa: PLC0415

    show_one(session, msgspec.to_builtins(role), _role_row(role), name=role.name)


def _built_in(session: Session, organization: str, role: str) -> list[str] | None:
    """What a role holds that every organization has; None where it is none of those, or the token may not see."""
    from shellwego.client.transport import ApiProblem  # noqa: PLC0415

    try:
        return session.client.list_roles(organization, limit=1).everywhere.get(role)
    except ApiProblem as error:
        if error.status not in (403, 404):
            raise
    return None


def _refuse_built_in(session: Session, organization: str, role: str) -> None:
    """Raises: Failure: every organization has this role, so that nobody changes it."""
    if _built_in(session, organization, role) is not None:
        resolution = "Make one of your own: swg roles create NAME PERMISSION..."
        raise Failure(f"{role} is built in: every organization has it as it is", code=CONFLICT, resolution=resolution)


@roles.command("ls")
@shared
@about_no_app
def list_roles(session: Session) -> None:
    """List the roles that every organization has, and its own."""
    import msgspec  # noqa: PLC0415

    found = session.client.list_roles(the_organization(session), limit=MOST)
    everywhere = [
        {"name": name, "id": None, "permissions": ", ".join(permissions)}
        for name, permissions in found.everywhere.items()
    ]
    own = [_role_row(each) for each in found.data]
    document = {"everywhere": found.everywhere, "data": msgspec.to_builtins(found.data)}
    show(session, document, [*everywhere, *own])


@roles.command("create")
@click.argument("name")
@click.argument("permissions", nargs=-1, required=True, metavar="PERMISSION...")
@shared
@about_no_app
def create_role(session: Session, name: str, permissions: tuple[str, ...]) -> None:
    """Make a role of permissions such as apps:read, none of which you lack yourself."""
    from shellwego.client.generated import RoleCreate  # noqa: PLC0415

    body = RoleCreate(name=name, permissions=list(permissions))
    _show_role(session, session.client.create_role(the_organization(session), body))


@roles.command("show")
@click.argument("role")
@shared
@about_no_app
def show_role(session: Session, role: str) -> None:
    """Show a role: one of the organization's own, or one that every organization has."""
    organization = the_organization(session)
    permissions = _built_in(session, organization, role)
    if permissions is None:
        _show_role(session, session.client.get_role(organization, role))
        return
    document = {"name": role, "permissions": permissions}
    show_one(session, document, {"name": role, "id": None, "permissions": ", ".join(permissions)}, name=role)


@roles.command("change")
@click.argument("role")
@click.option("--name", metavar="NAME", help="Another name.")
@click.option("--permission", "permissions", multiple=True, metavar="P", help="What it holds now, in place of before.")
@shared
@about_no_app
def change_role(session: Session, role: str, name: str | None, permissions: tuple[str, ...]) -> None:
    """Rename a role, or have it hold other permissions, for everybody who has it."""
    from shellwego.client.generated import RolePatch  # noqa: PLC0415

    if name is None and not permissions:
        raise click.UsageError("Nothing to change: give --name or --permission.")
    organization = the_organization(session)
    _refuse_built_in(session, organization, role)
    body = RolePatch(name=name, permissions=list(permissions) or None)
    _show_role(session, session.client.change_role(organization, role, body))


@roles.command("delete")
@click.argument("role")
@shared
@about_no_app
def delete_role(session: Session, role: str) -> None:
    """Delete a role that nobody has."""
    organization = the_organization(session)
    _refuse_built_in(session, organization, role)
    look_first(session, (role,), lambda name: session.client.get_role(organization, name))
    session.confirm(f"Delete the role {role}?")
    session.client.delete_role(organization, role)
    session.say(f"{role} is gone")
    show_removed(session, role)


def _grant_row(grant: ScopedGrantView) -> dict[str, object]:
    return {"id": grant.id, "principal": grant.principal_id, "role": grant.role, "scope": grant.scope}


def _show_grant(session: Session, grant: ScopedGrantView) -> None:
    import msgspec  # noqa: PLC0415

    show_one(session, msgspec.to_builtins(grant), _grant_row(grant), name=grant.id)


def _scope(session: Session, *, system: bool) -> str:
    """The id of the scope that was named: the platform, an app, a project, else the organization. An app or project of the
    environment does not count: it would give a role where nobody said so."""
    app, project = (_on_command_line(name) for name in ("app_option", "project_option"))
    if system and (app or project):
        raise Failure("--system goes with neither -a nor -p", code=USAGE)
    if system:
        return "system"
    if app:
        return session.client.get_app(session.app, project=session.project).id
    if project:
        return session.client.get_project(session.project or "").id
    return session.client.get_organization(the_organization(session)).id


def _on_command_line(name: str) -> bool:
    from click.core import ParameterSource  # noqa: PLC0415

    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


_SYSTEM = click.option("--system", is_flag=True, help="On the whole platform.")


@grants.command("ls")
@_SYSTEM
@shared
def list_grants(session: Session, system: bool) -> None:
    """List what was granted on the organization, or on the app (-a), the project (-p), the platform (--system)."""
    import msgspec  # noqa: PLC0415

    scope = _scope(session, system=system)
    found = every(lambda cursor: session.client.list_grants(scope=scope, limit=MOST, cursor=cursor))
    show(session, msgspec.to_builtins(found), [_grant_row(each) for each in found], name="id", empty=_NO_GRANTS)


@grants.command("add")
@click.argument("principal")
@click.argument("role")
@_SYSTEM
@shared
def add_grant(session: Session, principal: str, role: str, system: bool) -> None:
    """Give a member (email or id) or a service account (id) a role there, and on all below.

    Who runs the platform may give one to any user, by the id that `swg whoami` shows him.
    """
    from shellwego.client.generated import GrantCreate  # noqa: PLC0415

    body = GrantCreate(scope=_scope(session, system=system), principal=principal, role=role)
    _show_grant(session, session.client.create_grant(body))


@grants.command("show")
@click.argument("grant")
@shared
@about_no_app
def show_grant(session: Session, grant: str) -> None:
    """Show one grant."""
    _show_grant(session, session.client.get_grant(grant))


@grants.command("change")
@click.argument("grant")
@click.argument("role")
@shared
@about_no_app
def change_grant(session: Session, grant: str, role: str) -> None:
    """Give another role in place of this one."""
    from shellwego.client.generated import GrantPatch  # noqa: PLC0415

    _show_grant(session, session.client.change_grant(grant, GrantPatch(role=role)))


@grants.command("rm")
@click.argument("grant")
@shared
@about_no_app
def remove_grant(session: Session, grant: str) -> None:
    """Take a role away, by the grant's id."""
    look_first(session, (grant,), session.client.get_grant)
    session.confirm(f"Remove the grant {grant}?")
    session.client.delete_grant(grant)
    session.say(f"{grant} is gone")
    show_removed(session, grant)
