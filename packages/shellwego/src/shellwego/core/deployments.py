"""Deployments: the rollout of one release onto an app, in stages, with a reason whenever it waits or fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    PLACING = "placing"
    STARTING = "starting"
    CHECKING = "checking"
    SHIFTING = "shifting"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How fast and how carefully, as numbers. Shares are percent of the instances wanted *now* (a fixed surge sticks
    after a scale-up); `surge_min` and `unavailable_min` keep small apps moving."""

    name: str
    surge_percent: int
    unavailable_percent: int
    surge_min: int = 0
    cutover: bool = False
    """Stop no old instance before every new one is healthy."""

    def surge(self, wanted: int) -> int:
        """How many instances may exist beyond `wanted`."""
        return max(self.surge_min, -(-wanted * self.surge_percent // 100)) if wanted else 0

    def unavailable(self, wanted: int) -> int:
        """How many of `wanted` may be missing while the rollout goes on."""
        return min(wanted, wanted * self.unavailable_percent // 100)


ROLLING = Strategy(name="rolling", surge_percent=25, unavailable_percent=0, surge_min=1)
IMMEDIATE = Strategy(name="immediate", surge_percent=0, unavailable_percent=100)
BLUE_GREEN = Strategy(name="bluegreen", surge_percent=100, unavailable_percent=0, surge_min=1, cutover=True)
STRATEGIES: Mapping[str, Strategy] = {s.name: s for s in (ROLLING, IMMEDIATE)}
"""Those that can be asked for today."""


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
    """How long the whole of it may take before it counts as failed."""
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
    version: int = 1
