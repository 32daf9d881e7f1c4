"""`swg secrets`: values that an app gets as environment variables and nobody reads back.

A value is never an argument: every process of a machine can read the arguments of every other, and a shell keeps them in
its history. So `NAME=VALUE` is refused, with the ways that are not.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shellwego.cli.durations import seconds
from shellwego.cli.failure import FAILED, NOT_FOUND, USAGE, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, fields, show, show_one, show_removed, table
from shellwego.cli.presence import look_first
from shellwego.cli.rollout import follow
from shellwego.cli.session import Session, about_no_app, project_file_app, shared
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import SecretDetail, SecretVersionView

_WAYS = "Give NAME (it is asked for, or read from stdin), NAME=- (stdin), or NAME=@FILE."
_stage = click.option("--stage", is_flag=True, help="Roll nothing out; the next deploy takes it along.")
_detach = click.option("--detach", is_flag=True, help="Do not wait for the roll-out.")
_expires = click.option("--expires", metavar="AGE", help="No release takes it after so long, such as 12h or 90d.")


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def secrets() -> None:
    """Set, list, show, rotate, retire and remove secrets."""


@secrets.command("set")
@click.argument("names", nargs=-1, required=True, metavar="NAME[=-|=@FILE]...")
@click.option("--description", default="", metavar="TEXT", help="What it is for; kept with a new secret.")
@_expires
@_stage
@_detach
@shared
def set_secrets(
    session: Session, names: tuple[str, ...], description: str, expires: str | None, stage: bool, detach: bool
) -> None:
    """Make secrets, or give them a new version.

    With an app (-a, or beside its shellwego.toml) each becomes a variable of that app. Apps that take the newest version are
    rolled out, unless --stage. One line break at the end of a value is left out.
    """
    from shellwego.client.generated import SecretCreate  # noqa: PLC0415

    values, until = _values(names), _until(expires)
    taken: list[str] = []
    for name, value in values.items():
        known = _known(session, name)
        if known is None:
            body = SecretCreate(name=name, value=value, description=description, expires_at=until)
            known = session.client.create_secret(body, project=session.project)
            session.say(f"{name} is set")
        else:
            _rotate(session, name, value, until)
        taken += known.latest_for
    app = session.app_option or project_file_app(Path.cwd())
    if app:
        _refer(session, app, list(values), stage=stage, detach=detach)
    _roll_out(session, [each for each in taken if each != app], stage=stage, detach=detach)


@secrets.command("rotate")
@click.argument("name", metavar="NAME[=-|=@FILE]")
@_expires
@_stage
@_detach
@shared
@about_no_app
def rotate_secret(session: Session, name: str, expires: str | None, stage: bool, detach: bool) -> None:
    """Give a secret a new version, and roll out the apps that take the newest, unless --stage."""
    ((name, value),) = _values((name,)).items()
    known = _found(session, name)
    _rotate(session, name, value, _until(expires))
    _roll_out(session, known.latest_for, stage=stage, detach=detach)


@secrets.command("ls")
@shared
@about_no_app
def list_secrets(session: Session) -> None:
    """List the project's secrets; their values are shown nowhere."""
    import msgspec  # noqa: PLC0415

    found = every(lambda cursor: session.client.list_secrets(project=session.project, limit=MOST, cursor=cursor))
    rows = [
        {
            "name": secret.name,
            "version": secret.latest,
            "changed": age(secret.updated_at),
            "description": secret.description,
        }
        for secret in found
    ]
    show(session, msgspec.to_builtins(found), rows, empty="no secrets yet: swg secrets set NAME")


@secrets.command("show")
@click.argument("name")
@shared
@about_no_app
def show_secret(session: Session, name: str) -> None:
    """Show a secret's versions, when each was last used, and which apps need it."""
    import msgspec  # noqa: PLC0415

    secret = _found(session, name)
    versions = every(
        lambda cursor: session.client.list_secret_versions(name, project=session.project, limit=MOST, cursor=cursor)
    )
    if session.output != "table":
        document = msgspec.to_builtins(secret) | {"versions": msgspec.to_builtins(versions)}
        show_one(session, document, {"name": secret.name}, name=secret.name)
        return
    pairs = {
        "name": secret.name,
        "description": secret.description or None,
        "used by": ", ".join(secret.used_by) or "nothing that runs",
        "newest for": ", ".join(secret.latest_for) or None,
        "id": secret.id,
    }
    click.echo(fields(pairs))
    click.echo(table([_row(version) for version in versions]))


def _row(version: SecretVersionView) -> dict[str, object]:
    return {
        "version": version.number,
        "state": version.state,
        "bytes": version.size_bytes,
        "age": age(version.created_at),
        "last used": age(version.last_used_at) if version.last_used_at else "never",
        "expires": version.expires_at.date().isoformat() if version.expires_at else None,
    }


@secrets.command("retire")
@click.argument("name")
@click.argument("version", type=click.IntRange(1, 999_999))
@shared
@about_no_app
def retire_secret(session: Session, name: str, version: int) -> None:
    """Destroy the value of a version; refused while a release that runs needs it."""
    look_first(session, (name,), lambda each: session.client.get_secret(each, project=session.project))
    session.confirm(f"Destroy version {version} of {name}? This cannot be undone.")
    session.client.retire_secret_version(name, str(version), project=session.project)
    session.say(f"version {version} of {name} is retired")


@secrets.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@shared
@about_no_app
def remove_secrets(session: Session, names: tuple[str, ...]) -> None:
    """Destroy secrets with all their versions; refused while a release that runs needs one."""
    look_first(session, names, lambda name: session.client.get_secret(name, project=session.project))
    session.confirm(f"Destroy {', '.join(names)}? This cannot be undone.")
    for name in names:
        session.client.delete_secret(name, project=session.project)
        session.say(f"{name} is removed")
    show_removed(session, *names)


def _values(words: tuple[str, ...]) -> dict[str, str]:
    """The value of each name, from where its word says.

    Raises:
        click.UsageError: a value was given as an argument, or stdin would have to serve two.
    """
    sources = dict(_source(word) for word in words)
    from_stdin = [name for name, source in sources.items() if source == "-" or (not source and not sys.stdin.isatty())]
    if len(from_stdin) > 1:
        raise click.UsageError(f"stdin can be the value of one only, not of {', '.join(from_stdin)}. {_WAYS}")
    return {name: _value(name, source) for name, source in sources.items()}


def _source(word: str) -> tuple[str, str]:
    """What a word names, and where its value is: `-`, `@FILE`, or nothing."""
    name, equals, source = word.partition("=")
    if equals and source != "-" and not (source.startswith("@") and len(source) > 1):
        raise click.UsageError(
            f"{name}=… has its value on the command line, where every process of this machine can read it. {_WAYS}"
        )
    return name, source


def _value(name: str, source: str) -> str:
    if source.startswith("@"):
        data = _file(source[1:])
    elif source == "-" or not sys.stdin.isatty():
        data = sys.stdin.buffer.read()
    else:
        text: str = click.prompt(name, hide_input=True, err=True)
        data = text.encode()
    try:
        value = data.decode()
    except UnicodeDecodeError:
        raise Failure(f"the value of {name} is not UTF-8", code=USAGE, resolution="Encode it, as base64 say.") from None
    value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise Failure(f"the value of {name} is empty", code=USAGE, resolution=_WAYS)
    return value


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", code=USAGE) from error


def _until(expires: str | None) -> datetime | None:
    return None if expires is None else datetime.now(UTC) + timedelta(seconds=seconds(expires, "--expires"))


def _known(session: Session, name: str) -> SecretDetail | None:
    from shellwego.client.transport import ApiProblem  # noqa: PLC0415

    try:
        return session.client.get_secret(name, project=session.project)
    except ApiProblem as error:
        if error.code != "secret-not-found":
            raise
    return None


def _found(session: Session, name: str) -> SecretDetail:
    known = _known(session, name)
    if known is None:
        raise Failure(
            f"the project has no secret {name}", code=NOT_FOUND, resolution=f"Make it: swg secrets set {name}"
        )
    return known


def _rotate(session: Session, name: str, value: str, until: datetime | None) -> None:
    from shellwego.client.generated import VersionCreate  # noqa: PLC0415

    body = VersionCreate(value=value, expires_at=until)
    version = session.client.rotate_secret(name, body, project=session.project)
    session.say(f"{name} has version {version.number} now")


def _refer(session: Session, app: str, names: list[str], *, stage: bool, detach: bool) -> None:
    """Make the secrets variables of the app, under their own names."""
    from shellwego.client.generated import EnvBody, SecretRefBody  # noqa: PLC0415

    body = EnvBody(env={name: SecretRefBody(secret=name) for name in names}, stage=stage)
    changed = session.client.change_env(app, body, project=session.project)
    if changed.deployment_id is None:
        session.say(f"{app} gets it with its next deploy")
    elif not detach:
        follow(session, app, session.client.get_deployment(app, changed.deployment_id, project=session.project))


def _roll_out(session: Session, apps: list[str], *, stage: bool, detach: bool) -> None:
    """Roll out the apps that take the newest version; all are begun before the first is waited for."""
    from shellwego.client.generated import DeploymentCreate  # noqa: PLC0415

    names = sorted(set(apps))
    if stage and names:
        session.say(f"taken along by the next deploy of: {', '.join(names)}")
        return
    begun = [(app, session.client.create_deployment(app, DeploymentCreate(), project=session.project)) for app in names]
    failed = []
    for app, deployment in begun:
        session.say(f"{app}: rolling out v{deployment.release}")
        if not detach:
            try:
                follow(session, app, deployment)
            except Failure as failure:
                failed.append(f"{app}: {failure.message}")
    if failed:
        raise Failure("\n".join(failed), code=FAILED, resolution="The secret is set; mend the app and deploy it again.")
