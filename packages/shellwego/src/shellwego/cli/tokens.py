"""`swg tokens`: what scripts and other machines sign in with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.durations import whole_seconds
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, moment, show, show_one
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import TokenView


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def tokens() -> None:
    """List, create and revoke your tokens."""


def _state(token: TokenView) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415

    if token.revoked_at:
        return "revoked"
    return "expired" if token.expires_at and token.expires_at <= datetime.now(UTC) else "valid"


def _row(token: TokenView) -> dict[str, object]:
    return {
        "id": token.id,
        "name": token.name,
        "kind": token.kind,
        "state": _state(token),
        "expires": moment(token.expires_at) if token.expires_at else "never",
        "used": age(token.last_used_at),
        "scopes": ", ".join(token.scopes) or "all",
        "resources": ", ".join(token.resources) or "all",
    }


@tokens.command("ls")
@click.option("--all", "everything", is_flag=True, help="Also those that are revoked or have expired.")
@shared
@about_no_app
def list_tokens(session: Session, everything: bool) -> None:
    """List your tokens, without their secrets."""
    import msgspec  # noqa: PLC0415

    listed = every(lambda cursor: session.client.list_tokens(limit=MOST, cursor=cursor))
    found = [token for token in listed if everything or _state(token) == "valid"]
    show(session, msgspec.to_builtins(found), [_row(token) for token in found], name="id", empty="no tokens")


@tokens.command("create")
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, metavar="PERMISSION", help="What it may, such as apps:read or apps:*."
)
@click.option("--resource", "resources", multiple=True, metavar="ID", help="An organization, project or app it is for.")
@click.option("--expires-in", "life", metavar="TIME", help="How long it lives, such as 30d or 12h. [a year]")
@click.option("--temporary", is_flag=True, help="For a quarter of an hour at most.")
@shared
@about_no_app
def create_token(
    session: Session,
    name: str,
    scopes: tuple[str, ...],
    resources: tuple[str, ...],
    life: str | None,
    temporary: bool,
) -> None:
    """Make a token that is no stronger than yours and ends with it. It is printed once, on stdout."""
    import msgspec  # noqa: PLC0415

    from shellwego.client.generated import TokenCreate  # noqa: PLC0415

    body = TokenCreate(
        name=name,
        kind="temporary" if temporary else "personal",
        scopes=list(scopes),
        resources=list(resources),
        expires_in=None if life is None else whole_seconds(life, "--expires-in", least="60s", most="365d"),
    )
    made = session.client.create_token(body)
    if session.output in ("json", "yaml"):
        show_one(session, msgspec.to_builtins(made), {}, name=made.id)
        return
    session.say(f"token {made.id} ({name}); this is the only time that it is shown:")
    click.echo(made.secret)


@tokens.command("revoke")
@click.argument("token")
@shared
@about_no_app
def revoke_token(session: Session, token: str) -> None:
    """Make a token void within a second, by its id, and all that it made."""
    import msgspec  # noqa: PLC0415

    ended = session.client.revoke_token(token)
    show_one(session, msgspec.to_builtins(ended), _row(ended), name=ended.id)
