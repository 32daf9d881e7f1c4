"""Canaries: a new release gets a rising part of the requests, and is given up at the first sign that it does not do.

Theory. A step is a weight: the percent of the requests, and of the wanted instances (at least one of each process), that
the new release may have. Until the last step is done the old instances stay, one full set of them, so that giving up costs
no capacity. A step *holds* while all of it is ready and the edges serve it; a step that held for its pause is followed by
the next one, and a break begins the pause anew. After the last step the canary is *promoted*: it goes on as a rolling
deployment. Where no old instance is left to compare with, there is nothing to wait for.

An instance that served and does not any more (it fails its checks, or its workload ended) ends the deployment at once.
One that never came up is left to its restarts, as in any deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from shellwego.core.deployments import CanaryPlan, CanaryStep, Deployment
from shellwego.core.instances import Desired, Eviction, Instance, OwnerKind, Phase
from shellwego.core.routing import EVEN_WEIGHT, MAX_WEIGHT
from shellwego.core.target import Target

_BROKEN = frozenset({Phase.UNHEALTHY, Phase.STARTING})


def weight_of(deployment: Deployment, instances: Iterable[Instance], target: Target, wanted: Mapping[str, int]) -> int:
    """Percent of each process that may be of the new release now: 100 once it is promoted, or has nothing beside it."""
    return deployment.weight if any(_is_beside(i, target, wanted) for i in instances) else 100


def _is_beside(instance: Instance, target: Target, wanted: Mapping[str, int]) -> bool:
    """An old instance that the steps will keep. One that is forced to leave its node goes at once."""
    return (
        instance.owner is OwnerKind.APP
        and instance.serving
        and instance.eviction is not Eviction.FORCED
        and wanted.get(instance.process, 0) > 0
        and not target.matches(instance)
    )


def stepped(step: CanaryStep, plan: CanaryPlan, holds: Callable[[int], bool], now: float) -> CanaryStep:
    """How far the canary has come at `now`; `holds` says whether all of a weight is ready and served."""
    while step.number < len(plan.weights):
        if not holds(plan.weights[step.number]):
            return CanaryStep(number=step.number)
        since = now if step.since is None else step.since
        if now < since + plan.pause_s:
            return CanaryStep(number=step.number, since=since)
        step = CanaryStep(number=step.number + 1)
    return step


def first_broken(instances: Iterable[Instance], target: Target) -> Instance | None:
    """The first of the new instances that served and does not any more."""
    broken = [i for i in instances if _is_broken(i) and target.matches(i)]
    return min(broken, key=lambda i: (i.phase_since, i.id), default=None)


def _is_broken(instance: Instance) -> bool:
    if instance.desired is not Desired.SERVE or instance.phase not in _BROKEN:
        return False
    served = instance.routed_version is not None and instance.observed.ends > 0
    return instance.phase is Phase.UNHEALTHY or served


def described(step: CanaryStep, plan: CanaryPlan) -> str:
    """Where a canary is, for people. No time that is left: a reason that moves by itself would be written all the time."""
    at = f"canary step {step.number + 1} of {len(plan.weights)}, {plan.weights[step.number]} % of the requests"
    return f"{at}: held for {plan.pause_s:g} s" if step.since is not None else f"{at}: not all of it is served yet"


def edge_weights(new: Sequence[str], old: Sequence[str], weight: int, wanted: int) -> dict[str, int]:
    """Weights by instance, so that the new ones get `weight` percent of the requests together; but each of them no more
    than its part of `wanted`, while the others are on their way.

    Where there are only old, or only new ones, all are equal.
    """
    if not new or not old:
        return dict.fromkeys((*new, *old), EVEN_WEIGHT)
    percent = max(1, min(weight, 100 * len(new) // max(wanted, 1)))
    each_new, each_old = percent * len(old), (100 - percent) * len(new)
    least, most = sorted((each_new, each_old))
    scale = min(EVEN_WEIGHT / least, MAX_WEIGHT / most)
    scaled_new, scaled_old = (max(1, round(each * scale)) for each in (each_new, each_old))
    return {**dict.fromkeys(new, scaled_new), **dict.fromkeys(old, scaled_old)}
