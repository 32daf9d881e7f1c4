"""The release command: what a release wants run once, to its end and well, before anything of it is rolled out.

Theory. It is a one-off run of the new release that carries its deployment's id. The deployment stays `pending` while it
runs, so it replaces nothing, and an older one in progress goes on. It is *started at most once*: the row of the run is made
in the transaction that plans it, a run that was given to a node is never made again, and its VM is tried once. What cannot
be known is whether it ran to its end on a node that was lost: the deployment then fails, and people decide. Two never run
at a time: a newer deployment waits until the one that it stopped is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from shellwego.core.changes import StartCommand, Stop
from shellwego.core.deployments import Deployment, Stage
from shellwego.core.images import blames_image
from shellwego.core.instances import Desired, Instance, Phase
from shellwego.core.progress import Failure


def run_of(deployment: Deployment, instances: Iterable[Instance]) -> Instance | None:
    """The run of its release command; None before it was made."""
    return next((i for i in instances if i.deployment_id == deployment.id), None)


def is_done(deployment: Deployment, run: Instance | None) -> bool:
    """Nothing is to be run, or it ended well."""
    if deployment.release_command is None:
        return True
    ended = run is not None and run.phase is Phase.STOPPED and run.desired is Desired.SERVE
    return ended and run is not None and run.observed.exit_code == 0


def failure(deployment: Deployment, run: Instance | None, now: float) -> Failure | None:
    """Why the deployment cannot begin any more; None where it may."""
    if is_done(deployment, run):
        return None
    if run is not None and _is_over(run):
        return _ended(run)
    if now < deployment.deadline:
        return None
    unplaced = run is not None and run.phase is Phase.PENDING
    return Failure(
        stage=deployment.stage,
        reason=f"not done within {deployment.wait_timeout_s:g} s: {deployment.reason or 'nothing happened'}",
        reason_code="no-capacity" if unplaced else "timed-out",
        log_tail=run.observed.log_tail if run else (),
    )


def _is_over(run: Instance) -> bool:
    """One that has no node yet is over as soon as it is told to stop."""
    return not run.live or (run.phase is Phase.PENDING and run.desired is Desired.STOP)


def _ended(run: Instance) -> Failure:
    seen = run.observed
    if run.phase is Phase.LOST:
        why = "its node was lost, so nobody knows whether it came to its end; it is not run again"
    elif run.desired is not Desired.SERVE:
        why = "somebody stopped it"
    else:
        why = seen.reason or "it ended"
    image = blames_image(seen.reason_code)
    return Failure(
        stage=Stage.IMAGE if image else Stage.RELEASE_COMMAND,
        reason=f"the release command failed: {why}",
        reason_code=seen.reason_code if image else "release-command-failed",
        log_tail=seen.log_tail,
    )


def start(deployment: Deployment, instances: Iterable[Instance]) -> StartCommand | None:
    """Make its run, once no other's is left."""
    known = list(instances)
    if deployment.release_command is None or run_of(deployment, known) or _others(deployment, known):
        return None
    return StartCommand(
        deployment_id=deployment.id, release_id=deployment.release_id, command=deployment.release_command
    )


def waits_for(deployment: Deployment, instances: Iterable[Instance]) -> str:
    """What the deployment waits for, from the state before its run is made or after."""
    known = list(instances)
    run = run_of(deployment, known)
    if run is None and _others(deployment, known):
        return "waits until the release command of another deployment has stopped"
    if run is None or run.phase is Phase.PENDING:
        return f"the release command: {(run and run.placement_reason) or 'waits for a node'}"
    return "runs the release command"


def _others(deployment: Deployment, instances: Iterable[Instance]) -> bool:
    """One that has no node yet is over as soon as it is told to stop."""
    return any(
        i.live and i.phase is not Phase.PENDING and i.deployment_id not in ("", deployment.id) for i in instances
    )


def orphans(instances: Iterable[Instance], waiting: Collection[str]) -> list[Stop]:
    """Stop what runs for a deployment that is over; `waiting` are the ids of those that are not."""
    left = [i for i in instances if i.deployment_id and i.live and i.desired is Desired.SERVE]
    return [Stop(instance_id=i.id, reason="its deployment is over") for i in left if i.deployment_id not in waiting]
