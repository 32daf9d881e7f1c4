"""Following a deployment to its end: stages as they come, and at a failure the reason and the app's last words."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import INTERRUPTED, NO_CAPACITY, TIMED_OUT, UNHEALTHY, Failure
from shellwego.cli.output import show_one
from shellwego.cli.progress import StageProgress
from shellwego.cli.session import F, Session

if TYPE_CHECKING:
    from shellwego.client.generated import AppView, DeploymentView

_POLL_S = 20.0
_CLIENT_GRACE_S = 30.0
"""The server gives a rollout up by itself; beyond its time the client waits so long for the word of it."""
_GOOD = "succeeded"
_CODES = {"no-capacity": NO_CAPACITY, "wait-timeout": UNHEALTHY}


def rollout_options(command: F) -> F:
    """The options that every command with a rollout has."""
    for option in (
        click.option(
            "--wait-timeout",
            type=click.FloatRange(1, 86400),
            default=300.0,
            metavar="SECONDS",
            show_default=True,
            help="The rollout has failed when it takes longer.",
        ),
        click.option(
            "--strategy",
            type=click.Choice(["rolling", "immediate"]),
            default="rolling",
            show_default=True,
            help="New instances before old ones go, or all at once.",
        ),
        click.option("--detach", is_flag=True, help="Return at once; see: swg status."),
    ):
        command = option(command)
    return command


def follow(session: Session, app: str, deployment: DeploymentView) -> DeploymentView:
    """Wait for the deployment to end, telling its stages.

    Raises:
        Failure: it did not succeed; the exit code says how.
    """
    progress = StageProgress(session)
    try:
        deployment = _ended(session, app, deployment, progress)
    except KeyboardInterrupt:
        session.say(f"\nthe deployment goes on without us; see: swg status -a {app}")
        raise click.exceptions.Exit(INTERRUPTED) from None
    if deployment.state == _GOOD:
        progress.done(f"v{deployment.release} runs", good=True)
        if deployment.cut_connections:
            session.say(f"{deployment.cut_connections} connections were cut when the drain time-out ran out")
        return deployment
    progress.done(f"v{deployment.release} {deployment.state.replace('_', ' ')}", good=False)
    raise _failure(deployment, session.client.get_app(app, project=session.project))


def _ended(session: Session, app: str, deployment: DeploymentView, progress: StageProgress) -> DeploymentView:
    deadline = time.monotonic() + deployment.wait_timeout + _CLIENT_GRACE_S
    while not deployment.finished:
        progress.update(deployment.stage, deployment.reason)
        if time.monotonic() > deadline:
            raise Failure(f"the deployment {deployment.id} is still {deployment.state}", code=TIMED_OUT)
        deployment = session.client.wait_deployment(
            app, deployment.id, project=session.project, version=deployment.version, timeout=_POLL_S
        )
    return deployment


def _failure(deployment: DeploymentView, app: AppView) -> Failure:
    lines = [f"stage {deployment.stage}: {deployment.reason or deployment.state}"]
    if deployment.log_tail:
        lines += ["the last lines of its output:", *(f"  | {line}" for line in deployment.log_tail[-20:])]
    before = "The release before goes on serving." if app.running else "Nothing of the app serves now."
    kept = " The app's config keeps the change: mend it and deploy, or: swg rollback" if app.config_differs else ""
    ends = {
        "rolled_back": before + kept,
        "failed": before + kept,
        "superseded": "A newer deployment took over; see: swg status",
        "cancelled": f"It was cancelled; the last good release goes on serving.{kept}",
    }
    return Failure(
        "\n".join(lines), code=_CODES.get(deployment.reason_code, UNHEALTHY), resolution=ends.get(deployment.state, "")
    )


def finish(session: Session, app: str, deployment: DeploymentView, *, detach: bool) -> None:
    """Follow (or not), then print the deployment and where the app is reached."""
    import msgspec  # noqa: PLC0415 - heavy, and not needed for --help

    if not detach:
        deployment = follow(session, app, deployment)
    view = session.client.get_app(app, project=session.project)
    pairs = {"app": view.name, "release": f"v{deployment.release}", "state": deployment.state, "url": view.url}
    document = msgspec.to_builtins(deployment) | {"url": view.url}
    if session.output == "table" and not detach and view.config.services:
        click.echo(view.url)
    else:
        show_one(session, document, pairs, name=deployment.id)
