"""`swg login`, `logout`, `whoami`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import AUTH, USAGE, Failure
from shellwego.cli.output import show_one
from shellwego.cli.session import Session, about_no_app, choice, shared

if TYPE_CHECKING:
    from shellwego.client.context import Context
    from shellwego.client.generated import Client

_REFUSED = "sign-in-refused"
_url = click.option("--url", metavar="URL", help="The API, such as https://cloud.example:7080. [that of the context]")
_ca_file = click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    metavar="FILE",
    help="The API's certificate authority, where it is not public.",
)


@click.command()
@_url
@click.option("--name", default="", metavar="NAME", help="The context's name. [the host]")
@click.option("--email", default="", metavar="EMAIL", help="Who signs in. [asked for]")
@click.option("--token-stdin", is_flag=True, help="Take a token from stdin, instead of signing in.")
@_ca_file
@shared
@about_no_app
def login(session: Session, url: str | None, name: str, email: str, token_stdin: bool, ca_file: str | None) -> None:
    """Sign in to a platform and save how to reach it, as a context.

    Email, password and one-time code are asked for; none but the email can be an argument. Without a terminal, --email
    takes the password from the first line of stdin and a code from the second; without --email, stdin holds a token.
    """
    from shellwego.cli.prompts import at_terminal  # noqa: PLC0415

    with _platform(session, url, ca_file) as client:
        if token_stdin or not (at_terminal() or email):
            client.token = _token()
        else:
            client.token = _signed_in(client, email)
        _save(session, client, name)


@click.command()
@_url
@click.option("--context-name", "name", default="", metavar="NAME", help="The context's name. [the host]")
@click.option("--name", "person", default="", metavar="NAME", help="Your name, for others to read.")
@_ca_file
@shared
@about_no_app
def register(session: Session, url: str | None, name: str, person: str, ca_file: str | None) -> None:
    """Make your account on a platform from an invitation, and sign in.

    Asks for the invitation's secret and a new password; without a terminal they are the first two lines of stdin.
    """
    from shellwego.cli.prompts import Prompts  # noqa: PLC0415
    from shellwego.client.generated import Register  # noqa: PLC0415

    prompts = Prompts()
    with _platform(session, url, ca_file) as client:
        invitation = prompts.secret("Invitation").strip()
        password = prompts.new_secret("New password")
        body = Register(invitation=invitation, password=password, name=person, token_name=_own_name())
        client.token = client.register(body).secret or ""
        _save(session, client, name)


def _platform(session: Session, url: str | None, ca_file: str | None) -> Client:
    """A client without a token, of the platform that is named, else of the current context."""
    from shellwego.client.generated import Client  # noqa: PLC0415

    known = session.known_contexts.get(session.context_name or "")
    if not url and known is None:
        raise click.UsageError("Which platform? Give --url URL.")
    url = url or (known.api_url if known else "")
    same = known is not None and known.api_url == url
    try:
        return Client(url, ca_file=ca_file or (known.ca_file if known and same else ""))
    except ValueError as error:
        raise Failure(f"--url: {error}", code=USAGE) from error


def _save(session: Session, client: Client, name: str) -> None:
    """Keep the client's token in a context, once it was seen to hold."""
    from shellwego.client.context import Context, save  # noqa: PLC0415

    user = client.get_user()
    known = session.known_contexts
    before = known.get(session.context_name or "")
    name = name or (before.name if before and before.api_url == client.api_url else _host(client.api_url))
    context = Context(name=name, api_url=client.api_url, token=client.token, ca_file=client.ca_file)
    save(session.config_path, known.put(context, make_current=True))
    session.say(f"logged in as {user.email or user.name}; context {name} is current")


def _own_name() -> str:
    """What the token of this machine is called."""
    import socket  # noqa: PLC0415

    return f"swg on {socket.gethostname()}"[:100]


def _host(url: str) -> str:
    from urllib.parse import urlsplit  # noqa: PLC0415

    return (urlsplit(url).hostname or "").replace(".", "-") or "local"


def _signed_in(client: Client, email: str) -> str:
    """The token of a sign-in; a code is asked for where the password alone does not do."""
    from shellwego.cli.prompts import Prompts  # noqa: PLC0415
    from shellwego.client.generated import SignInRequest  # noqa: PLC0415
    from shellwego.client.transport import ApiProblem  # noqa: PLC0415

    prompts = Prompts()
    email = email or prompts.text("Email")
    password = prompts.secret("Password")
    body = SignInRequest(email=email, password=password, name=_own_name())
    try:
        return client.sign_in(body).secret or ""
    except ApiProblem as problem:
        if problem.code != _REFUSED:
            raise
        code = prompts.secret("One-time code, if you have one", optional=True)
        if not code:
            raise Failure(problem.detail, code=AUTH, resolution=problem.resolution, kind=problem.code) from problem
    body.totp = code
    return client.sign_in(body).secret or ""


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
    """End the token of the current (or named) context, and forget the context."""
    from shellwego.client.context import save  # noqa: PLC0415

    context = session.context
    known = session.known_contexts
    if context.name not in known.contexts:
        raise Failure("there is no context to forget; the environment names the platform", code=USAGE)
    fate = _ended(session, context)
    left = known.without(context.name)
    save(session.config_path, left)
    session.say(f"context {context.name} is forgotten here; {fate}")
    if left.contexts and not left.current:
        session.say(f"no context is current now: {choice(left)}")


def _ended(session: Session, context: Context) -> str:
    """What became of the token. Where the platform cannot be asked, the context is forgotten all the same."""
    from shellwego.client.transport import ApiProblem, Unreachable  # noqa: PLC0415

    if not context.token:
        return "it had no token"
    try:
        session.client.sign_out("current")
    except (ApiProblem, Unreachable, Failure) as error:
        if getattr(error, "status", 0) == 401:
            return "its token held no more"
        return f"its token stays valid: {error}"
    return "its token is revoked"


@click.command()
@shared
@about_no_app
def whoami(session: Session) -> None:
    """Show who the token belongs to, and where."""
    import msgspec  # noqa: PLC0415

    user = session.client.get_user()
    context = session.context
    project = session.client.get_project(session.project or "").name if session.project_option else context.project
    pairs = {
        "user" if user.email else "service account": user.email or user.name,
        "id": user.id,
        "roles": ", ".join(f"{grant.role} on {grant.scope_id or 'everything'}" for grant in user.grants),
        "token": user.token_id,
        **({"scopes": ", ".join(user.scopes)} if user.scopes else {}),
        **({"narrowed to": ", ".join(user.resources)} if user.resources else {}),
    }
    where = {"context": context.name, "api": context.api_url, "project": project or None}
    show_one(session, msgspec.to_builtins(user) | where, {**pairs, **where}, name=user.email or user.name)
