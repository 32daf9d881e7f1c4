"""`swg env`: environment variables of an app."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import click

from shellwego.cli.deploy import parse_pairs
from shellwego.cli.failure import USAGE, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import show
from shellwego.cli.rollout import follow
from shellwego.cli.session import Session, shared

if TYPE_CHECKING:
    from shellwego.client.generated import EnvView

_stage = click.option("--stage", is_flag=True, help="Only note it; the next deploy takes it along.")
_detach = click.option("--detach", is_flag=True, help="Return at once.")


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def env() -> None:
    """Show, set, unset and import environment variables."""


@env.command("ls")
@shared
def list_env(session: Session) -> None:
    """Show the variables with their values."""
    view = session.client.get_env(session.app, project=session.project)
    secrets = {name: {"secret": ref.secret, "version": ref.version} for name, ref in view.secrets.items()}
    shown = {name: value or '""' for name, value in view.env.items()}
    shown |= {name: f"(secret {ref.secret}, {_version(ref.version)})" for name, ref in view.secrets.items()}
    rows = [{"name": name, "value": value} for name, value in sorted(shown.items())]
    show(session, {**view.env, **secrets}, rows, empty="no variables")


def _version(version: str | int) -> str:
    return "the latest" if version == "latest" else f"version {version}"


@env.command("set")
@click.argument("pairs", nargs=-1, required=True, metavar="NAME=VALUE...")
@_stage
@_detach
@shared
def set_env(session: Session, pairs: tuple[str, ...], stage: bool, detach: bool) -> None:
    """Set variables, and roll them out as a new release."""
    _change(session, parse_pairs(pairs), stage=stage, detach=detach)


@env.command("unset")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_stage
@_detach
@shared
def unset_env(session: Session, names: tuple[str, ...], stage: bool, detach: bool) -> None:
    """Remove variables, and roll it out as a new release."""
    known = _seen(session)
    absent = (
        [] if known is None else [name for name in dict.fromkeys(names) if name not in {**known.env, **known.secrets}]
    )
    if absent:
        session.say(f"not set before: {', '.join(absent)}")
    if known is not None and len(absent) == len(set(names)):
        _show(session, known)
        return
    _change(session, dict.fromkeys(names), stage=stage, detach=detach)


def _seen(session: Session) -> EnvView | None:
    """What is set; None where the token may change it and not see it."""
    from shellwego.client.transport import ApiProblem  # noqa: PLC0415

    try:
        return session.client.get_env(session.app, project=session.project)
    except ApiProblem as error:
        if error.status not in (403, 404):
            raise
    return None


@env.command("import")
@click.argument("file", type=click.File("r"), default="-")
@_stage
@_detach
@shared
def import_env(session: Session, file: IO[str], stage: bool, detach: bool) -> None:
    r"""Set variables from lines NAME=VALUE of a file or of stdin. A line that begins with # is a comment; a value in quotes
    may have several lines.

    In double quotes \n, \r and \t are a line break, a carriage return and a tab, and \" \\ \$ are " \ $; any other backslash
    stays. In single quotes, and without any, all stands for itself. Variables in a value, such as ${X}, are not put in: they
    stay as they are."""
    from shellwego.cli.dotenv import variables  # noqa: PLC0415

    found = variables(file.read())
    if not found:
        raise Failure("no variables to import", code=USAGE)
    _change(session, {**found}, stage=stage, detach=detach)


def _change(session: Session, env: dict[str, str | None], *, stage: bool, detach: bool) -> None:
    from shellwego.client.generated import EnvBody  # noqa: PLC0415

    changed: EnvView = session.client.change_env(
        session.app, EnvBody(env={**env}, stage=stage), project=session.project
    )
    if changed.deployment_id is None:
        session.say("noted; the next deploy takes it along" if stage else "noted; nothing runs yet")
    elif not detach:
        deployment = session.client.get_deployment(session.app, changed.deployment_id, project=session.project)
        follow(session, session.app, deployment)
    _show(session, changed)


def _show(session: Session, view: EnvView) -> None:
    """What is set, for machines and scripts; people know what they changed."""
    if session.output != "table":
        show(session, view.env, [{"name": name} for name in sorted(view.env)])
