"""What an answer shows of a resource beyond its own row: state, numbers of releases, what runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shellwego.api.rest.schemas.apps import AppView, app_view
from shellwego.api.rest.schemas.deployments import DeploymentView, ReleaseView, deployment_view, release_view
from shellwego.api.rest.schemas.resources import InstanceView, instance_view
from shellwego.control.apps import current_deployment, deploying, failed
from shellwego.control.instances import live_instances
from shellwego.control.releases import config_differs, outcomes
from shellwego.core.apps import App, Release
from shellwego.core.appstate import app_state
from shellwego.core.deployments import FINISHED, Deployment, DeploymentState
from shellwego.core.instances import Instance, OwnerKind
from shellwego.core.release_command import run_of
from shellwego.ports.store import Transaction, eq


@dataclass(frozen=True, slots=True)
class AppUrl:
    """How apps are reached from outside: the edge's HTTP port."""

    http_port: int = 80

    def of(self, app: App) -> str:
        return f"http://{app.hostname}" + ("" if self.http_port == 80 else f":{self.http_port}")


def show_app(tx: Transaction, app: App, url: AppUrl) -> AppView:
    """An app with its state, as judged now."""
    release = tx.releases.get(app.release_id) if app.release_id else None
    instances = live_instances(tx, app)
    deployment = current_deployment(tx, app)
    state = app_state(
        app,
        release.config if release else None,
        instances,
        deploying=deploying(deployment),
        failed=failed(deployment),
    )
    running = Counter(instance.process for instance in instances if instance.serving)
    return app_view(
        app,
        state=state.value,
        url=url.of(app),
        running=dict(running),
        release=release.number if release else None,
        config_differs=config_differs(tx, app, release),
        deployment=deployment,
    )


def show_deployment(tx: Transaction, deployment: Deployment) -> DeploymentView:
    """A deployment with the number of its release, and the run of its release command."""
    release = tx.releases.get(deployment.release_id)
    runs = (
        tx.instances.select(eq("app_id", deployment.app_id), eq("owner", OwnerKind.RUN))
        if deployment.release_command is not None
        else []
    )
    run = run_of(deployment, runs)
    return deployment_view(
        deployment,
        release.number if release else 0,
        finished=deployment.state in FINISHED,
        run_id=run.id if run else None,
    )


def show_releases(tx: Transaction, app: App, releases: Sequence[Release]) -> list[ReleaseView]:
    """Releases of an app, with how their rollouts went and who made them."""
    states = outcomes(tx, app, releases)
    users = {user.id: user for release in releases if (user := tx.users.get(release.created_by))}
    return [
        release_view(
            release,
            app,
            state=states.get(release.id, DeploymentState.PENDING).value,
            email=users[release.created_by].email if release.created_by in users else None,
        )
        for release in releases
    ]


def show_instance(tx: Transaction, instance: Instance) -> InstanceView:
    """An instance with its release. One that lives on because a later release has the same content is of that release."""
    release = tx.releases.get(instance.release_id)
    app = tx.apps.get(instance.app_id) if instance.live else None
    current = tx.releases.get(app.release_id) if app else None
    if current is not None and current.content_hash == instance.content_hash:
        release = current
    return instance_view(instance, release)
