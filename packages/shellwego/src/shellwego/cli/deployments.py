"""`swg deployments`: what was rolled out, how far it came, and calling it off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import NOT_FOUND, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, fields, show, show_one, table
from shellwego.cli.session import Session, shared

if TYPE_CHECKING:
    from shellwego.client.generated import DeploymentView, StageView

STATES = ("pending", "in_progress", "succeeded", "failed", "rolled_back", "cancelled", "superseded")


def _known_states(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    unknown = sorted(set(value.split(",")).difference(STATES)) if value is not None else []
    if unknown:
        raise click.BadParameter(f"{unknown[0][:40]!r} is no state; there are: {', '.join(STATES)}.")
    return value


@click.group(cls=NounGroup)
def deployments() -> None:
    """List and show an app's deployments; cancel one."""


@deployments.command("ls")
@click.option("-n", "--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many.")
@click.option(
    "--state", metavar="STATE,…", callback=_known_states, help="Only those in these states, such as failed,rolled_back."
)
@shared
def list_deployments(session: Session, limit: int, state: str | None) -> None:
    """List an app's deployments, the newest first."""
    import msgspec  # noqa: PLC0415

    found = session.client.list_deployments(session.app, project=session.project, state=state, limit=limit).data
    rows = [
        {
            "deployment": each.id,
            "release": f"v{each.release}",
            "state": each.state,
            "stage": each.stage,
            "strategy": each.strategy,
            "age": age(each.created_at),
            "reason": each.reason,
        }
        for each in found
    ]
    empty = "no deployments yet: swg deploy" if state is None else "none match"
    show(session, msgspec.to_builtins(found), rows, name="deployment", empty=empty)


@deployments.command("show")
@click.argument("deployment", required=False)
@shared
def show_deployment(session: Session, deployment: str | None) -> None:
    """Show a deployment, or the newest: its stages, why it waits or ended, and how long each stage took."""
    import msgspec  # noqa: PLC0415

    found = _find(session, deployment)
    pairs = {
        "deployment": found.id,
        "release": f"v{found.release}",
        "state": found.state,
        "stage": found.stage,
        "reason": found.reason,
        "strategy": found.strategy,
        "canary": _canary(found),
        "release command": " ".join(found.release_command or ()),
        "its run": found.release_command_instance,
        "asked": age(found.created_at),
    }
    if session.output != "table":
        show_one(session, msgspec.to_builtins(found), pairs, name=found.id)
        return
    click.echo(fields({title: value for title, value in pairs.items() if value}))
    if found.stages:
        rows = [{"stage": each.stage, "took": _took(each), "reason": each.reason} for each in found.stages]
        click.echo("\n" + table(rows))


@deployments.command("cancel")
@click.argument("deployment", required=False)
@shared
def cancel_deployment(session: Session, deployment: str | None) -> None:
    """Call a deployment off, or the newest; the app returns to its last good release."""
    import msgspec  # noqa: PLC0415

    found = _find(session, deployment)
    cancelled = session.client.cancel_deployment(session.app, found.id, project=session.project)
    pairs = {"deployment": cancelled.id, "release": f"v{cancelled.release}", "state": cancelled.state}
    show_one(session, msgspec.to_builtins(cancelled), pairs, name=cancelled.id)


def _find(session: Session, deployment: str | None) -> DeploymentView:
    """The deployment of this id, or the newest.

    Raises:
        Failure: the app was never deployed.
    """
    if deployment is not None:
        return session.client.get_deployment(session.app, deployment, project=session.project)
    newest = session.client.list_deployments(session.app, project=session.project, limit=1).data
    if not newest:
        raise Failure("the app was never deployed", code=NOT_FOUND, resolution="See: swg deploy")
    return newest[0]


def _canary(deployment: DeploymentView) -> str:
    if deployment.canary is None:
        return ""
    steps = ", ".join(f"{step} %" for step in deployment.canary.steps)
    return f"{steps}, {deployment.canary.pause:g} s each; now {deployment.canary.weight} %"


def _took(record: StageView) -> str:
    if record.finished_at is None:
        return f"{age(record.started_at)}, goes on"
    return f"{(record.finished_at - record.started_at).total_seconds():.1f} s"
