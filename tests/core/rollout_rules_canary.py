"""What must hold of canaries in every history: the world keeps its own account of how long a step has held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from shellwego.core.deployments import FINISHED, Deployment, DeploymentState
from shellwego.core.instances import Desired, Eviction, Instance, Phase, Sleep
from shellwego.core.rollout_facts import RolloutFacts

if TYPE_CHECKING:
    from tests.core.rollout_platform import Platform
    from tests.core.rollout_rules import Course


def check(world: Platform, facts: RolloutFacts, before: Mapping[str, Instance], course: Course) -> None:
    """Rules on the steps that a plan takes, and on what it leaves of a canary."""
    for was in facts.deployments:
        now = world.deployments[was.id]
        if was.canary is not None:
            _check_steps(world, before, was, now)
            _check_given_up(world, before, was, now)
    if course.weight < 100:
        _check_part(world, before, course)


def _check_steps(world: Platform, before: Mapping[str, Instance], was: Deployment, now: Deployment) -> None:
    """A step is left only after it held for its pause."""
    number, since = world.held.get(was.id, (0, None))
    assert now.step.number >= was.step.number == number, "steps go forward"
    assert now.canary is not None
    while True:
        holds = number < len(now.canary.weights) and _holds(world, before.values(), now, now.canary.weights[number])
        since = None if not holds else world.now if since is None else since
        if number == now.step.number:
            break
        assert since is not None, "a step was left that did not hold"
        assert world.now >= since + now.canary.pause_s, "a step was left before its pause was over"
        number, since = number + 1, None
    world.held[was.id] = number, since
    if now.state is DeploymentState.SUCCEEDED:
        assert not _is_canary(world, before.values(), now), "succeeded in the middle of its steps"
    if now.state is DeploymentState.IN_PROGRESS and _is_canary(world, before.values(), now):
        late = since is not None and world.now >= since + now.canary.pause_s
        assert not late, "a step that held for its pause was not left"
        assert (now.step.since is None) == (since is None), "a pause goes on though its step does not hold"
    elif now.state is DeploymentState.IN_PROGRESS:
        assert not now.reason.startswith("canary step"), "takes its steps with nothing beside it"


def _holds(world: Platform, instances: Iterable[Instance], deployment: Deployment, weight: int) -> bool:
    """Every process has its part ready and served, whatever becomes of those that the plan has just sent away."""
    release = world.releases[deployment.release_id]
    ready = [
        i
        for i in instances
        if i.serving
        and world.instances[i.id].desired is Desired.SERVE
        and i.node_id not in world.down
        and i.eviction is not Eviction.FORCED
        and (i.content_hash, i.generation) == (release.content_hash, world.app.generation)
    ]
    wanted = {} if world.app.stopped else {p.name: world.app.counts.get(p.name, 1) for p in release.config.processes}
    served = all(_is_served(world, i) for i in ready)
    return served and all(sum(i.process == name for i in ready) >= -(-n * weight // 100) for name, n in wanted.items())


def _is_served(world: Platform, instance: Instance) -> bool:
    """Every edge that holds its lease sends to it, or had its time."""
    if not world.has_port(instance) or instance.phase is not Phase.HEALTHY or instance.sleep is not Sleep.AWAKE:
        return True
    held = [edge.row(world.now) for edge in world.edges]
    told = [edge for edge in held if edge.lease_until > world.now]
    version = instance.routed_version
    late = world.now >= instance.phase_since + 60.0
    return late or all(version is not None and edge.applied_version >= version for edge in told)


def _is_canary(world: Platform, instances: Iterable[Instance], deployment: Deployment) -> bool:
    """It still has something old beside it, and steps to go."""
    release = world.releases[deployment.release_id]
    names = {p.name for p in release.config.processes if world.app.counts.get(p.name, 1) and not world.app.stopped}
    staying = [i for i in instances if i.node_id not in world.down and i.eviction is not Eviction.FORCED]
    old = [i for i in staying if i.serving and i.process in names]
    same = (release.content_hash, world.app.generation)
    return deployment.weight < 100 and any((i.content_hash, i.generation) != same for i in old)


def _check_given_up(world: Platform, before: Mapping[str, Instance], was: Deployment, now: Deployment) -> None:
    """An instance that does not serve any more ends a canary, and nothing else by this name does."""
    release = world.releases[was.release_id]
    same = (release.content_hash, world.app.generation)
    sick = [
        i
        for i in before.values()
        if i.phase is Phase.UNHEALTHY
        and i.desired is Desired.SERVE
        and i.node_id not in world.down
        and (i.content_hash, i.generation) == same
    ]
    if now.reason_code == "canary-failed" and was.state is DeploymentState.IN_PROGRESS:
        assert sick, "given up without a reason"
    if was.state is DeploymentState.IN_PROGRESS and _is_canary(world, before.values(), now):
        assert not sick or now.state in FINISHED, "a sick canary goes on"


def _check_part(world: Platform, before: Mapping[str, Instance], course: Course) -> None:
    """No more of the new than the step's part, but for what is missing of the old; and nothing is missing in all."""
    for process, wanted in course.wanted.items():
        meant = [i for i in world.own() if i.process == process and i.live and i.desired is Desired.SERVE]
        fresh = [i for i in meant if world.is_fresh(i, course.target) and not i.evicted]
        part = -(-wanted * course.weight // 100)
        assert len(meant) >= wanted, "nobody fills in for an old one that is missing"
        if any(i.id not in before for i in fresh):
            old = sum(not world.is_fresh(i, course.target) for i in meant)
            assert len(fresh) <= max(part, wanted - old), "more of the new than its part"
