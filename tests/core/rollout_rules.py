"""What must hold of every plan in every history; told from the world's own account, not from the planner's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shellwego.core.apps import Release, wanted_counts
from shellwego.core.changes import Drain, Lose, MoveDeployment, Start, Stop, Suspend
from shellwego.core.deployments import ROLLING, Deployment, DeploymentState, Strategy
from shellwego.core.instances import SERVING, Desired, Eviction, Instance, OwnerKind, Phase, Sleep
from shellwego.core.rollout import RolloutPlan
from shellwego.core.rollout_facts import RolloutFacts
from tests.core import rollout_rules_canary as canaries
from tests.core import rollout_rules_commands as commands

if TYPE_CHECKING:
    from tests.core.rollout_parts import EdgeSide
    from tests.core.rollout_platform import Platform

EDGE_TIMEOUT_S = 60.0
_OPEN = (*SERVING, Phase.UNHEALTHY)
"""Phases in which requests may be under way."""


def check_before(world: Platform, plan: RolloutPlan) -> None:
    """Rules on what a plan takes away, seen before it does."""
    for change in plan.changes:
        if isinstance(change, Drain):
            assert world.instances[change.instance_id].desired is Desired.SERVE
        if isinstance(change, Stop):
            _check_stop(world, change)
        if isinstance(change, Suspend):
            _check_suspend(world, change)
    _check_nothing_drains_for_ever(world, plan)


def check_after(world: Platform, facts: RolloutFacts, before: Mapping[str, Instance], plan: RolloutPlan) -> None:
    """Rules on what a plan leaves."""
    own = {id_: i for id_, i in before.items() if i.owner is OwnerKind.APP}
    course = course_of(world, own, plan)
    _check_floor(world, own, course)
    _check_ceiling(world, own, course)
    _check_kept(world, own, course)
    _check_moves(world, own, course)
    _check_aim(course, plan)
    canaries.check(world, facts, own, course)
    commands.check(world, before, plan)
    _check_slots(world)
    _check_back_off(world, own, plan)
    _check_deployments(world, facts)
    _check_time_outs(world, facts, before)


def check_floor_beside(
    world: Platform, before: Mapping[str, Instance], plan: RolloutPlan, yields: Callable[[Instance, Release], bool]
) -> None:
    """Whoever has no volume that the target needs goes by the floor, whatever others have; beside a canary all do."""
    own = {id_: i for id_, i in before.items() if i.owner is OwnerKind.APP}
    course = course_of(world, own, plan)
    if course.target is not None and course.weight == 100:
        own = {id_: i for id_, i in own.items() if not yields(i, course.target)}
    _check_floor(world, own, course)


def _check_stop(world: Platform, change: Stop) -> None:
    """What may have requests under way is stopped only once it is drained, or its time is over."""
    instance = world.instances[change.instance_id]
    if not world.has_port(instance) or instance.phase not in _OPEN:
        return
    assert instance.desired is Desired.DRAIN, "stopped while in the routes"
    assert instance.unrouted_version is not None, "stopped before it left the routes"
    for edge in world.edges:
        _check_edge_let_go(world, edge, instance, change)


def _check_suspend(world: Platform, change: Suspend) -> None:
    """What may have requests under way falls asleep only once it is emptied, or its time is over."""
    instance = world.instances[change.instance_id]
    assert instance.sleep is Sleep.DOZING, "nobody asked for that"
    assert instance.desired is Desired.SERVE, "what leaves for good needs no sleep"
    if world.has_port(instance):
        assert instance.unrouted_version is not None, "asleep before it left the routes"
        for edge in world.edges:
            _check_edge_let_go(world, edge, instance, change)


def _check_edge_let_go(world: Platform, edge: EdgeSide, instance: Instance, change: Stop | Suspend) -> None:
    assert instance.drain_since is not None
    assert instance.unrouted_version is not None
    told = edge.told
    if told is None or told.lease_until <= world.now or told.applied_version < instance.unrouted_version:
        assert world.now >= instance.drain_since + EDGE_TIMEOUT_S, "an edge was not waited for"
        assert edge.name in change.silent_edges, "the silent edge is named"
        return
    assert instance.id not in world.tables[edge.applied], "an edge still sends to it"
    sessions = told.open_sessions.get(instance.id, 0)
    assert not sessions or world.now >= instance.drain_since + world.drain_timeout_of(instance), (
        "stopped with open sessions"
    )
    assert change.cut >= sessions, "cut sessions are counted"


def _check_nothing_drains_for_ever(world: Platform, plan: RolloutPlan) -> None:
    touched = {change.instance_id for change in plan.changes if isinstance(change, Stop | Suspend | Lose | Drain)}
    for instance in world.instances.values():
        dozes = instance.desired is Desired.SERVE and instance.sleep is Sleep.DOZING
        leaves = instance.live and (instance.desired is Desired.DRAIN or dozes)
        if leaves and instance.unrouted_version is not None:
            assert instance.drain_since is not None
            longest = max(EDGE_TIMEOUT_S, world.drain_timeout_of(instance))
            assert instance.id in touched or world.now < instance.drain_since + longest, "drains for ever"


def _check_floor(world: Platform, before: Mapping[str, Instance], course: Course) -> None:
    """No plan takes more from what serves than the strategy may."""
    target, wanted, strategy = course.target, course.wanted, course.strategy
    ready = course.weight == 100 and all_ready(world, target, wanted)
    was = [i for i in before.values() if i.serving and i.node_id not in world.down and not _forced(i)]
    for process in {i.process for i in was} | wanted.keys():
        old = [i for i in was if i.process == process]
        now = sum(world.instances[i.id].serving for i in old)
        count = wanted.get(process, 0)
        if process in wanted:
            floor = count if course.hold else count - strategy.unavailable(count)
        elif target is None or world.app.stopped or ready:
            floor = 0
        else:
            floor = 0 if strategy.spares_nothing and not course.hold else len(old)
        assert now >= min(len(old), floor), f"availability of {process}: {len(old)} -> {now}, floor {floor}"
        if (strategy.cutover or course.weight < 100) and not course.hold:
            _check_cutover(world, old, course, count)


def _check_cutover(world: Platform, serving: Sequence[Instance], course: Course, wanted: int) -> None:
    """No old one goes before all new ones are there (and a canary is promoted), but for what is more than one full set."""
    stale = [i for i in serving if not world.is_fresh(i, course.target)]
    fresh = len(serving) - len(stale)
    kept = sum(world.instances[i.id].serving for i in stale)
    done = fresh >= wanted and course.weight == 100
    assert done or kept >= min(len(stale), wanted), "cutover before the new set is complete"


def _check_ceiling(world: Platform, before: Mapping[str, Instance], course: Course) -> None:
    """No plan that adds instances has more of them than the strategy may."""
    for process in {i.process for i in world.own()}:
        meant = [i for i in world.own() if i.process == process and _meant_to_serve(i)]
        grew = any(i.id not in before for i in meant)
        count = course.wanted.get(process, 0)
        moves = min(ROLLING.surge(count), sum(_moves(i) and world.is_fresh(i, course.target) for i in meant))
        if course.hold:
            beyond = moves
        elif course.weight < 100:
            beyond = -(-count * course.weight // 100) + moves
        else:
            beyond = max(course.strategy.surge(count), moves)
        limit = count + beyond
        assert not grew or len(meant) <= limit, f"surge of {process}: {len(meant)} over {limit}"


def _check_kept(world: Platform, before: Mapping[str, Instance], course: Course) -> None:
    """What serves and is what it should be goes only where there is more of it than wanted."""
    for process, count in course.wanted.items():
        right = [
            i
            for i in before.values()
            if i.process == process and i.serving and world.is_fresh(i, course.target) and i.node_id not in world.down
        ]
        kept = sum(world.instances[i.id].serving for i in right if not i.evicted)
        assert kept >= min(sum(not i.evicted for i in right), count), "an instance that is right was replaced"


def _check_moves(world: Platform, before: Mapping[str, Instance], course: Course) -> None:
    """What has to leave its node serves until as many as are wanted, or a canary may have, serve without it; by force it
    goes at once, as does what does not serve."""
    for process, count in course.wanted.items():
        part = -(-count * course.weight // 100)
        own = [i for i in before.values() if i.process == process and world.is_fresh(i, course.target)]
        serving = [i for i in own if i.serving and i.node_id not in world.down and not _forced(i)]
        kept = sum(world.instances[i.id].serving for i in serving)
        assert kept >= min(len(serving), part), f"a move took what serves of {process}: {len(serving)} -> {kept}"
        for i in own:
            stays = world.instances[i.id].live and world.instances[i.id].desired is Desired.SERVE
            assert not (stays and _forced(i)), "stayed though it has to go now"
            assert not (stays and _moves(i) and i.phase not in SERVING), "stayed though it does not serve"


def _check_aim(course: Course, plan: RolloutPlan) -> None:
    """Nothing is started but what the app aims at."""
    for change in plan.changes:
        if isinstance(change, Start):
            assert course.target is not None, "started though nothing should run"
            assert change.release_id == course.target.id, "started what is not aimed at"


def _check_slots(world: Platform) -> None:
    staying = [i for i in world.own() if _meant_to_serve(i) and not i.evicted]
    taken = [(i.process, i.slot, i.content_hash, i.generation) for i in staying]
    assert len(taken) == len(set(taken)), "two instances in one slot"


def _check_back_off(world: Platform, before: Mapping[str, Instance], plan: RolloutPlan) -> None:
    """A slot whose instance just failed is not filled at once, unless a new deployment asks for it."""
    for change in plan.changes:
        if not isinstance(change, Start):
            continue
        content = world.releases[change.release_id].content_hash
        begun = [d.started_at or 0.0 for d in world.deployments.values() if d.state is DeploymentState.IN_PROGRESS]
        for i in before.values():
            same = (i.process, i.slot, i.generation) == (change.process, change.slot, change.generation)
            failed = i.phase is Phase.FAILED and i.desired is Desired.SERVE and i.phase_since >= max(begun, default=0.0)
            if same and failed and i.content_hash == content:
                assert world.now >= i.phase_since + 1.0, "a failed instance was replaced without a pause"


def _check_deployments(world: Platform, facts: RolloutFacts) -> None:
    running = [d for d in world.deployments.values() if d.state is DeploymentState.IN_PROGRESS]
    assert len(running) <= 1, "one deployment at a time"
    for deployment in running:
        _check_running(world, deployment)
    for was in facts.deployments:
        _check_end(world, was, world.deployments[was.id])


def _check_running(world: Platform, deployment: Deployment) -> None:
    release = world.releases[deployment.release_id]
    assert deployment.started_at is not None
    late = world.now >= deployment.deadline
    ready = all_ready(world, release, wanted_counts(world.app, release.config))
    assert not late or ready, "past its deadline"
    assert deployment.reason, "a deployment that goes on says what it waits for"
    assert world.app.release_id == release.id, "the app aims at the release that is rolled out"
    for i in world.own():
        failed = i.phase is Phase.FAILED and i.desired is Desired.SERVE and i.phase_since >= deployment.started_at
        assert not (failed and world.is_fresh(i, release)), "goes on after an instance of it failed"


def _check_end(world: Platform, was: Deployment, now: Deployment) -> None:
    back = world.app.stable_release_id not in ("", now.release_id)
    if now.state is DeploymentState.SUCCEEDED:
        release = world.releases[now.release_id]
        assert all_ready(world, release, wanted_counts(world.app, release.config)), "succeeded too early"
        assert world.app.stable_release_id == release.id
        others = [i for i in world.own() if i.live and not world.is_fresh(i, release)]
        assert all(i.desired is Desired.STOP for i in others), "succeeded before the old ones were told to stop"
    if now.state in (DeploymentState.FAILED, DeploymentState.ROLLED_BACK):
        assert now.reason, "a failure says why"
        assert now.reason_code
        if was.state is DeploymentState.IN_PROGRESS:
            wished = was.rollback_on_failure and back
            assert (now.state is DeploymentState.ROLLED_BACK) == wished


def _check_time_outs(world: Platform, facts: RolloutFacts, before: Mapping[str, Instance]) -> None:
    """Time is only over for a deployment that still lacks something; draining never fails one."""
    for was in facts.deployments:
        code = world.deployments[was.id].reason_code
        if was.state is not DeploymentState.IN_PROGRESS or code not in ("timed-out", "no-capacity"):
            continue
        release = world.releases[was.release_id]
        ready = [
            i
            for i in before.values()
            if i.serving
            and i.owner is OwnerKind.APP
            and not (i.node_id in world.down or _forced(i))
            and (i.content_hash, i.generation) == (release.content_hash, world.app.generation)
        ]
        wanted = wanted_counts(world.app, release.config)
        lacks = [name for name, count in wanted.items() if sum(i.process == name for i in ready) < count]
        assert lacks or was.weight < 100, "timed out though all was ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where a plan went, by the world's own account."""

    target: Release | None
    wanted: Mapping[str, int]
    strategy: Strategy
    hold: bool = False
    following: Deployment | None = None
    weight: int = 100


def course_of(world: Platform, before: Mapping[str, Instance], plan: RolloutPlan) -> Course:
    moved = {c.deployment_id: c.state for c in plan.changes if isinstance(c, MoveDeployment)}
    following = [
        d
        for d in world.deployments.values()
        if d.state is DeploymentState.IN_PROGRESS
        or (d.state is DeploymentState.SUCCEEDED and moved.get(d.id) is DeploymentState.SUCCEEDED)
    ]
    if following:
        last = following[-1]
        target = world.releases[last.release_id]
        wanted = wanted_counts(world.app, target.config)
        beside = any(
            i.serving
            and i.node_id not in world.down
            and wanted.get(i.process)
            and not (world.is_fresh(i, target) or _forced(i))
            for i in before.values()
        )
        return Course(
            target=target,
            wanted=wanted,
            strategy=world.strategies[last.strategy].paced(last.max_unavailable, last.surge),
            following=last,
            weight=last.weight if beside else 100,
        )
    stable = world.releases.get(world.app.stable_release_id)
    wanted = wanted_counts(world.app, stable.config) if stable else {}
    pending = any(d.state is DeploymentState.PENDING for d in world.deployments.values())
    return Course(target=stable, wanted=wanted, strategy=ROLLING, hold=pending and not world.app.stopped)


def all_ready(world: Platform, target: Release | None, wanted: Mapping[str, int]) -> bool:
    """As many of each process serve as are wanted."""
    serving = [i for i in world.own() if i.serving and world.is_fresh(i, target)]
    return all(sum(i.process == name for i in serving) >= count for name, count in wanted.items())


def _meant_to_serve(instance: Instance) -> bool:
    return instance.live and instance.desired is Desired.SERVE


def _moves(instance: Instance) -> bool:
    """It is meant to serve until another one does."""
    return _meant_to_serve(instance) and instance.eviction is Eviction.GENTLE


def _forced(instance: Instance) -> bool:
    return instance.live and instance.eviction is Eviction.FORCED
