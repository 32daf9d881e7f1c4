"""Deployments: the rollout of one release onto an app, in stages, with a reason whenever it waits or fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class DeploymentState(StrEnum):
    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"


D = DeploymentState
DEPLOYMENT_MOVES: Mapping[DeploymentState, frozenset[DeploymentState]] = {
    D.PENDING: frozenset({D.IN_PROGRESS, D.FAILED, D.CANCELLED, D.SUPERSEDED}),
    D.IN_PROGRESS: frozenset({D.SUCCEEDED, D.FAILED, D.ROLLED_BACK, D.CANCELLED, D.SUPERSEDED}),
    D.SUCCEEDED: frozenset(),
    D.FAILED: frozenset(),
    D.ROLLED_BACK: frozenset(),
    D.CANCELLED: frozenset(),
    D.SUPERSEDED: frozenset(),
}
FINISHED = frozenset({D.SUCCEEDED, D.FAILED, D.ROLLED_BACK, D.CANCELLED, D.SUPERSEDED})


class Stage(StrEnum):
    ADMISSION = "admission"
    IMAGE = "image"
    RELEASE_COMMAND = "release_command"
    PLACING = "placing"
    STARTING = "starting"
    CHECKING = "checking"
    SHIFTING = "shifting"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """So many instances: percent of those wanted *now*, or a count."""

    percent: int = 0
    count: int = 0

    def rounded_up(self, wanted: int) -> int:
        return self.count + -(-wanted * self.percent // 100)

    def rounded_down(self, wanted: int) -> int:
        return self.count + wanted * self.percent // 100

    @property
    def text(self) -> str:
        """As people write it: `25%`, `2`."""
        return f"{self.percent}%" if self.percent else str(self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How fast and how carefully, as numbers. Shares of what is wanted *now* are safe with every strategy; a count is
    not with a cutover (it sticks after a scale-up). `surge_min` keeps small apps moving."""

    name: str
    surge_share: Share
    unavailable_share: Share
    surge_min: int = 0
    cutover: bool = False
    """Stop no old instance before every new one is healthy."""
    paceable: bool = False
    """A deployment may bring its own `surge` and `max_unavailable`."""

    def surge(self, wanted: int) -> int:
        """How many instances may exist beyond `wanted`."""
        return max(self.surge_min, self.surge_share.rounded_up(wanted)) if wanted else 0

    def unavailable(self, wanted: int) -> int:
        """How many of `wanted` may be missing while the rollout goes on: one at least where none may be beyond, since it
        could not go on otherwise."""
        least = 0 if self.surge(wanted) else 1
        return min(wanted, max(least, self.unavailable_share.rounded_down(wanted)))

    @property
    def spares_nothing(self) -> bool:
        """All may be missing at once, however many they are."""
        return self.unavailable_share.percent >= _ALL.percent

    def paced(self, max_unavailable: Share | None, surge: Share | None) -> Strategy:
        """The strategy with a deployment's own numbers; None keeps."""
        slower = self if max_unavailable is None else replace(self, unavailable_share=max_unavailable)
        return slower if surge is None else replace(slower, surge_share=surge, surge_min=0)


_NONE, _ALL = Share(), Share(percent=100)
ROLLING = Strategy(name="rolling", surge_share=Share(percent=25), unavailable_share=_NONE, surge_min=1, paceable=True)
IMMEDIATE = Strategy(name="immediate", surge_share=_NONE, unavailable_share=_ALL)
BLUE_GREEN = Strategy(name="bluegreen", surge_share=_ALL, unavailable_share=_NONE, surge_min=1, cutover=True)
CANARY = replace(ROLLING, name="canary")
"""Once the steps are done it goes on as a rolling one; what the steps do is in `core.canary`."""
STRATEGIES: Mapping[str, Strategy] = {s.name: s for s in (ROLLING, IMMEDIATE, BLUE_GREEN, CANARY)}


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryPlan:
    """How a canary gets its requests: weight after weight, with a pause on each; then it is promoted."""

    weights: tuple[int, ...] = (10, 50)
    """Percent of the requests, rising, each below 100."""
    pause_s: float = 60.0
    """How long each weight must hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryStep:
    """How far a canary has come."""

    number: int = 0
    """Index into the weights; as many as there are: promoted."""
    since: float | None = None
    """From when on all of the step was ready, without a break; None: it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One visit of a stage."""

    stage: Stage
    reason: str
    """The last one in this stage."""
    started_at: float
    finished_at: float | None = None


MAX_STAGE_RECORDS = 40
"""A deployment keeps its newest ones: instances that come and go take it back and forth between stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    id: str
    app_id: str
    release_id: str
    state: DeploymentState
    stage: Stage
    strategy: str
    rollback_on_failure: bool
    wait_timeout_s: float
    """How long the whole of it may take before it counts as failed; a canary's pauses come on top."""
    max_unavailable: Share | None = None
    surge: Share | None = None
    """Its own numbers in place of the strategy's; None: the strategy's."""
    canary: CanaryPlan | None = None
    step: CanaryStep = CanaryStep()
    release_command: tuple[str, ...] | None = None
    """Run once, to its end, before anything of the rollout; None: nothing is."""
    reason: str = ""
    """One line: what it waits for, or why it ended."""
    reason_code: str = ""
    log_tail: tuple[str, ...] = ()
    """Where an instance failed: the last lines it wrote."""
    created_at: float
    created_by: str
    started_at: float | None = None
    finished_at: float | None = None
    cut_connections: int = 0
    """Sessions still open when the drain time-out ran out; they were cut."""
    stages: tuple[StageRecord, ...] = ()
    """Where it was, and for how long; the oldest first."""
    version: int = 1

    @property
    def deadline(self) -> float:
        """When it counts as failed."""
        pauses = len(self.canary.weights) * self.canary.pause_s if self.canary else 0.0
        return self.created_at + self.wait_timeout_s + pauses

    @property
    def weight(self) -> int:
        """Percent of the requests that its release may have by now."""
        if self.canary is None or self.step.number >= len(self.canary.weights):
            return 100
        return self.canary.weights[self.step.number]
