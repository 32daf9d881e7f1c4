"""Which release an app is to run now: the part of the planner that looks at deployments.

Theory. The target is derived, not stored: the release of the deployment that runs, else the last one that was rolled out in
full (the app's stable release). So a deployment that fails, is cancelled or is superseded needs no undoing: the next plan
aims elsewhere, and what still runs of the old release is found to be right again.

An instance that could not be made from its image says nothing of the release while the platform's copy of the image is
checked: where that was damaged, it is fetched again, and the deployment goes on.

A deployment that still waits for its image, or for its release command, replaces nothing. An older one that runs goes on
meanwhile; where there is none, the app *holds*: what serves is left as it is, whatever release it belongs to, until it is
known what comes next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from shellwego.core import canary, release_command
from shellwego.core.apps import wanted_counts
from shellwego.core.changes import MoveDeployment, StartCommand
from shellwego.core.deployments import ROLLING, CanaryStep, Deployment, DeploymentState, Stage, Strategy
from shellwego.core.images import ImageState, blames_image
from shellwego.core.instances import Instance, OwnerKind
from shellwego.core.progress import Failure, canary_failure, first_failure, instance_failure, time_out
from shellwego.core.rollout_facts import ImageFacts, RolloutFacts
from shellwego.core.routes import arrivals
from shellwego.core.slots import SlotFacts, census, staying
from shellwego.core.target import Target, stable_target

_NO_IMAGE = ImageFacts(state=ImageState.FAILED, reason="the image was deleted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where the app is to go, and what that says of its deployments."""

    target: Target
    strategy: Strategy = ROLLING
    hold: bool = False
    running: Deployment | None = None
    """The deployment whose release is the target."""
    weight: int = 100
    """Percent of the target that may be there by now; below 100 the running deployment is a canary."""
    step: CanaryStep | None = None
    """How far the running canary has come by now."""
    mending: str = ""
    """The image that is checked or fetched again before the running deployment can go on."""
    moves: tuple[MoveDeployment, ...] = ()
    commands: tuple[StartCommand, ...] = ()
    deadlines: tuple[float, ...] = ()


def steer(facts: RolloutFacts, now: float) -> Course:
    """Follow the newest deployment that can begin; without one, keep to the stable release."""
    queue = sorted(facts.deployments, key=lambda d: (d.created_at, d.id))
    moves: list[MoveDeployment] = []
    while queue and queue[-1].state is DeploymentState.PENDING:
        failure = _cannot_begin(facts, queue[-1], now)
        if failure is None:
            break
        moves.append(_end(queue.pop(), failure, DeploymentState.FAILED))
    if not queue:
        return replace(_settled(facts), moves=tuple(moves))
    newest, older = queue[-1], queue[:-1]
    waits = _what_it_waits_for(facts, newest)
    course = _begin(facts, newest, older, now) if waits is None else _wait(facts, newest, older, waits, now)
    return replace(course, moves=(*moves, *course.moves))


def wanted_of(facts: RolloutFacts, target: Target) -> dict[str, int]:
    """How many instances of each process of the target should run."""
    return wanted_counts(facts.app, target.release.config) if target.release else {}


def slot_facts(facts: RolloutFacts, course: Course, process: str, wanted: int) -> SlotFacts:
    """The part of the facts that concerns one process. Those of its old instances that have volumes which new ones need stop
    first, whatever the strategy; beside a canary of the others they wait until that is promoted."""
    instances = tuple(i for i in facts.instances if i.process == process and i.owner is OwnerKind.APP)
    yielding = _with_what_is_needed(facts, course, instances)
    return SlotFacts(
        process=process,
        wanted=wanted,
        target=course.target,
        strategy=course.strategy,
        instances=instances,
        releases=facts.releases,
        hold=course.hold and not facts.app.stopped,
        weight=0 if yielding and course.weight < 100 else course.weight,
        yielding=yielding,
    )


def _with_what_is_needed(facts: RolloutFacts, course: Course, instances: Iterable[Instance]) -> frozenset[str]:
    """Which of these have to go before all that the target needs can begin: a volume has one owner."""
    release = course.target.release
    if release is None or not release.config.mounts:
        return frozenset()
    needed = {mount.volume_id for mount in release.config.mounts}
    old = (i for i in instances if i.live and not course.target.matches(i))
    releases = ((i, facts.releases.get(i.release_id)) for i in old)
    return frozenset(i.id for i, each in releases if each is not None and needed & each.config.volumes_of(i.process))


def all_ready(facts: RolloutFacts, course: Course) -> bool:
    """Every wanted instance of the target is ready, and may be there."""
    wanted = wanted_of(facts, course.target)
    return course.weight == 100 and all(
        census(slot_facts(facts, course, name, count)).ready >= count for name, count in wanted.items()
    )


def _settled(facts: RolloutFacts) -> Course:
    return Course(target=stable_target(facts.app, facts.releases))


def _cannot_begin(facts: RolloutFacts, deployment: Deployment, now: float) -> Failure | None:
    image = facts.images.get(deployment.release_id, _NO_IMAGE)
    if image.state is ImageState.FAILED:
        return _no_image(image)
    if image.state is not ImageState.READY and now >= deployment.deadline:
        return time_out(deployment, (), _settled(facts).target)
    return release_command.failure(deployment, release_command.run_of(deployment, facts.instances), now)


def _no_image(image: ImageFacts) -> Failure:
    name = f" {image.reference}" if image.reference else ""
    reason = f"the image{name} cannot be had: {image.reason or 'no reason was given'}"
    return Failure(stage=Stage.IMAGE, reason=reason, reason_code="image-failed")


def _what_it_waits_for(facts: RolloutFacts, newest: Deployment) -> MoveDeployment | None:
    """What is to be told of a deployment that cannot begin yet; None where it can, or has."""
    if newest.state is not DeploymentState.PENDING:
        return None
    image = facts.images.get(newest.release_id, _NO_IMAGE)
    if image.state is not ImageState.READY:
        stage, reason = Stage.IMAGE, f"fetches the image {image.reference}".rstrip()
    elif release_command.is_done(newest, release_command.run_of(newest, facts.instances)):
        return None
    else:
        stage, reason = Stage.RELEASE_COMMAND, release_command.waits_for(newest, facts.instances)
    return MoveDeployment(deployment_id=newest.id, state=DeploymentState.PENDING, stage=stage, reason=reason)


def _wait(
    facts: RolloutFacts, newest: Deployment, older: Iterable[Deployment], waits: MoveDeployment, now: float
) -> Course:
    """The newest cannot begin yet: what runs goes on, or is held."""
    running = [d for d in older if d.state is DeploymentState.IN_PROGRESS]
    course = _follow(facts, running[-1], now) if running else _settled(facts)
    superseded = _supersede(d for d in older if d not in running[-1:])
    ready = waits.stage is Stage.RELEASE_COMMAND
    command = release_command.start(newest, facts.instances) if ready else None
    return replace(
        course,
        hold=course.running is None,
        moves=(*superseded, *course.moves, *_if_new(newest, waits)),
        commands=(command,) if command else (),
        deadlines=(*course.deadlines, newest.deadline),
    )


def _begin(facts: RolloutFacts, newest: Deployment, older: Iterable[Deployment], now: float) -> Course:
    begun: tuple[MoveDeployment, ...] = ()
    if newest.state is DeploymentState.PENDING:
        begun = (
            MoveDeployment(deployment_id=newest.id, state=DeploymentState.IN_PROGRESS, stage=Stage.PLACING, reason=""),
        )
        newest = replace(newest, state=DeploymentState.IN_PROGRESS, stage=Stage.PLACING, reason="", started_at=now)
    course = _follow(facts, newest, now)
    return replace(course, moves=(*_supersede(older), *begun, *course.moves))


def _follow(facts: RolloutFacts, running: Deployment, now: float) -> Course:
    """Aim at the release of a deployment in progress, or turn back where it failed."""
    started = running.started_at if running.started_at is not None else running.created_at
    target = Target(release=facts.releases[running.release_id], generation=facts.app.generation, failures_since=started)
    strategy = facts.strategies.get(running.strategy, ROLLING).paced(running.max_unavailable, running.surge)
    course = Course(target=target, strategy=strategy, running=running, deadlines=(running.deadline,))
    own = [i for i in facts.instances if i.owner is OwnerKind.APP]
    failed = first_failure(own, target, started)
    image = facts.images.get(running.release_id, _NO_IMAGE)
    blamed = failed is not None and blames_image(failed.observed.reason_code)
    mending = blamed and image.state not in (ImageState.READY, ImageState.FAILED)
    if failed is not None and not mending:
        lost = blamed and image.state is ImageState.FAILED
        return _turn_back(facts, running, _no_image(image) if lost else instance_failure(running, failed))
    course = _stepped(facts, course, running, own, now)
    broken = canary.first_broken(own, target) if course.weight < 100 else None
    if broken is not None:
        return _turn_back(facts, running, canary_failure(running, broken))
    if now >= running.deadline and not all_ready(facts, course):
        return _turn_back(facts, running, time_out(running, own, target))
    return replace(course, mending=f"the image {image.reference}".rstrip()) if mending else course


def _stepped(facts: RolloutFacts, course: Course, running: Deployment, own: Sequence[Instance], now: float) -> Course:
    """The course of a canary at its present step; of other deployments it is as it was."""
    plan, release = running.canary, course.target.release
    wanted = wanted_of(facts, course.target)
    if plan is None or release is None or canary.weight_of(running, own, course.target, wanted) == 100:
        return course

    def holds(weight: int) -> bool:
        at = replace(course, weight=weight)
        slots = [slot_facts(facts, at, name, count) for name, count in wanted.items()]
        fresh = [i for slot in slots for i in staying(slot)]
        served = not arrivals(fresh, release.config, facts.edges, now)
        return served and all(census(slot).ready >= slot.part for slot in slots)

    step = canary.stepped(running.step, plan, holds, now)
    over = () if step.since is None else (step.since + plan.pause_s,)
    return replace(
        course,
        step=step,
        weight=canary.weight_of(replace(running, step=step), own, course.target, wanted),
        deadlines=(*course.deadlines, *over),
    )


def _turn_back(facts: RolloutFacts, failed: Deployment, failure: Failure) -> Course:
    """To the stable release, or to nothing where there is none; no release is made for it."""
    back = facts.app.stable_release_id not in ("", failed.release_id)
    rolled_back = failed.rollback_on_failure and back
    state = DeploymentState.ROLLED_BACK if rolled_back else DeploymentState.FAILED
    return replace(_settled(facts), moves=(_end(failed, failure, state),))


def _supersede(older: Iterable[Deployment]) -> tuple[MoveDeployment, ...]:
    return tuple(
        _end(
            deployment,
            Failure(stage=deployment.stage, reason="a newer deployment took its place", reason_code="superseded"),
            DeploymentState.SUPERSEDED,
        )
        for deployment in older
    )


def _end(deployment: Deployment, failure: Failure, state: DeploymentState) -> MoveDeployment:
    return MoveDeployment(
        deployment_id=deployment.id,
        state=state,
        stage=failure.stage,
        reason=failure.reason,
        reason_code=failure.reason_code,
        log_tail=failure.log_tail,
        cut_connections=deployment.cut_connections,
    )


def _if_new(deployment: Deployment, move: MoveDeployment) -> tuple[MoveDeployment, ...]:
    told = (deployment.state, deployment.stage, deployment.reason)
    return () if told == (move.state, move.stage, move.reason) else (move,)
