"""Deployments: ask for one, ask again for what was, call one off.

A use case here only says what is wanted, and hints; `loops.rollout` does all the rest. Which deployment is followed, and
when an older one is superseded, is the planner's to say: a newer one that still waits for its image replaces nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.announcements import announce
from shellwego.control.apps import configure, current_deployment, deploying, save
from shellwego.control.config import ConfigWish
from shellwego.control.images import ChosenImage, note_image, require_image
from shellwego.control.plans import done_already, plan_config
from shellwego.control.references import require_values
from shellwego.control.releases import find_release, freeze, refuse_failed, release_before
from shellwego.control.scopes import missing
from shellwego.control.unit import Unit
from shellwego.core.apps import App, Release
from shellwego.core.deployments import FINISHED, STRATEGIES, Deployment, DeploymentState, Stage
from shellwego.core.errors import ConflictError, FieldError, InvalidError
from shellwego.ports.store import Transaction

DEFAULT_WAIT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How a release is to be rolled out."""

    strategy: str = "rolling"
    wait_timeout_s: float = DEFAULT_WAIT_S
    rollback_on_failure: bool = True
    description: str = ""


def request_deployment(
    unit: Unit, app: App, wish: ConfigWish, image: ChosenImage | None, rollout: Rollout
) -> Deployment:
    """Freeze the app's config after the wish into a release, and ask for its rollout. Where that would change nothing, it is
    the deployment that made it so.

    `image` is what the wished reference means now; None keeps the image of the newest release.

    Raises:
        InvalidError: the config makes no sense, or the app has no image yet.
        ConflictError: the app is being destroyed.
    """
    refuse_deleting(app)
    planned = plan_config(unit.tx, app, wish, image)
    if image is not None:
        note_image(unit, app.project_id, image)
    done = done_already(unit.tx, app, planned)
    if done is not None:
        return done
    changed, release = freeze(unit, app, planned.config, planned.image_digest, rollout.description)
    return begin(unit, changed, release, rollout)


def change(unit: Unit, app: App, wish: ConfigWish, rollout: Rollout = Rollout()) -> Deployment | None:
    """Change the config and roll it out with the image that the app has; None where the app was never deployed, and
    then the config is changed for its first deployment.

    Raises:
        InvalidError, ConflictError: as `request_deployment`.
    """
    if not app.last_release_number:
        configure(unit, app, wish)
        return None
    return request_deployment(unit, app, wish, None, rollout)


def restart(unit: Unit, app: App, rollout: Rollout = Rollout()) -> Deployment:
    """Replace every instance by a new one of the same release, or of the one whose deployment is under way.

    That may still wait for its image: a restart of what runs meanwhile would take its place, and nobody asked for that.

    Raises:
        ConflictError: the app is stopped, was never deployed, or is being destroyed.
    """
    refuse_deleting(app)
    last = current_deployment(unit.tx, app)
    coming = last.release_id if last is not None and deploying(last) else app.release_id
    release = unit.tx.releases.get(coming) if app.release_id else None
    if release is None or app.stopped:
        raise ConflictError("not-running", f"the app {app.name} does not run", resolution="Deploy or start it.")
    announce(unit, app, "app.restarted")
    return begin(unit, replace(app, generation=app.generation + 1), release, rollout)


def rollback(unit: Unit, app: App, ref: str | None, rollout: Rollout = Rollout()) -> Deployment:
    """Make a new release with the content of an old one (None: the one before), and roll it out.

    Raises:
        NotFoundError: the app has no such release.
        ConflictError: there is none to go back to, it failed, or its image was deleted.
        InvalidError: a secret that it takes is gone.
    """
    refuse_deleting(app)
    old = release_before(unit.tx, app) if ref is None else find_release(unit.tx, app, ref)
    refuse_failed(unit.tx, app, old)
    require_image(unit.tx, app.project_id, old.image_digest)
    require_values(unit.tx, old.config)
    description = rollout.description or f"rollback to v{old.number}"
    changed, release = freeze(unit, app, old.config, old.image_digest, description)
    return begin(unit, changed, release, rollout)


def begin(unit: Unit, app: App, release: Release, rollout: Rollout) -> Deployment:
    """Queue the release's deployment and store the app; the planner supersedes what is under way when this can begin."""
    _check(rollout)
    deployment = unit.tx.deployments.insert(
        Deployment(
            id=unit.new_id("dep"),
            app_id=app.id,
            release_id=release.id,
            state=DeploymentState.PENDING,
            stage=Stage.ADMISSION,
            strategy=rollout.strategy,
            rollback_on_failure=rollout.rollback_on_failure,
            wait_timeout_s=rollout.wait_timeout_s,
            created_at=unit.now(),
            created_by=unit.caller.actor,
        )
    )
    save(unit, app)
    announce(unit, app, "app.deployment.requested", {"deployment": deployment.id, "release": f"v{release.number}"})
    return deployment


def cancel(unit: Unit, app: App, deployment: Deployment) -> Deployment:
    """Call it off; the app returns to its last good release.

    Raises:
        ConflictError: it is over already.
    """
    if deployment.state in FINISHED:
        raise ConflictError("deployment-finished", f"the deployment is over already: {deployment.state.value}")
    cancelled = unit.tx.deployments.update(
        replace(
            deployment,
            state=DeploymentState.CANCELLED,
            reason=f"cancelled by {unit.caller.actor}",
            reason_code="cancelled",
            finished_at=unit.now(),
        )
    )
    save(unit, app)
    announce(unit, app, "app.deployment.cancelled", {"deployment": deployment.id})
    return cancelled


def find_deployment(tx: Transaction, app: App, id_: str) -> Deployment:
    """A deployment of this app; raises `NotFoundError`."""
    deployment = tx.deployments.get(id_)
    if deployment is None or deployment.app_id != app.id:
        raise missing("deployment", id_)
    return deployment


def refuse_deleting(app: App) -> None:
    """Raise `ConflictError` for an app that is being destroyed."""
    if app.deleting:
        raise ConflictError("app-deleting", f"the app {app.name} is being destroyed")


def _check(rollout: Rollout) -> None:
    if rollout.strategy not in STRATEGIES:
        fault = FieldError("strategy", "unknown", f"one of {', '.join(sorted(STRATEGIES))}")
        raise InvalidError("no-such-strategy", f"strategy: {fault.message}", errors=(fault,))
    if not 1 <= rollout.wait_timeout_s <= 86_400:
        fault = FieldError("wait_timeout", "out-of-range", "between 1 and 86400 seconds")
        raise InvalidError("bad-timeout", f"wait_timeout: {fault.message}", errors=(fault,))
