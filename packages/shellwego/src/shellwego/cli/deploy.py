"""`swg deploy` and `swg plan`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import USAGE, Failure
from shellwego.cli.output import show_one, size, table
from shellwego.cli.overlay import given_options, overlay
from shellwego.cli.placement import Where, placement_options
from shellwego.cli.progress import StageProgress
from shellwego.cli.rollout import Choice, choice_options, finish, rollout_options
from shellwego.cli.session import F, Session, shared
from shellwego.cli.status import unreleased
from shellwego.client.text import one_line

if TYPE_CHECKING:
    from shellwego.cli.manifest import ManifestFile
    from shellwego.client.generated import DeploymentCreate, PlanView

CHANGES_EXIT_CODE = 10
MODULE_SUFFIX = ".wasm"


def _wish_options(command: F) -> F:
    for option in (
        click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False),
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
    ):
        command = option(command)
    return placement_options(command)


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
    where: Where,
) -> DeploymentCreate:
    import shlex  # noqa: PLC0415

    from shellwego.client.generated import ConfigBody, DeploymentCreate  # noqa: PLC0415

    config = ConfigBody()
    if release_command is not None:
        config.release_command = shlex.split(release_command)
    where.put_into(config)
    return DeploymentCreate(
        **asdict(choice),
        config=config,
        image=image,
        port=port,
        check_path=check_path,
        command=None if command_text is None else shlex.split(command_text),
        process=process,
        env={**parse_pairs(env)},
        backend=backend,
        rollback_on_failure=rollback,
    )


def parse_pairs(pairs: tuple[str, ...]) -> dict[str, str | None]:
    """`NAME=VALUE` arguments as a mapping.

    Raises:
        click.UsageError: one has no `=`.
    """
    found: dict[str, str | None] = {}
    for number, pair in enumerate(pairs, 1):
        name, equals, value = pair.partition("=")
        if not equals or not name:  # not shown: it may be the rest of a secret value that a shell has cut in words
            raise click.UsageError(f"Variable {number} of {len(pairs)} is not NAME=VALUE.")
        found[name] = value
    return found


def _loaded(
    session: Session, app: str, image: str | None, backend: str | None, directory: Path
) -> tuple[str | None, str | None]:
    """Load a module that is given as a file in the directory, under the app's name, and run it where modules run."""
    if image is None or not image.endswith(MODULE_SUFFIX):
        return image, backend
    from shellwego.client.uploads import load_image  # noqa: PLC0415

    progress = StageProgress(session)
    try:
        with (directory / image).open("rb") as file:
            loaded = load_image(
                session.client,
                file,
                name=f"{app}:module",
                project=session.project,
                progress=lambda count: progress.update("uploading", size(count)),
            )
    except OSError as error:
        raise click.UsageError(f"{image} cannot be read: {error.strerror}") from error
    progress.done(f"{image} is loaded as {loaded.data[0].reference}", good=True)
    return loaded.data[0].reference, "wasm" if backend is None else backend


def _refuse_file(image: str | None) -> None:
    """Refuse to plan with a module that is not loaded yet: to load it is to do something.

    Raises:
        Failure: the image is given as a file.
    """
    if image is not None and image.endswith(MODULE_SUFFIX):
        raise Failure(
            f"{image} is a file: a plan loads nothing, and takes images that are loaded",
            code=USAGE,
            resolution=f"swg images load NAME {image}, then plan with -i NAME --backend wasm. swg deploy takes the file.",
        )


@click.command()
@_wish_options
@click.option("-i", "--image", metavar="IMAGE", help="A loaded name, a registry reference, or a FILE.wasm.")
@rollout_options
@shared
def deploy(
    session: Session,
    directory: Path | None,
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
    where: Where,
    detach: bool,
) -> None:
    """Roll out what the shellwego.toml of DIRECTORY says, an image, or the app's changed configuration.

    Without DIRECTORY, a shellwego.toml beside you counts where it is of the same app. Options win over it. What will change
    is shown first. New instances are built beside the old ones and get requests when they are healthy. When it fails, the
    old release goes on serving, and the stage, the reason and the app's last words are shown.
    """
    found = _manifest(session, directory)
    name = session.app_option or (found.manifest.app if found else session.app)
    image, backend = _loaded(session, name, image, backend, Path())
    wish = _wish(image, port, check_path, command_text, process, env, backend, rollback, release_command, choice, where)
    if found is None:
        deployment = session.client.create_deployment(name, wish, project=session.project)
        finish(session, name, deployment, detach=detach)
    else:
        deploy_manifest(session, found, detach=detach, options=wish)


def deploy_manifest(
    session: Session, found: ManifestFile, *, detach: bool, options: DeploymentCreate | None = None
) -> None:
    """Show what the deployment that a manifest asks for would change, and follow it. `options` win where they were given."""
    app = session.client.get_app(session.app_option or found.manifest.app, project=session.project)
    wish = found.deployment(app)
    if options is not None:
        overlay(wish, options, given_options())
    wish.image, wish.backend = _loaded(session, app.name, wish.image, wish.backend, found.path.parent)
    planned = session.client.plan_deployment(app.id, wish, project=session.project)
    if not session.quiet:
        _tell_plan(planned)
    deployment = session.client.create_deployment(app.id, wish, project=session.project)
    finish(session, app.id, deployment, detach=detach)


def _manifest(session: Session, directory: Path | None) -> ManifestFile | None:
    """The manifest that counts: that of the named directory, or one beside us that is of the app in question."""
    from shellwego.cli.manifest import FILE_NAME, manifest_in  # noqa: PLC0415

    found = manifest_in(directory or Path())
    if directory is not None and found is None:
        raise click.UsageError(f"There is no {FILE_NAME} in {directory}.")
    if directory is None and found is not None and session.app_option not in (None, found.manifest.app):
        session.say(f"{found.path} is of the app {found.manifest.app} and is not used; to use it: swg deploy .")
        return None
    return found


@click.command()
@_wish_options
@click.option("-i", "--image", metavar="IMAGE", help="A loaded name, or a registry reference.")
@choice_options
@click.option("--detailed-exitcode", is_flag=True, help="End with 10 where something would change.")
@shared
def plan(
    session: Session,
    directory: Path | None,
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
    where: Where,
    detailed_exitcode: bool,
) -> None:
    """Show what a deploy with the same options would change. Nothing is done."""
    import msgspec  # noqa: PLC0415

    wish = _wish(image, port, check_path, command_text, process, env, backend, rollback, release_command, choice, where)
    app, found = session.app_option, _manifest(session, directory)
    if found is not None:
        view = session.client.get_app(app or found.manifest.app, project=session.project)
        app, wish = view.id, overlay(found.deployment(view), wish, given_options())
    _refuse_file(wish.image)
    planned = session.client.plan_deployment(app or session.app, wish, project=session.project)
    _remark(session, app or session.app)
    if session.output != "table":
        show_one(session, msgspec.to_builtins(planned), {}, name=str(planned.to_release))
    else:
        _tell_plan(planned, err=False)
    if detailed_exitcode and planned.changed:
        raise click.exceptions.Exit(CHANGES_EXIT_CODE)


def _tell_plan(planned: PlanView, *, err: bool = True) -> None:
    """What would change, for people."""
    if not planned.changed:
        click.echo("nothing would change", err=err)
        return
    rows = [{"what": change.field, "before": change.before, "after": change.after} for change in planned.changes]
    before = f"v{planned.from_release}" if planned.from_release else "nothing"
    click.echo(f"{before} → v{planned.to_release}", err=err)
    if rows:
        click.echo(table(rows), err=err)
    for each in planned.processes:
        click.echo(f"{each.process}: {each.kept} stay, {each.started} come, {each.stopped} go", err=err)
        if each.obstacle:
            room = f"would evict {each.evicts} of lower priority" if each.evicts else "could not be placed now"
            click.echo(one_line(f"{each.process} {room}: {each.obstacle}"), err=err)
        if each.pause:
            said = f"{each.process} stops for a short while: the old one gives up the volume {each.pause}"
            click.echo(one_line(said), err=err)


def _remark(session: Session, name: str) -> None:
    """Tell of changes that the plan has because they failed, or wait, and not because they were asked for now."""
    app = session.client.get_app(name, project=session.project)
    if not app.config_differs:
        return
    last = (
        session.client.get_deployment(app.id, app.deployment_id, project=session.project) if app.deployment_id else None
    )
    if remark := unreleased(app, last):
        session.say(f"the config {remark}")
