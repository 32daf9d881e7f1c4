"""`swg users`: everybody, for the platform's operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, show, show_one
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import PersonView


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def users() -> None:
    """List, show, disable and enable the platform's users."""


def _row(person: PersonView) -> dict[str, object]:
    return {
        "email": person.email,
        "name": person.name,
        "id": person.id,
        "state": "disabled" if person.disabled_at else "enabled",
        "password": person.has_password,
        "codes": person.totp,
        "created": age(person.created_at),
    }


@users.command("ls")
@shared
@about_no_app
def list_users(session: Session) -> None:
    """List all users."""
    import msgspec  # noqa: PLC0415

    found = every(lambda cursor: session.client.list_users(limit=MOST, cursor=cursor))
    show(session, msgspec.to_builtins(found), [_row(person) for person in found], name="email")


@users.command("show")
@click.argument("user")
@shared
@about_no_app
def show_person(session: Session, user: str) -> None:
    """Show one user, by email or id."""
    _show(session, session.client.get_user_of_platform(user))


@users.command("disable")
@click.argument("user")
@shared
@about_no_app
def disable(session: Session, user: str) -> None:
    """Answer nothing to a user any more, neither to their tokens nor to their password, within a second."""
    session.confirm(f"Disable {user}? Their tokens hold no more.")
    _set(session, user, disabled=True)


@users.command("enable")
@click.argument("user")
@shared
@about_no_app
def enable(session: Session, user: str) -> None:
    """Let a user in again; their tokens that have not expired hold again."""
    _set(session, user, disabled=False)


def _set(session: Session, user: str, *, disabled: bool) -> None:
    from shellwego.client.generated import PersonUpdate  # noqa: PLC0415

    _show(session, session.client.update_user_of_platform(user, PersonUpdate(disabled=disabled)))


def _show(session: Session, person: PersonView) -> None:
    import msgspec  # noqa: PLC0415

    show_one(session, msgspec.to_builtins(person), _row(person), name=person.email)
