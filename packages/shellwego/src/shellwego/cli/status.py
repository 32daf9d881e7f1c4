"""`swg status`: an app at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.apps import LIVE, all_instances, counts_text
from shellwego.cli.output import age, fields, show, table
from shellwego.cli.session import Session, shared

if TYPE_CHECKING:
    from shellwego.client.generated import AppView, DeploymentView


def unreleased(app: AppView, deployment: DeploymentView | None) -> str | None:
    """What to know where the app's config is not that of what runs, and nothing is under way that would change it."""
    if not app.config_differs or (deployment is not None and not deployment.finished):
        return None
    if deployment is not None and deployment.release > (app.release or 0):
        return (
            f"still has the changes of v{deployment.release}, which did not succeed; v{app.release} runs."
            " The next change deploys them again: mend them, or swg rollback (swg plan shows them)"
        )
    return f"has changes that v{app.release} has not: swg deploy rolls them out (swg plan shows them)"


def names_text(app: AppView) -> str:
    """By what the apps of its project find an app: itself, and each process where there are several."""
    processes = [process.name for process in app.config.processes]
    several = [f"{name}.{app.name}.internal" for name in processes] if len(processes) > 1 else []
    return ", ".join([f"{app.name}.internal", *several])


@click.command()
@click.argument("name", required=False)
@shared
def status(session: Session, name: str | None) -> None:
    """Show an app: its release, instances and last deployment."""
    import msgspec  # noqa: PLC0415

    client, project = session.client, session.project
    app = client.get_app(session.app_named(name), project=project)
    deployment = client.get_deployment(app.id, app.deployment_id, project=project) if app.deployment_id else None
    living = sorted(all_instances(session, app.id, LIVE), key=lambda each: (each.process, each.slot))
    document = {
        "app": msgspec.to_builtins(app),
        "deployment": msgspec.to_builtins(deployment),
        "instances": msgspec.to_builtins(living),
    }
    rows = [
        {
            "instance": f"{instance.process}.{instance.slot}",
            "id": instance.id,
            "phase": instance.phase,
            "release": f"v{instance.release}" if instance.release else None,
            "attempt": instance.attempt,
            "address": instance.address,
            "age": age(instance.created_at),
            "reason": instance.reason,
        }
        for instance in living
    ]
    if session.output != "table":
        show(session, document, rows, name="id")
        return
    pairs = {
        "app": app.name,
        "state": app.state,
        "url": app.url,
        "release": f"v{app.release}" if app.release else None,
        "image": app.config.image,
        "instances": counts_text(app),
        "names": names_text(app),
    }
    if deployment is not None:
        at = "" if deployment.state == "succeeded" else f" ({deployment.stage})"
        pairs["deployment"] = f"v{deployment.release} {deployment.state}{at} {deployment.reason}".strip()
    if remark := unreleased(app, deployment):
        pairs["config"] = remark
    click.echo(fields(pairs))
    if rows:
        click.echo("\n" + table(rows))
