"""`swg invitations`: letting people into an organization, and getting in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, moment, show, show_one
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.cli.tenancy import the_organization
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import InvitationView, NewInvitationView


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def invitations() -> None:
    """Invite people to an organization; list, revoke and accept invitations."""


def _row(invitation: InvitationView | NewInvitationView) -> dict[str, object]:
    return {
        "id": invitation.id,
        "email": invitation.email,
        "role": invitation.role,
        "state": invitation.state,
        "expires": moment(invitation.expires_at),
        "made": age(invitation.created_at),
    }


@invitations.command("ls")
@shared
@about_no_app
def list_invitations(session: Session) -> None:
    """List an organization's invitations, the newest first."""
    import msgspec  # noqa: PLC0415

    name = the_organization(session)
    found = every(lambda cursor: session.client.list_invitations(name, limit=MOST, cursor=cursor))
    rows = [_row(invitation) for invitation in found]
    show(session, msgspec.to_builtins(found), rows, name="id", empty="no invitations")


@invitations.command("create")
@click.argument("email")
@click.option("--role", default="developer", show_default=True, metavar="ROLE", help="One that you hold yourself.")
@shared
@about_no_app
def create_invitation(session: Session, email: str, role: str) -> None:
    """Invite somebody, for a week. The secret is printed once, on stdout: send it to whom it is for.

    Who has no account here makes one with it: swg register --url URL. Who has one: swg invitations accept.
    """
    import msgspec  # noqa: PLC0415

    from shellwego.client.generated import InvitationCreate  # noqa: PLC0415

    body = InvitationCreate(email=email, role=role)
    made = session.client.create_invitation(the_organization(session), body)
    if session.output in ("json", "yaml"):
        show_one(session, msgspec.to_builtins(made), {}, name=made.id)
        return
    session.say(f"invitation {made.id} of {made.email} as {made.role}; this is the only time that its secret is shown:")
    click.echo(made.secret)


@invitations.command("revoke")
@click.argument("invitation")
@shared
@about_no_app
def revoke_invitation(session: Session, invitation: str) -> None:
    """Have nobody accept an invitation any more."""
    import msgspec  # noqa: PLC0415

    ended = session.client.delete_invitation(the_organization(session), invitation)
    show_one(session, msgspec.to_builtins(ended), _row(ended), name=ended.id)


@invitations.command("accept")
@shared
@about_no_app
def accept_invitation(session: Session) -> None:
    """Accept an invitation to your own address. Its secret is asked for, or read from stdin."""
    import msgspec  # noqa: PLC0415

    from shellwego.cli.prompts import Prompts  # noqa: PLC0415
    from shellwego.client.generated import InvitationAccept  # noqa: PLC0415

    accepted = session.client.accept_invitation(InvitationAccept(invitation=Prompts().secret("Invitation").strip()))
    pairs = {"organization": accepted.organization_id, "role": accepted.role}
    show_one(session, msgspec.to_builtins(accepted), pairs, name=accepted.organization_id)
