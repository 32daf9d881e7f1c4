"""The one planner: from what an app should be and what was seen of it, to the next changes. Pure; `now` is an argument.

Theory. A plan is one step, made again whenever something was reported or some time has passed; it keeps nothing between two
steps. `core.course` says which release is the target, `core.slots` brings each process there, and what is left here is the
way out of instances (drain, then stop), and the judgement of the deployment that runs.

A deployment *is done* when every wanted instance is ready, the edges send it requests, and everything else was told to
stop. It *fails* when an instance of the new content fails for good (its node has spent the retries), or at its deadline
while not all of the new is ready. Draining and new routes never fail it: they are bounded by themselves. Outside deployments
failed instances are replaced, ever more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shellwego.core import canary, release_command
from shellwego.core.changes import (
    Aim,
    Change,
    Drain,
    Forget,
    Lose,
    MoveDeployment,
    Start,
    Stop,
    Suspend,
    after,
    move_deployment,
)
from shellwego.core.course import Course, all_ready, slot_facts, steer, wanted_of
from shellwego.core.deployments import FINISHED, Deployment, DeploymentState, Stage
from shellwego.core.instances import Desired, Instance, OwnerKind, Phase, Sleep
from shellwego.core.progress import label, progress
from shellwego.core.publishing import SETTLE_S
from shellwego.core.rollout_facts import ImageFacts, RolloutFacts
from shellwego.core.routes import Arrival, Drainage, arrivals, drained, service_port
from shellwego.core.slots import DRAINABLE, plan_slots, remove

__all__ = ["ImageFacts", "RolloutFacts", "RolloutPlan", "plan_rollout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    changes: tuple[Change, ...] = ()
    """In the order in which they are to be made."""
    next_at: float | None = None
    """When time alone gives another plan; None: only news can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Changes to instances, and when there may be further ones."""

    changes: tuple[Change, ...] = ()
    times: tuple[float | None, ...] = ()


def plan_rollout(facts: RolloutFacts, now: float) -> RolloutPlan:
    """The changes that bring the app one step nearer to what is wanted of it."""
    lost = _lose(facts)
    if lost:
        facts = replace(facts, instances=tuple(after(facts.instances, lost, now)))
    if facts.app.deleting:
        return _plan_deletion(facts, lost, now)
    course = steer(facts, now)
    arrivals = _arrivals(facts, course, now)
    waited = _Step(times=tuple(arrival.until for arrival in arrivals))
    filled = _fill(facts, course, now)
    leaving = frozenset(change.instance_id for change in filled.changes if isinstance(change, Drain | Stop))
    step = _join(_finish(facts), _drain(facts, leaving, now), filled, waited)
    judged = _judge(facts, course, step, now)
    due = [moment for moment in (*step.times, *course.deadlines) if moment is not None and moment > now]
    changes = (*lost, *step.changes, *_over(facts, course), *course.commands, *course.moves, *judged)
    return RolloutPlan(changes=changes, next_at=min(due, default=None))


def _over(facts: RolloutFacts, course: Course) -> list[Stop]:
    """Release commands of deployments that are over stop."""
    ended = {move.deployment_id for move in course.moves if move.state in FINISHED}
    return release_command.orphans(facts.instances, {d.id for d in facts.deployments} - ended)


def _lose(facts: RolloutFacts) -> tuple[Lose, ...]:
    """Instances on dead nodes are lost, whatever was wanted of them."""
    return tuple(
        Lose(instance_id=i.id, reason="its node is down")
        for i in facts.instances
        if i.live and i.node_id and i.node_id in facts.dead_nodes
    )


def _finish(facts: RolloutFacts) -> _Step:
    """What is to stop and never reached a node is over."""
    waiting = [i for i in facts.instances if i.phase is Phase.PENDING and i.desired is Desired.STOP]
    return _Step(changes=tuple(Stop(instance_id=i.id, reason="never placed") for i in waiting))


def _drain(facts: RolloutFacts, leaving: frozenset[str], now: float) -> _Step:
    """Instances that left the routes are stopped, or put to sleep, once they are empty. Those that are leaving for good
    need no sleep."""
    changes: list[Change] = []
    times = []
    for instance in facts.instances:
        if not instance.live or not _leaves(instance) or instance.id in leaving:
            continue
        state = _drainage(facts, instance, now)
        if not state.done:
            times.append(state.until)
        elif instance.desired is Desired.DRAIN:
            changes.append(Stop(instance_id=instance.id, reason="drained", cut=state.cut, silent_edges=state.silent))
        else:
            changes.append(
                Suspend(instance_id=instance.id, reason="as asked", cut=state.cut, silent_edges=state.silent)
            )
    return _Step(changes=tuple(changes), times=tuple(times))


def _leaves(instance: Instance) -> bool:
    """It finishes what it has: for good, or to sleep."""
    dozes = instance.desired is Desired.SERVE and instance.sleep is Sleep.DOZING
    return instance.desired is Desired.DRAIN or dozes


def _drainage(facts: RolloutFacts, instance: Instance, now: float) -> Drainage:
    release = facts.releases.get(instance.release_id)
    served = release is not None and instance.owner is OwnerKind.APP and service_port(release.config, instance.process)
    # What is to sleep waits also where its VM ended: an edge that has not heard of it sends requests to the next one.
    idle = instance.phase not in DRAINABLE if instance.desired is Desired.DRAIN else not served
    if idle:
        return Drainage(done=True)
    state = drained(instance, facts.edges, release.config.drain_timeout_s if release else 0.0, now)
    settled = (instance.drain_since or 0.0) + SETTLE_S
    if state.done and instance.process in facts.published and now < settled:
        return Drainage(done=False, reason="waits until nodes lead nothing new to it", until=settled)
    return state


def _fill(facts: RolloutFacts, course: Course, now: float) -> _Step:
    """Each process on its own; those that the target does not have any more go last."""
    wanted = wanted_of(facts, course.target)
    leftover = {i.process for i in facts.instances if i.live and i.owner is OwnerKind.APP} - wanted.keys()
    parts = [slot_facts(facts, course, name, count) for name, count in sorted(wanted.items())]
    if leftover:
        kept = course.target.release is not None and not facts.app.stopped and not all_ready(facts, course)
        parts += [replace(slot_facts(facts, course, name, 0), keep_serving=kept) for name in sorted(leftover)]
    plans = [plan_slots(part, now) for part in parts]
    return _Step(
        changes=tuple(change for plan in plans for change in plan.changes),
        times=tuple(plan.next_at for plan in plans),
    )


def _join(*steps: _Step) -> _Step:
    return _Step(
        changes=tuple(change for step in steps for change in step.changes),
        times=tuple(moment for step in steps for moment in step.times),
    )


def _arrivals(facts: RolloutFacts, course: Course, now: float) -> list[Arrival]:
    """Of a running deployment: what the edges do not serve yet of the target's ready instances."""
    release = course.target.release
    if course.running is None or release is None:
        return []
    own = [i for i in facts.instances if i.owner is OwnerKind.APP and course.target.matches(i)]
    return arrivals(own, release.config, facts.edges, now)


def _judge(facts: RolloutFacts, course: Course, step: _Step, now: float) -> list[Change]:
    """What follows for the running deployment and the app's aim."""
    changes: list[Change] = []
    app, running = facts.app, course.running
    aim = Aim(
        release_id=course.target.release.id if course.target.release else "",
        stable_release_id=app.stable_release_id,
        stable_generation=app.stable_generation,
    )
    if running is not None:
        move = _move_running(facts, course, running, step, now)
        if move_deployment(running, move, now) != running:
            changes.append(move)
        if move.state is DeploymentState.SUCCEEDED:
            aim = replace(aim, stable_release_id=running.release_id, stable_generation=app.generation)
    if course.hold:
        return changes
    told = Aim(
        release_id=app.release_id,
        stable_release_id=app.stable_release_id,
        stable_generation=app.stable_generation,
    )
    return changes if aim == told else [*changes, aim]


def _move_running(facts: RolloutFacts, course: Course, running: Deployment, step: _Step, now: float) -> MoveDeployment:
    stops = [change for change in step.changes if isinstance(change, Stop)]
    starts = [change for change in step.changes if isinstance(change, Start)]
    seen = [i for i in after(facts.instances, step.changes, now) if i.owner is OwnerKind.APP]
    move = MoveDeployment(
        deployment_id=running.id,
        state=running.state,
        stage=running.stage,
        reason="",
        step=course.step,
        cut_connections=running.cut_connections + sum(stop.cut for stop in stops),
    )
    if all_ready(replace(facts, instances=tuple(seen)), course) and _only_target_left(seen, course):
        pending = _arrivals(facts, course, now)
        if pending:
            return replace(move, stage=Stage.SHIFTING, reason=min(arrival.reason for arrival in pending))
        silent = sorted({edge for stop in stops for edge in stop.silent_edges})
        reason = f"without the edge {', '.join(silent)}, which is silent" if silent else ""
        return replace(move, state=DeploymentState.SUCCEEDED, reason=reason)
    if course.mending:
        return replace(
            move, stage=Stage.IMAGE, reason=f"checks {course.mending}, and fetches what is damaged of it again"
        )
    draining = [
        f"{label(i)} drains: {_drainage(facts, i, now).reason}" for i in seen if i.live and i.desired is Desired.DRAIN
    ]
    if course.weight < 100 and course.step is not None and running.canary is not None:
        at = progress(seen, starts, course.target, (), canary.described(course.step, running.canary))
    else:
        at = progress(seen, starts, course.target, draining)
    return replace(move, stage=at.stage, reason=at.reason)


def _only_target_left(instances: Sequence[Instance], course: Course) -> bool:
    """Everything alive is of the target, or was told to stop."""
    return all(
        course.target.matches(i) if i.desired is Desired.SERVE else i.desired is Desired.STOP
        for i in instances
        if i.live
    )


def _plan_deletion(facts: RolloutFacts, lost: tuple[Lose, ...], now: float) -> RolloutPlan:
    """Stop all, one-off runs too; then the app's rows may go."""
    going = {i.id: i for i in facts.instances if i.live and i.desired is Desired.SERVE}
    leaving = [remove(i, facts.releases, "the app is being destroyed") for i in going.values()]
    step = _join(_finish(facts), _drain(facts, frozenset(going), now), _Step(changes=tuple(leaving)))
    cancelled = [
        MoveDeployment(
            deployment_id=deployment.id,
            state=DeploymentState.CANCELLED,
            stage=deployment.stage,
            reason="the app is being destroyed",
            reason_code="app-deleting",
            cut_connections=deployment.cut_connections,
        )
        for deployment in facts.deployments
    ]
    over = not any(i.live for i in after(facts.instances, step.changes, now))
    due = [moment for moment in step.times if moment is not None and moment > now]
    return RolloutPlan(
        changes=(*lost, *step.changes, *cancelled, *((Forget(),) if over else ())),
        next_at=min(due, default=None),
    )
