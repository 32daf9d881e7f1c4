"""Following a deployment to its end: stages as they come, and at a failure the reason and the app's last words."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, cast

import click

from shellwego.cli.failure import INTERRUPTED, NO_CAPACITY, TIMED_OUT, UNHEALTHY, Failure
from shellwego.cli.output import show_one
from shellwego.cli.progress import StageProgress
from shellwego.cli.session import F, Session
from shellwego.client.text import one_line

if TYPE_CHECKING:
    from shellwego.client.generated import AppView, DeploymentView

_POLL_S = 20.0
_CLIENT_GRACE_S = 30.0
"""The server gives a rollout up by itself; beyond its time the client waits so long for the word of it."""
_GOOD = "succeeded"
_CODES = {"no-capacity": NO_CAPACITY, "wait-timeout": UNHEALTHY}


_OPTIONS = (
    click.option(
        "--wait-timeout",
        type=click.FloatRange(1, 86400),
        default=300.0,
        metavar="SECONDS",
        show_default=True,
        help="The rollout has failed when it takes longer, a canary's pauses not counted.",
    ),
    click.option(
        "--canary-pause", type=click.FloatRange(0, 86400), metavar="SECONDS", help="How long each step must hold. [60]"
    ),
    click.option(
        "--canary",
        "canary_steps",
        metavar="PERCENT,…",
        callback=lambda _ctx, _param, text: parse_steps(text),
        help="Steps of requests for the new release, such as 10,50,100. Means --strategy canary.",
    ),
    click.option("--surge", metavar="N|N%", help="Instances beyond the wanted ones meanwhile. [25%]"),
    click.option("--max-unavailable", metavar="N|N%", help="Instances that may be missing meanwhile. [0]"),
    click.option(
        "--strategy",
        type=click.Choice(["rolling", "bluegreen", "canary", "immediate"]),
        help="One after the other, all beside the old ones, some of the requests first, or all at once. [rolling]",
    ),
)
_DETACH = click.option("--detach", is_flag=True, help="Return at once; see: swg status.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How the user wants it rolled out: the fields of a body that has them."""

    strategy: str
    wait_timeout: float
    max_unavailable: str | None
    surge: str | None
    canary_steps: list[int] | None
    canary_pause: float | None


def rollout_options(command: F) -> F:
    """The options that every command with a rollout has; it gets `choice`, and `detach`."""
    return _DETACH(choice_options(command))


def choice_options(command: F) -> F:
    """The options that say how it is to be rolled out; the command gets `choice`."""

    @wraps(command)
    def chosen(
        *arguments: object,
        strategy: str | None,
        wait_timeout: float,
        max_unavailable: str | None,
        surge: str | None,
        canary_steps: list[int] | None,
        canary_pause: float | None,
        **others: object,
    ) -> object:
        choice = Choice(
            strategy=strategy or ("rolling" if canary_steps is None else "canary"),
            wait_timeout=wait_timeout,
            max_unavailable=max_unavailable,
            surge=surge,
            canary_steps=canary_steps,
            canary_pause=canary_pause,
        )
        return command(*arguments, choice=choice, **others)

    decorated = cast("F", chosen)
    for option in _OPTIONS:
        decorated = option(decorated)
    return decorated


def parse_steps(text: str | None) -> list[int] | None:
    """`10,50,100` as numbers.

    Raises:
        click.BadParameter: it is not such a list.
    """
    if text is None:
        return None
    parts = [part.strip().removesuffix("%") for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts):
        raise click.BadParameter(f"{text!r} is not a list of percentages such as 10,50,100.")
    return [int(part) for part in parts]


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
    allowed = (deployment.deadline - deployment.created_at).total_seconds()
    deadline = time.monotonic() + allowed + _CLIENT_GRACE_S
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
        click.echo(one_line(view.url))
    else:
        show_one(session, document, pairs, name=deployment.id)
