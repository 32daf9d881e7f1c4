"""What a deployment says of itself: the stage it is in, what it waits for, and why it failed.

No clock value and no count that moves by itself is in a reason, so that the same state gives the same words and a plan
that changes nothing writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shellwego.core.changes import Start
from shellwego.core.deployments import Deployment, Stage
from shellwego.core.images import blames_image
from shellwego.core.instances import SERVING, Desired, Instance, Phase
from shellwego.core.slots import has_failed
from shellwego.core.target import Target

CHECKS_DETAIL = "checks"
_ORDER = (Stage.PLACING, Stage.STARTING, Stage.CHECKING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    stage: Stage
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    stage: Stage
    reason: str
    reason_code: str
    log_tail: tuple[str, ...] = ()


def label(instance: Instance | Start) -> str:
    """`web.0`: how people name a slot."""
    return f"{instance.process}.{instance.slot}"


def progress(
    instances: Iterable[Instance],
    starts: Sequence[Start],
    target: Target,
    draining: Sequence[str],
    shifting: str = "waits for instances to take over from the old ones",
) -> Progress:
    """Stage and reason of a rollout that goes on, from the state after the plan: the least advanced instance counts.

    `draining` are the reasons of instances that still drain, `shifting` what is waited for where there is nothing else.
    """
    fresh = [i for i in instances if i.live and i.desired is Desired.SERVE and target.matches(i)]
    waits = [_wait_of(i) for i in fresh if i.phase not in SERVING]
    waits += [_to_be_placed(start) for start in starts]
    if waits:
        first = min(waits, key=lambda wait: (_ORDER.index(wait.stage), wait.reason))
        more = len(waits) - 1
        return Progress(stage=first.stage, reason=f"{first.reason} (and {more} more)" if more else first.reason)
    if draining:
        return Progress(stage=Stage.DRAINING, reason=min(draining))
    return Progress(stage=Stage.SHIFTING, reason=shifting)


def _wait_of(instance: Instance) -> Progress:
    name, seen = label(instance), instance.observed
    why = f": {seen.reason}" if seen.reason else ""
    match instance.phase:
        case Phase.PENDING:
            return _to_be_placed(instance, instance.placement_reason)
        case Phase.UNHEALTHY:
            return Progress(stage=Stage.CHECKING, reason=f"{name} is unhealthy{why}")
        case Phase.STARTING if seen.detail == CHECKS_DETAIL:
            return Progress(stage=Stage.CHECKING, reason=f"{name} has not passed its checks yet{why}")
        case _:
            doing = f" ({seen.detail})" if seen.detail else ""
            return Progress(stage=Stage.STARTING, reason=f"{name} starts{doing}{why}")


def _to_be_placed(place: Instance | Start, why: str = "") -> Progress:
    return Progress(stage=Stage.PLACING, reason=f"{label(place)}: {why or 'waits for a node'}")


def first_failure(instances: Iterable[Instance], target: Target, since: float) -> Instance | None:
    """The first instance of the new content that failed for good since the deployment began."""
    failed = [i for i in instances if has_failed(i, target) and i.phase_since >= since]
    return min(failed, key=lambda i: (i.phase_since, i.id), default=None)


def instance_failure(deployment: Deployment, instance: Instance) -> Failure:
    """The deployment's failure by an instance that cannot run."""
    seen = instance.observed
    times = f" ({seen.ends} times)" if seen.ends > 1 else ""
    return Failure(
        stage=_stage_of_failure(deployment, instance),
        reason=f"{label(instance)} failed: {seen.reason or 'it ended'}{times}",
        reason_code=seen.reason_code or "instance-failed",
        log_tail=seen.log_tail,
    )


def canary_failure(deployment: Deployment, instance: Instance) -> Failure:
    """The deployment's failure by an instance that served and does not any more."""
    seen = instance.observed
    ended = "is unhealthy" if instance.phase is Phase.UNHEALTHY else "ended"
    return Failure(
        stage=deployment.stage,
        reason=f"the canary {label(instance)} {ended}{f': {seen.reason}' if seen.reason else ''}",
        reason_code="canary-failed",
        log_tail=seen.log_tail,
    )


def _stage_of_failure(deployment: Deployment, instance: Instance) -> Stage:
    if blames_image(instance.observed.reason_code):
        return Stage.IMAGE
    return deployment.stage if deployment.stage in (Stage.CHECKING, Stage.SHIFTING, Stage.DRAINING) else Stage.STARTING


def time_out(deployment: Deployment, instances: Iterable[Instance], target: Target) -> Failure:
    """The deployment's failure by its deadline, in the words of what it last waited for."""
    waiting = [i for i in instances if i.live and target.matches(i) and i.phase not in SERVING]
    tails = (i.observed.log_tail for i in sorted(waiting, key=lambda i: i.id) if i.observed.log_tail)
    code = "no-capacity" if deployment.stage is Stage.PLACING else "timed-out"
    return Failure(
        stage=deployment.stage,
        reason=f"not done within {deployment.wait_timeout_s:g} s: {deployment.reason or 'nothing happened'}",
        reason_code=code,
        log_tail=next(tails, ()),
    )
