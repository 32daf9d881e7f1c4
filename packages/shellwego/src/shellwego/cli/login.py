"""`swg login`, `logout`, `whoami`."""

from __future__ import annotations

import sys

import click

from shellwego.cli.failure import USAGE, Failure
from shellwego.cli.output import show_one
from shellwego.cli.session import Session, about_no_app, choice, shared


@click.command()
@click.option("--url", required=True, metavar="URL", help="The API, such as https://cloud.example:7080.")
@click.option("--name", default="", metavar="NAME", help="The context's name. [the host]")
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    metavar="FILE",
    help="The API's certificate authority, where it is not public.",
)
@shared
@about_no_app
def login(session: Session, url: str, name: str, ca_file: str | None) -> None:
    """Save how to reach a platform. The token is read from stdin, or asked for; it is never an argument."""
    from urllib.parse import urlsplit  # noqa: PLC0415

    from shellwego.client.context import Context, save  # noqa: PLC0415
    from shellwego.client.generated import Client  # noqa: PLC0415

    try:
        client = Client(url, ca_file=ca_file or "")
    except ValueError as error:
        raise Failure(f"--url: {error}", code=USAGE) from error
    name = name or (urlsplit(url).hostname or "").replace(".", "-") or "local"
    known = session.known_contexts
    client.token = _token()
    with client:
        user = client.get_user()
    context = Context(name=name, api_url=url, token=client.token, ca_file=client.ca_file)
    save(session.config_path, known.put(context, make_current=True))
    session.say(f"logged in as {user.email}; context {name} is current")


def _token() -> str:
    text: str = click.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
    token = text.strip()
    if not token or not token.isprintable():
        raise Failure("that is not a token", code=USAGE, resolution="Give it on stdin: swg login --url URL < FILE")
    return token


@click.command()
@shared
@about_no_app
def logout(session: Session) -> None:
    """Forget the current (or named) context and its token."""
    from shellwego.client.context import save  # noqa: PLC0415

    name = session.context.name
    known = session.known_contexts
    if name not in known.contexts:
        raise Failure("there is no context to forget; the environment names the platform", code=USAGE)
    left = known.without(name)
    save(session.config_path, left)
    session.say(f"context {name} is forgotten here; its token stays valid")
    if left.contexts and not left.current:
        session.say(f"no context is current now: {choice(left)}")


@click.command()
@shared
@about_no_app
def whoami(session: Session) -> None:
    """Show who the token belongs to, and where."""
    import msgspec  # noqa: PLC0415

    user = session.client.get_user()
    context = session.context
    project = session.client.get_project(session.project_option).name if session.project_option else context.project
    pairs = {
        "user": user.email,
        "id": user.id,
        "roles": ", ".join(f"{grant.role} on {grant.scope_id or 'everything'}" for grant in user.grants),
        "token": user.token_id,
    }
    where = {"context": context.name, "api": context.api_url, "project": project or None}
    show_one(session, msgspec.to_builtins(user) | where, {**pairs, **where}, name=user.email)
