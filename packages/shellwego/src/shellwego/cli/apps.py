"""`swg apps`: create, list, show, destroy, start, stop, restart."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import TIMED_OUT, UNHEALTHY, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, show, show_one, show_removed
from shellwego.cli.progress import StageProgress
from shellwego.cli.rollout import Choice, follow, rollout_options
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import AppView, InstanceView

_DESTROY_S = 120.0
_SETTLE_S = 300.0
_POLL_S = 2.0
"""Each look is two requests, and a token may make 100 a minute on the smallest plan."""
_STATES = {"running": "running,sleeping", "stopped": "stopped"}
_FAILED_LOOKS = 3
"""So often in a row an app must be seen to have failed: until the platform has planned a first instance, it seems so."""
LIVE = "pending,assigned,starting,healthy,unhealthy,asleep,stopping"
"""The phases of instances that have not ended."""


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def apps() -> None:
    """Create, list, show, destroy, start, stop and restart apps."""


def _row(app: AppView) -> dict[str, object]:
    return {
        "name": app.name,
        "state": app.state,
        "release": f"v{app.release}" if app.release else None,
        "instances": counts_text(app),
        "url": app.url,
        "age": age(app.created_at),
    }


def counts_text(app: AppView) -> str:
    """`web 2/3`: healthy and wanted of each process."""
    return ", ".join(f"{name} {app.running.get(name, 0)}/{count}" for name, count in app.counts.items())


def _show(session: Session, app: AppView) -> None:
    import msgspec  # noqa: PLC0415

    row = _row(app)
    pairs = {**row, "image": app.config.image, "id": app.id, "environment": ", ".join(app.config.env_names)}
    show_one(session, msgspec.to_builtins(app), pairs, name=app.name)


def all_apps(session: Session) -> list[AppView]:
    """Every app of the project."""
    return every(lambda cursor: session.client.list_apps(project=session.project, limit=MOST, cursor=cursor))


def all_instances(session: Session, app: str, phase: str | None) -> list[InstanceView]:
    """Every instance of an app, in these phases."""
    client, project = session.client, session.project
    return every(lambda cursor: client.list_instances(app, project=project, phase=phase, limit=MOST, cursor=cursor))


@apps.command("ls")
@shared
@about_no_app
def list_apps(session: Session) -> None:
    """List the apps of the project."""
    import msgspec  # noqa: PLC0415

    found = all_apps(session)
    show(session, msgspec.to_builtins(found), [_row(app) for app in found], empty="no apps yet: swg apps create NAME")


@apps.command("create")
@click.argument("name")
@shared
@about_no_app
def create_app(session: Session, name: str) -> None:
    """Make an app. Nothing of it runs before its first deploy."""
    from shellwego.client.generated import AppCreate  # noqa: PLC0415

    app = session.client.create_app(AppCreate(name=name), project=session.project)
    _show(session, app)
    session.say(f"next: swg deploy -a {app.name} -i IMAGE --port PORT")


@apps.command("show")
@click.argument("name", required=False)
@shared
def show_app(session: Session, name: str | None) -> None:
    """Show one app."""
    _show(session, session.client.get_app(session.app_named(name), project=session.project))


@apps.command("destroy")
@click.argument("name", required=False)
@click.option("--detach", is_flag=True, help="Return at once; the app is gone when it is no longer listed.")
@shared
def destroy_app(session: Session, name: str | None, detach: bool) -> None:
    """Stop everything of an app and remove it."""
    app = session.client.get_app(session.app_named(name), project=session.project)
    session.confirm(f"Destroy the app {app.name} and all of its releases?")
    session.client.destroy_app(app.id, project=session.project)
    if not detach:
        _until_gone(session, app)
    session.say(f"{app.name} is " + ("being destroyed" if detach else "gone"))
    show_removed(session, app.name)


def _until_gone(session: Session, app: AppView) -> None:
    from shellwego.client.transport import ApiProblem  # noqa: PLC0415

    progress = StageProgress(session)
    deadline = time.monotonic() + _DESTROY_S
    while time.monotonic() < deadline:
        progress.update("stopping", f"instances of {app.name}")
        try:
            app = session.client.wait_app(app.id, project=session.project, version=app.version, timeout=2)
        except ApiProblem as problem:
            if problem.status != 404:
                raise
            return
    raise Failure(f"{app.name} is still being destroyed", code=TIMED_OUT)


@apps.command("start")
@click.argument("name", required=False)
@click.option("--detach", is_flag=True, help="Return at once.")
@shared
def start_app(session: Session, name: str | None, detach: bool) -> None:
    """Run a stopped app again."""
    accepted = session.client.start_app(session.app_named(name), project=session.project)
    settle(session, accepted.app, "running", detach=detach)


@apps.command("stop")
@click.argument("name", required=False)
@click.option("--detach", is_flag=True, help="Return at once.")
@shared
def stop_app(session: Session, name: str | None, detach: bool) -> None:
    """Stop every instance of an app; its releases and counts are kept."""
    accepted = session.client.stop_app(session.app_named(name), project=session.project)
    settle(session, accepted.app, "stopped", detach=detach)


@apps.command("restart")
@click.argument("name", required=False)
@rollout_options
@shared
def restart_app(session: Session, name: str | None, choice: Choice, detach: bool) -> None:
    """Replace every instance by a new one of the same release, without losing a request."""
    from shellwego.client.generated import RolloutBody  # noqa: PLC0415

    body = RolloutBody(**asdict(choice))
    app = session.app_named(name)
    accepted = session.client.restart_app(app, body, project=session.project)
    if accepted.deployment_id and not detach:
        deployment = session.client.get_deployment(app, accepted.deployment_id, project=session.project)
        follow(session, app, deployment)
    _show(session, session.client.get_app(app, project=session.project))


def settle(session: Session, app: AppView, wanted: str, *, detach: bool) -> None:
    """Wait until the app is as wanted, then show it. One that sleeps is as good as one that runs.

    Raises:
        Failure: it failed instead, or not in time.
    """
    failed = 0
    progress = StageProgress(session)
    deadline = time.monotonic() + _SETTLE_S
    while not detach and not _settled(session, app, wanted):
        waits = _waits_for(session, app) if wanted == "running" else ""
        stage = "placing" if waits else ("starting" if wanted == "running" else "stopping")
        progress.update(stage, ": ".join(filter(None, (counts_text(app), waits))))
        if time.monotonic() > deadline:
            raise Failure(f"{app.name} is {app.state}, not {wanted}", code=TIMED_OUT, resolution="See: swg status")
        state = _STATES[wanted] if app.state not in _STATES[wanted].split(",") else None
        app = session.client.wait_app(app.id, project=session.project, state=state, timeout=_POLL_S)
        failed = failed + 1 if app.state == "failed" else 0
        if failed == _FAILED_LOOKS:
            raise Failure(f"{app.name} failed", code=UNHEALTHY, resolution=f"See: swg status -a {app.name}")
    _show(session, app)


def _waits_for(session: Session, app: AppView) -> str:
    """Why an instance has no node yet, if one has none."""
    found = session.client.list_instances(app.id, project=session.project, phase="pending", owner="app", limit=1).data
    return found[0].reason if found else ""


def _settled(session: Session, app: AppView, wanted: str) -> bool:
    if app.state not in _STATES[wanted].split(","):
        return False
    if wanted == "running":
        return all(app.running.get(name, 0) == count for name, count in app.counts.items())
    return not session.client.list_instances(app.id, project=session.project, phase=LIVE, owner="app", limit=1).data
