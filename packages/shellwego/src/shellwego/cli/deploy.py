"""`swg deploy` and `swg plan`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from shellwego.cli.output import show, show_one, size
from shellwego.cli.progress import StageProgress
from shellwego.cli.rollout import Choice, choice_options, finish, rollout_options
from shellwego.cli.session import F, Session, shared
from shellwego.cli.status import unreleased

if TYPE_CHECKING:
    from shellwego.client.generated import DeploymentCreate

CHANGES_EXIT_CODE = 10
MODULE_SUFFIX = ".wasm"


def _wish_options(command: F) -> F:
    for option in (
        click.option("--rollback/--no-rollback", default=True, help="Go back by itself when it fails. [default: on]"),
        click.option("-e", "--env", "env", multiple=True, metavar="NAME=VALUE", help="Set a variable; repeatable."),
        click.option(
            "--process",
            default="web",
            metavar="NAME",
            show_default=True,
            help="The process it is about; a new one needs --command.",
        ),
        click.option(
            "--command",
            "command_text",
            metavar="CMD",
            help="In place of the image's Cmd: arguments of its Entrypoint, if it has one.",
        ),
        click.option(
            "--release-command",
            metavar="CMD",
            help='Run once before the rollout, in a VM of its own; it must end with 0. "" for none any more.',
        ),
        click.option("--check-path", metavar="PATH", help="Healthy is what answers 2xx or 3xx here."),
        click.option("--port", type=click.IntRange(1, 65535), help="Port that the app listens on."),
        click.option("--backend", metavar="NAME", help='What the VMs run on: "wasm" for a module; "" for the default.'),
        click.option("-i", "--image", metavar="IMAGE", help="A loaded name, a registry reference, or a FILE.wasm."),
    ):
        command = option(command)
    return command


def _wish(
    image: str | None,
    port: int | None,
    check_path: str | None,
    command_text: str | None,
    process: str,
    env: tuple[str, ...],
    backend: str | None,
    rollback: bool,
    release_command: str | None,
    choice: Choice,
) -> DeploymentCreate:
    import shlex  # noqa: PLC0415

    from shellwego.client.generated import ConfigBody, DeploymentCreate  # noqa: PLC0415

    before = None if release_command is None else shlex.split(release_command)
    return DeploymentCreate(
        **asdict(choice),
        config=ConfigBody(release_command=before),
        image=image,
        port=port,
        check_path=check_path,
        command=None if command_text is None else shlex.split(command_text),
        process=process,
        env=parse_pairs(env),
        backend=backend,
        rollback_on_failure=rollback,
    )


def parse_pairs(pairs: tuple[str, ...]) -> dict[str, str | None]:
    """`NAME=VALUE` arguments as a mapping.

    Raises:
        click.UsageError: one has no `=`.
    """
    found: dict[str, str | None] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{pair!r} is not NAME=VALUE.")
        found[name] = value
    return found


def _loaded(session: Session, image: str | None, backend: str | None) -> tuple[str | None, str | None]:
    """Load a module that is given as a file, under the app's name, and run it where modules run."""
    if image is None or not image.endswith(MODULE_SUFFIX):
        return image, backend
    from shellwego.client.uploads import load_image  # noqa: PLC0415

    progress = StageProgress(session)
    try:
        with open(image, "rb") as file:  # noqa: PTH123 - the name as the user typed it
            loaded = load_image(
                session.client,
                file,
                name=f"{session.app}:module",
                project=session.project,
                progress=lambda count: progress.update("uploading", size(count)),
            )
    except OSError as error:
        raise click.UsageError(f"{image} cannot be read: {error.strerror}") from error
    progress.done(f"{image} is loaded as {loaded.data[0].reference}", good=True)
    return loaded.data[0].reference, "wasm" if backend is None else backend


@click.command()
@_wish_options
@rollout_options
@shared
def deploy(
    session: Session,
    image: str | None,
    port: int | None,
    check_path: str | None,
    command_text: str | None,
    process: str,
    env: tuple[str, ...],
    backend: str | None,
    rollback: bool,
    release_command: str | None,
    choice: Choice,
    detach: bool,
) -> None:
    """Roll out an image, or the app's changed configuration.

    New instances are built beside the old ones and get requests when they are healthy. When it fails, the old release goes
    on serving, and the stage, the reason and the app's last words are shown.
    """
    image, backend = _loaded(session, image, backend)
    wish = _wish(image, port, check_path, command_text, process, env, backend, rollback, release_command, choice)
    deployment = session.client.create_deployment(session.app, wish, project=session.project)
    finish(session, session.app, deployment, detach=detach)


@click.command()
@_wish_options
@choice_options
@click.option("--detailed-exitcode", is_flag=True, help="End with 10 where something would change.")
@shared
def plan(
    session: Session,
    image: str | None,
    port: int | None,
    check_path: str | None,
    command_text: str | None,
    process: str,
    env: tuple[str, ...],
    backend: str | None,
    rollback: bool,
    release_command: str | None,
    choice: Choice,
    detailed_exitcode: bool,
) -> None:
    """Show what a deploy with the same options would change. Nothing is done."""
    import msgspec  # noqa: PLC0415

    wish = _wish(image, port, check_path, command_text, process, env, backend, rollback, release_command, choice)
    planned = session.client.plan_deployment(session.app, wish, project=session.project)
    document = msgspec.to_builtins(planned)
    _remark(session)
    if session.output != "table":
        show_one(session, document, {}, name=str(planned.to_release))
    elif not planned.changed:
        click.echo("nothing would change")
    else:
        rows = [{"what": change.field, "before": change.before, "after": change.after} for change in planned.changes]
        before = f"v{planned.from_release}" if planned.from_release else "nothing"
        click.echo(f"{before} → v{planned.to_release}")
        show(session, document, rows)
        for each in planned.processes:
            click.echo(f"{each.process}: {each.kept} stay, {each.started} come, {each.stopped} go")
            if each.obstacle:
                click.echo(f"{each.process} could not be placed now: {each.obstacle}")
    if detailed_exitcode and planned.changed:
        raise click.exceptions.Exit(CHANGES_EXIT_CODE)


def _remark(session: Session) -> None:
    """Tell of changes that the plan has because they failed, or wait, and not because they were asked for now."""
    app = session.client.get_app(session.app, project=session.project)
    if not app.config_differs:
        return
    last = (
        session.client.get_deployment(app.id, app.deployment_id, project=session.project) if app.deployment_id else None
    )
    if remark := unreleased(app, last):
        session.say(f"the config {remark}")
