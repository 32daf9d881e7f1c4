"""What a rollout plan may ask for, and what each change means for the rows it touches.

The same functions serve the loop, which stores their results, and the planner, which looks at the state after its own
changes to say what is waited for next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from shellwego.core.apps import Process, Release
from shellwego.core.deployments import (
    FINISHED,
    MAX_STAGE_RECORDS,
    CanaryStep,
    Deployment,
    DeploymentState,
    Stage,
    StageRecord,
)
from shellwego.core.instances import Desired, Instance, OwnerKind, Phase, Sleep


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Make an instance of the target release for a slot; it still has to be placed."""

    process: str
    slot: int
    release_id: str
    generation: int
    memory_of: str = ""
    """The instance that sleeps and has to leave its node, whose memory it goes on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCommand:
    """Make the one-off VM of a deployment's release command; it still has to be placed."""

    deployment_id: str
    release_id: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take it out of the routes; it goes on with what it has."""

    instance_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Let the node stop it; what never reached a node is over at once."""

    instance_id: str
    reason: str
    cut: int = 0
    silent_edges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend:
    """Let the node put it to sleep: what it had is done, or cut."""

    instance_id: str
    reason: str
    cut: int = 0
    silent_edges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lose:
    """Its node is gone, so it is, too."""

    instance_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveDeployment:
    """The deployment's next state, stage and reason; `log_tail` and `step` None keep what it has."""

    deployment_id: str
    state: DeploymentState
    stage: Stage
    reason: str
    reason_code: str = ""
    log_tail: tuple[str, ...] | None = None
    step: CanaryStep | None = None
    cut_connections: int = 0
    """In all, not since the last time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """Change what the app aims at and returns to."""

    release_id: str
    stable_release_id: str
    stable_generation: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing of the app lives any more and it was to be destroyed: its rows may go."""


Change = Start | StartCommand | Drain | Stop | Suspend | Lose | MoveDeployment | Aim | Forget


def new_instance(start: Start, app_id: str, release: Release, *, id_: str, now: float) -> Instance:
    """The row of a start; `release` is the one that it names. What goes on with a memory goes on sleeping."""
    process = next(process for process in release.config.processes if process.name == start.process)
    return replace(
        _row(process, app_id, release, id_=id_, now=now),
        slot=start.slot,
        generation=start.generation,
        memory_of=start.memory_of,
        sleep=Sleep.ASLEEP if start.memory_of else Sleep.AWAKE,
    )


def new_command(start: StartCommand, app_id: str, release: Release, *, id_: str, now: float) -> Instance:
    """The row of a release command: a one-off run of the size of the release's first process."""
    row = _row(release.config.processes[0], app_id, release, id_=id_, now=now)
    return replace(row, owner=OwnerKind.RUN, command=start.command, deployment_id=start.deployment_id)


def _row(process: Process, app_id: str, release: Release, *, id_: str, now: float) -> Instance:
    return Instance(
        id=id_,
        app_id=app_id,
        process=process.name,
        slot=0,
        release_id=release.id,
        content_hash=release.content_hash,
        generation=0,
        memory_bytes=process.memory_bytes,
        cpu_milli=process.cpu_milli,
        disk_bytes=process.disk_bytes,
        created_at=now,
        phase_since=now,
    )


def change_instance(instance: Instance, change: Drain | Stop | Suspend | Lose, now: float) -> Instance:
    """The row after the change."""
    match change:
        case Drain():
            # one that sleeps, or was to, left the routes before: that it did is asked for anew
            return replace(instance, desired=Desired.DRAIN, drain_since=now, unrouted_version=None)
        case Suspend():
            return replace(instance, sleep=Sleep.ASLEEP)
        case Stop():
            stopped = replace(instance, desired=Desired.STOP)
            return _ended(stopped, Phase.STOPPED, now) if instance.phase is Phase.PENDING else stopped
        case Lose():
            return _ended(instance, Phase.LOST, now)


def move_deployment(deployment: Deployment, move: MoveDeployment, now: float) -> Deployment:
    """The row after the move."""
    started = deployment.started_at
    if started is None and move.state is DeploymentState.IN_PROGRESS:
        started = now
    return replace(
        deployment,
        state=move.state,
        stage=move.stage,
        reason=move.reason,
        reason_code=move.reason_code,
        log_tail=deployment.log_tail if move.log_tail is None else move.log_tail,
        step=deployment.step if move.step is None else move.step,
        cut_connections=move.cut_connections,
        started_at=started,
        finished_at=now if move.state in FINISHED else deployment.finished_at,
        stages=recorded(deployment.stages, move.stage, move.reason, now, over=move.state in FINISHED),
    )


def recorded(
    stages: tuple[StageRecord, ...], stage: Stage, reason: str, now: float, *, over: bool = False
) -> tuple[StageRecord, ...]:
    """The records once a deployment is in this stage, for this reason; `over` ends the last one."""
    if stages and stages[-1].stage is stage:
        before, last = stages[:-1], replace(stages[-1], reason=reason or stages[-1].reason)
    else:
        before = (*stages[:-1], replace(stages[-1], finished_at=now)) if stages else ()
        last = StageRecord(stage=stage, reason=reason, started_at=now)
    return (*before, replace(last, finished_at=now) if over else last)[-MAX_STAGE_RECORDS:]


def after(instances: Iterable[Instance], changes: Sequence[Change], now: float) -> list[Instance]:
    """The instances once the changes are made, without those that are still to be started."""
    touched = {c.instance_id: c for c in changes if isinstance(c, Drain | Stop | Suspend | Lose)}
    return [
        change_instance(instance, touched[instance.id], now) if instance.id in touched else instance
        for instance in instances
    ]


def _ended(instance: Instance, phase: Phase, now: float) -> Instance:
    return replace(instance, phase=phase, phase_since=now, stopped_at=now)
