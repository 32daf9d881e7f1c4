"""Deployments, plans and releases."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shellwego.api.rest.schemas.common import (
    Arguments,
    Body,
    Name,
    Pagination,
    Seconds,
    SharePart,
    View,
    when,
    when_or_none,
)
from shellwego.api.rest.schemas.config import (
    ConfigBody,
    ConfigView,
    Counts,
    EnvChanges,
    Port,
    config_view,
    plain,
    references,
)
from shellwego.control.config import ConfigWish, ProcessWish, refuse_unknown
from shellwego.control.deployments import Rollout
from shellwego.core.apps import App, Check, CheckKind, Release, Service
from shellwego.core.deployments import CanaryPlan, Deployment, StageRecord
from shellwego.core.quantities import parse_share

StrategyName = Literal["rolling", "bluegreen", "canary", "immediate"]
CanarySteps = Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=1, max_length=11)]
WaitTimeout = Annotated[float, Field(ge=1, le=86_400)]
Description = Annotated[str, Field(max_length=500)]


class RolloutBody(Body):
    """How to roll out."""

    strategy: StrategyName = "rolling"
    wait_timeout: WaitTimeout = 300.0
    """Seconds after which the rollout counts as failed, a canary's pauses not counted."""
    rollback_on_failure: bool = True
    description: Description = ""
    max_unavailable: SharePart | None = None
    """How many of the wanted instances may be missing meanwhile; with `rolling` and `canary`. Left out: none."""
    surge: SharePart | None = None
    """How many may exist beyond the wanted ones meanwhile; with `rolling` and `canary`. Left out: 25%, at least one."""
    canary_steps: CanarySteps | None = None
    """With `canary`: rising percentages of the requests that the new release gets, one after the other. Left out: 10 and 50;
    100 at the end may be left out."""
    canary_pause: Seconds | None = None
    """With `canary`: seconds for which each step must hold. Left out: 60."""

    def rollout(self) -> Rollout:
        return Rollout(
            strategy=self.strategy,
            wait_timeout_s=self.wait_timeout,
            rollback_on_failure=self.rollback_on_failure,
            description=self.description,
            max_unavailable=None if self.max_unavailable is None else parse_share(self.max_unavailable),
            surge=None if self.surge is None else parse_share(self.surge),
            canary=self._canary(),
        )

    def _canary(self) -> CanaryPlan | None:
        if self.canary_steps is None and self.canary_pause is None:
            return None
        usual = CanaryPlan()
        steps = usual.weights if self.canary_steps is None else tuple(self.canary_steps)
        return CanaryPlan(
            weights=steps[:-1] if steps[-1] == 100 else steps,
            pause_s=usual.pause_s if self.canary_pause is None else self.canary_pause,
        )


class DeploymentCreate(RolloutBody):
    """A deploy. What is left out stays as it was; `port`, `check_path` and `command` are short forms for one process."""

    image: Annotated[str, Field(min_length=1, max_length=512, examples=["hello:v1"])] | None = None
    process: Name = "web"
    port: Port | None = None
    check_path: Annotated[str, Field(max_length=1024)] | None = None
    command: Arguments | None = None
    backend: Annotated[str, Field(max_length=40, pattern=r"^[a-z0-9-]*$", examples=["wasm"])] | None = None
    """What the VMs run on, for the whole app: `wasm` for a WebAssembly module. Empty: the nodes' own choice."""
    config: ConfigBody = ConfigBody()
    env: EnvChanges = Field(default_factory=dict)
    counts: Counts = Field(default_factory=dict)
    """How many of some processes should run from now on. They are the app's: no rollback takes them back."""

    @model_validator(mode="after")
    def _is_clear(self) -> DeploymentCreate:
        if self.port is not None and self.config.services is not None:
            raise ValueError("give port or config.services, not both")
        if self.check_path is not None and self.config.checks is not None:
            raise ValueError("give check_path or config.checks, not both")
        return self

    def wish(self, app: App) -> ConfigWish:
        """The wish in full, given the app whose checks of other processes stay.

        Raises:
            InvalidError: it is about a process that neither the app nor the wish has.
        """
        wish = self.config.wish()
        processes = dict(wish.processes)
        if "process" in self.model_fields_set and self.command is None and self.process not in processes:
            refuse_unknown(app.config, {"process": self.process})
        if self.command is not None:
            processes[self.process] = _with_command(processes.get(self.process), tuple(self.command))
        return ConfigWish(
            image=self.image,
            env=plain(self.env),
            secrets=references(self.env),
            processes=processes,
            remove_processes=wish.remove_processes,
            services=wish.services if self.port is None else (Service(process=self.process, port=self.port),),
            checks=wish.checks if self.check_path is None else self._checks(app),
            drain_timeout_s=wish.drain_timeout_s,
            release_command=wish.release_command,
            mounts=wish.mounts,
            backend=self.backend,
            placement=wish.placement,
        )

    def _checks(self, app: App) -> tuple[Check, ...]:
        others = tuple(check for check in app.config.checks if check.process != self.process)
        return (*others, Check(kind=CheckKind.HTTP, process=self.process, path=self.check_path or "/"))


def _with_command(wish: ProcessWish | None, command: tuple[str, ...]) -> ProcessWish:
    return replace(wish or ProcessWish(), command=command)


class RollbackBody(RolloutBody):
    """`release` is a number or `v7`; left out: the release before."""

    release: Annotated[str, Field(max_length=40)] | None = None


class StageView(View):
    """One visit of a stage."""

    stage: str
    reason: str
    started_at: datetime
    finished_at: datetime | None


class CanaryView(View):
    """How far a canary has come."""

    steps: list[int]
    pause: float
    step: int
    """Index of the present step; as many as there are steps: promoted."""
    weight: int
    """Percent of the requests that the new release may have by now."""
    holds_since: datetime | None
    """From when on all of the step was ready and served."""


class DeploymentView(View):
    id: str
    app_id: str
    release: int
    release_id: str
    state: str
    stage: str
    strategy: str
    rollback_on_failure: bool
    wait_timeout: float
    deadline: datetime
    """When it counts as failed."""
    max_unavailable: str | None
    surge: str | None
    canary: CanaryView | None
    release_command: list[str] | None
    release_command_instance: str | None
    """Id of the one-off run that it is, or was: its log is that instance's."""
    stages: list[StageView]
    """Where it was, the oldest first; of many only the newest are kept."""
    reason: str
    """What it waits for, or why it ended."""
    reason_code: str
    log_tail: list[str]
    cut_connections: int
    created_at: datetime
    created_by: str
    started_at: datetime | None
    finished_at: datetime | None
    finished: bool
    version: int


class DeploymentList(View):
    data: list[DeploymentView]
    pagination: Pagination


class ReleaseView(View):
    id: str
    app_id: str
    number: int
    config: ConfigView
    image_digest: str
    content_hash: str
    description: str
    created_at: datetime
    created_by: str
    created_by_email: str | None
    current: bool
    """The app runs it, or is being rolled out to it."""
    state: str
    """How its rollout went: `succeeded` where one of its deployments did, else the state of its newest one."""


class ReleaseList(View):
    data: list[ReleaseView]
    pagination: Pagination


class ChangeView(View):
    """One difference. Values of environment variables are not shown."""

    field: str
    before: str | None
    after: str | None


class ProcessPlanView(View):
    """What a deploy would do to one process."""

    process: str
    count: int
    """How many are wanted afterwards."""
    kept: int
    started: int
    stopped: int
    obstacle: str | None
    """Why the first that are to come could not be placed now, in the words of the filters that decide."""
    pause: str | None
    """A volume that one instance only can have, so the old one stops before the new one starts: a short stop. Null: none."""
    evicts: int
    """How many instances of lower priority would be evicted to make room for the first that has none; 0 where that makes
    none, or none is needed."""


class PlanView(View):
    """What a deploy would change; nothing was done."""

    changed: bool
    from_release: int | None
    to_release: int
    image_digest: str
    changes: list[ChangeView]
    replaced: dict[str, int]
    """Instances of each process that the deploy would replace or start."""
    processes: list[ProcessPlanView]


class DiffView(View):
    """How one release differs from another."""

    from_release: int
    to_release: int
    changes: list[ChangeView]


def deployment_view(deployment: Deployment, release: int, *, finished: bool, run_id: str | None) -> DeploymentView:
    return DeploymentView(
        id=deployment.id,
        app_id=deployment.app_id,
        release=release,
        release_id=deployment.release_id,
        state=deployment.state.value,
        stage=deployment.stage.value,
        strategy=deployment.strategy,
        rollback_on_failure=deployment.rollback_on_failure,
        wait_timeout=deployment.wait_timeout_s,
        deadline=when(deployment.deadline),
        max_unavailable=deployment.max_unavailable.text if deployment.max_unavailable else None,
        surge=deployment.surge.text if deployment.surge else None,
        canary=_canary_view(deployment),
        release_command=None if deployment.release_command is None else list(deployment.release_command),
        release_command_instance=run_id,
        stages=[_stage_view(record) for record in deployment.stages],
        reason=deployment.reason,
        reason_code=deployment.reason_code,
        log_tail=list(deployment.log_tail),
        cut_connections=deployment.cut_connections,
        created_at=when(deployment.created_at),
        created_by=deployment.created_by,
        started_at=when_or_none(deployment.started_at),
        finished_at=when_or_none(deployment.finished_at),
        finished=finished,
        version=deployment.version,
    )


def _stage_view(record: StageRecord) -> StageView:
    return StageView(
        stage=record.stage.value,
        reason=record.reason,
        started_at=when(record.started_at),
        finished_at=when_or_none(record.finished_at),
    )


def _canary_view(deployment: Deployment) -> CanaryView | None:
    if deployment.canary is None:
        return None
    return CanaryView(
        steps=list(deployment.canary.weights),
        pause=deployment.canary.pause_s,
        step=deployment.step.number,
        weight=deployment.weight,
        holds_since=when_or_none(deployment.step.since),
    )


def release_view(release: Release, app: App, *, state: str, email: str | None) -> ReleaseView:
    return ReleaseView(
        id=release.id,
        app_id=release.app_id,
        number=release.number,
        config=config_view(release.config),
        image_digest=release.image_digest,
        content_hash=release.content_hash,
        description=release.description,
        created_at=when(release.created_at),
        created_by=release.created_by,
        created_by_email=email,
        current=release.id == app.release_id,
        state=state,
    )
