"""Deployments: ask for one, ask again for what was, call one off.

A use case here only says what is wanted, and hints; `loops.rollout` does all the rest. Which deployment is followed, and
when an older one is superseded, is the planner's to say: a newer one that still waits for its image replaces nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType

from shellwego.control.announcements import announce
from shellwego.control.apps import configure, current_deployment, deploying, save, with_counts
from shellwego.control.config import ConfigWish, refuse
from shellwego.control.images import ChosenImage, note_image, require_image
from shellwego.control.mounts import refuse_shared, require_volumes
from shellwego.control.plans import DeployPlan, done_already, plan_config, plan_deploy
from shellwego.control.references import require_values
from shellwego.control.releases import find_release, freeze, refuse_failed, release_before
from shellwego.control.scopes import missing
from shellwego.control.unit import Unit
from shellwego.core.apps import App, Release
from shellwego.core.changes import recorded
from shellwego.core.deployments import (
    CANARY,
    FINISHED,
    STRATEGIES,
    CanaryPlan,
    Deployment,
    DeploymentState,
    Share,
    Stage,
    Strategy,
)
from shellwego.core.errors import ConflictError, FieldError
from shellwego.ports.store import Transaction

DEFAULT_WAIT_S = 300.0
MAX_WAIT_S = 86_400
MAX_STEPS = 10
"""Of a canary."""
_TICK_S = 1e-6
"""Between a deployment and the one after it at least; less is lost in a float that counts from 1970."""
NO_COUNTS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How a release is to be rolled out."""

    strategy: str = "rolling"
    wait_timeout_s: float = DEFAULT_WAIT_S
    rollback_on_failure: bool = True
    description: str = ""
    max_unavailable: Share | None = None
    surge: Share | None = None
    """None: the strategy's own."""
    canary: CanaryPlan | None = None
    """Of the strategy `canary` alone; None: 10 and 50 percent, with a minute each."""


def request_deployment(
    unit: Unit,
    app: App,
    wish: ConfigWish,
    image: ChosenImage | None,
    rollout: Rollout,
    *,
    counts: Mapping[str, int] = NO_COUNTS,
) -> Deployment:
    """Freeze the app's config after the wish into a release, and ask for its rollout. Where that would change nothing, it is
    the deployment that made it so.

    `image` is what the wished reference means now; None keeps the image of the newest release. `counts` are how many of
    some processes should run from now on; they are the app's, and in no release.

    Raises:
        InvalidError: the config makes no sense, or the app has no image yet.
        ConflictError: the app is being destroyed.
    """
    refuse_deleting(app)
    check_rollout(rollout)
    planned = plan_config(unit.tx, app, wish, image)
    counted = with_counts(unit.tx, app, planned.config, counts)
    if counted != app:
        announce(unit, app, "app.scaled", {name: str(count) for name, count in counts.items()})
    if image is not None:
        note_image(unit, app.project_id, image)
    done = done_already(unit.tx, counted, planned)
    if done is not None:
        if counted != app:
            save(unit, counted)
        return done
    changed, release = freeze(unit, counted, planned.config, planned.image_digest, rollout.description)
    return begin(unit, changed, release, rollout)


def plan(
    tx: Transaction,
    app: App,
    wish: ConfigWish,
    image: ChosenImage | None,
    rollout: Rollout,
    *,
    counts: Mapping[str, int] = NO_COUNTS,
) -> DeployPlan:
    """What `request_deployment` would change; raises as it does, and changes nothing."""
    check_rollout(rollout)
    strategy = STRATEGIES[rollout.strategy].paced(rollout.max_unavailable, rollout.surge)
    canary = _canary_of(rollout)
    return plan_deploy(
        tx, app, wish, image, counts=counts, strategy=strategy, weight=canary.weights[0] if canary else 100
    )


def _canary_of(rollout: Rollout) -> CanaryPlan | None:
    return (rollout.canary or CanaryPlan()) if rollout.strategy == CANARY.name else None


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
    again = replace(app, generation=app.generation + 1)
    return begin(unit, again, release, rollout, command=_still_waits(last, release))


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
    require_volumes(unit.tx, app, old.config)
    refuse_shared(old.config, app.counts)
    description = rollout.description or f"rollback to v{old.number}"
    changed, release = freeze(unit, app, old.config, old.image_digest, description)
    return begin(unit, changed, release, rollout)


def _still_waits(last: Deployment | None, release: Release) -> bool:
    """Whether the restart takes the place of a deployment of the release that has not begun, its command with it."""
    return last is not None and last.release_id == release.id and last.state is DeploymentState.PENDING


def begin(unit: Unit, app: App, release: Release, rollout: Rollout, *, command: bool = True) -> Deployment:
    """Queue the release's deployment and store the app; the planner supersedes what is under way when this can begin.

    `command`: run the release's command before, if it has one.
    """
    check_rollout(rollout)
    save(unit, app)  # first: what is charged is by how much the deployment goes beyond what is there without it
    last = current_deployment(unit.tx, app)
    # The newest is known by its time: where the store's clock was set back, this one is newer all the same.
    created_at = unit.now() if last is None else max(unit.now(), last.created_at + _TICK_S)
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
            max_unavailable=rollout.max_unavailable,
            surge=rollout.surge,
            canary=_canary_of(rollout),
            release_command=release.config.release_command if command else None,
            stages=recorded((), Stage.ADMISSION, "", unit.now()),
            created_at=created_at,
            created_by=unit.caller.actor,
        )
    )
    announce(unit, app, "app.deployment.requested", {"deployment": deployment.id, "release": f"v{release.number}"})
    return deployment


def cancel(unit: Unit, app: App, deployment: Deployment) -> Deployment:
    """Call it off; the app returns to its last good release.

    Raises:
        ConflictError: it is over already.
    """
    if deployment.state in FINISHED:
        raise ConflictError("deployment-finished", f"the deployment is over already: {deployment.state.value}")
    reason = f"cancelled by {unit.caller.actor}"
    cancelled = unit.tx.deployments.update(
        replace(
            deployment,
            state=DeploymentState.CANCELLED,
            reason=reason,
            reason_code="cancelled",
            finished_at=unit.now(),
            stages=recorded(deployment.stages, deployment.stage, reason, unit.now(), over=True),
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


def check_rollout(rollout: Rollout) -> None:
    """Refuse numbers with which nothing could be rolled out; raises `InvalidError` with every fault."""
    strategy = STRATEGIES.get(rollout.strategy)
    if strategy is None:
        fault = FieldError("strategy", "unknown", f"one of {', '.join(sorted(STRATEGIES))}")
        refuse("no-such-strategy", (fault,))
        return
    if not 1 <= rollout.wait_timeout_s <= MAX_WAIT_S:
        refuse("bad-timeout", (FieldError("wait_timeout", "out-of-range", f"between 1 and {MAX_WAIT_S} seconds"),))
    refuse("rollout-refused", (*_pace_faults(rollout, strategy), *_canary_faults(rollout)))


def _pace_faults(rollout: Rollout, strategy: Strategy) -> Iterator[FieldError]:
    own = {"max_unavailable": rollout.max_unavailable, "surge": rollout.surge}
    for name, share in own.items():
        if share is not None and not strategy.paceable:
            offered = " or ".join(sorted(each.name for each in STRATEGIES.values() if each.paceable))
            yield FieldError(
                name, "not-with-strategy", f"{strategy.name} has its own numbers; with {offered} it counts"
            )
    if rollout.max_unavailable == rollout.surge == Share():
        yield FieldError("surge", "never-ends", "with none beyond and none missing, no instance could be replaced")


def _canary_faults(rollout: Rollout) -> Iterator[FieldError]:
    plan = rollout.canary
    if plan is None:
        return
    if rollout.strategy != CANARY.name:
        yield FieldError("canary_steps", "not-with-strategy", f"only with the strategy {CANARY.name}")
    rising = all(low < high for low, high in pairwise((0, *plan.weights, 100)))
    if not 1 <= len(plan.weights) <= MAX_STEPS or not rising:
        message = f"1 to {MAX_STEPS} rising percentages between 1 and 99; the last may be followed by 100"
        yield FieldError("canary_steps", "bad-steps", message)
    if not 0 <= plan.pause_s * len(plan.weights) <= MAX_WAIT_S:
        yield FieldError("canary_pause", "out-of-range", f"all pauses together between 0 and {MAX_WAIT_S} seconds")
