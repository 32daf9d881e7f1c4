"""`swg scale`."""

from __future__ import annotations

import re

import click

from shellwego.cli.apps import settle
from shellwego.cli.rollout import follow
from shellwego.cli.session import Session, shared

_MOST = 1000
"""Instances of one process."""


@click.command()
@click.argument("counts", nargs=-1, metavar="[PROCESS=COUNT]...")
@click.option("--process", metavar="NAME", help="The process that --memory, --cpu and --disk are for. [web]")
@click.option("--memory", metavar="SIZE", help="Memory of each instance, such as 512m or 1gb.")
@click.option("--cpu", metavar="CPU", help="CPU of each instance, such as 500m (half a core) or 2.")
@click.option("--disk", metavar="SIZE", help="Writable space of each instance, such as 512m or 4gb.")
@click.option("--detach", is_flag=True, help="Return at once.")
@shared
def scale(
    session: Session,
    counts: tuple[str, ...],
    process: str | None,
    memory: str | None,
    cpu: str | None,
    disk: str | None,
    detach: bool,
) -> None:
    """Change how many instances run (`web=3`, or just `3`), and how large they are.

    A count is not part of a release: a rollback never undoes it. A new size is rolled out as a new release.
    """
    from shellwego.client.generated import ScaleBody, SizeBody  # noqa: PLC0415

    pairs = [_count(text) for text in counts]
    wanted = dict(pairs)
    if len(wanted) < len(pairs):
        raise click.UsageError("A process is named twice.")
    sizes = {process or "web": SizeBody(memory=memory, cpu=cpu, disk=disk)} if memory or cpu or disk else {}
    if not wanted and not sizes:
        raise click.UsageError("Nothing to change: give PROCESS=COUNT, --memory, --cpu or --disk.")
    accepted = session.client.scale_app(session.app, ScaleBody(counts=wanted, sizes=sizes), project=session.project)
    if accepted.deployment_id and not detach:
        deployment = session.client.get_deployment(session.app, accepted.deployment_id, project=session.project)
        follow(session, session.app, deployment)
    app = session.client.get_app(session.app, project=session.project)
    runs = app.release is not None and not app.stopped and any(app.counts.values())
    settle(session, app, "running" if runs else "stopped", detach=detach)


def _count(text: str) -> tuple[str, int]:
    name, equals, number = text.rpartition("=")
    if not re.fullmatch("[0-9]{1,9}", number) or int(number) > _MOST or (equals and not name):
        raise click.UsageError(f"{text[:80]!r} is not PROCESS=COUNT, with a COUNT from 0 to {_MOST}.")
    return name or "web", int(number)
