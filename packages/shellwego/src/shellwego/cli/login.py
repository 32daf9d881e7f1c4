"""`swg login`, `logout`, `whoami`."""

from __future__ import annotations

import sys

import click

from shellwego.cli.failure import USAGE, Failure
from shellwego.cli.output import show_one
from shellwego.cli.session import Session, shared


@click.command()
@click.option("--url", required=True, metavar="URL", help="The API, such as https://cloud.example:7080.")
@click.option("--name", default="", metavar="NAME", help="The context's name. [the host]")
@click.option("--ca-file", default="", metavar="FILE", help="The API's certificate authority, where it is not public.")
@shared
def login(session: Session, url: str, name: str, ca_file: str) -> None:
    """Save how to reach a platform. The token is read from stdin, or asked for; it is never an argument."""
    from urllib.parse import urlsplit  # noqa: PLC0415

    from shellwego.client.context import Context, load, save  # noqa: PLC0415
    from shellwego.client.generated import Client  # noqa: PLC0415

    token = click.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
    name = name or (urlsplit(url).hostname or "").replace(".", "-")
    if not name:
        raise Failure(f"--url: {url!r} is not a URL", code=USAGE)
    context = Context(name=name, api_url=url, token=token.strip(), ca_file=ca_file)
    try:
        client = Client(context.api_url, context.token, ca_file=context.ca_file)
    except ValueError as error:
        raise Failure(str(error), code=USAGE) from error
    user = client.get_user()
    save(session.config_path, load(session.config_path).put(context, make_current=True))
    session.say(f"logged in as {user.email}; context {name} is current")


@click.command()
@shared
def logout(session: Session) -> None:
    """Forget the current (or named) context and its token."""
    from shellwego.client.context import load, save  # noqa: PLC0415

    name = session.context.name
    save(session.config_path, load(session.config_path).without(name))
    session.say(f"context {name} is forgotten; the token stays valid until it is revoked")


@click.command()
@shared
def whoami(session: Session) -> None:
    """Show who the token belongs to, and where."""
    import msgspec  # noqa: PLC0415

    user = session.client.get_user()
    context = session.context
    pairs = {
        "user": user.email,
        "id": user.id,
        "roles": ", ".join(f"{grant.role} on {grant.scope_id or 'everything'}" for grant in user.grants),
        "token": user.token_id,
        "context": context.name,
        "api": context.api_url,
    }
    show_one(
        session, msgspec.to_builtins(user) | {"context": context.name, "api": context.api_url}, pairs, name=user.email
    )
