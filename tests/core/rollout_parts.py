"""What random histories are made of: their events, the numbers they draw from, and an edge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shellwego.core.deployments import STRATEGIES, Share, Strategy
from shellwego.core.rollout import RolloutPlan
from shellwego.core.rollout_facts import RolloutFacts
from shellwego.core.routing import Edge

Planner = Callable[[RolloutFacts, float], RolloutPlan]
Event = tuple[str, int]

HALF = Strategy(name="half", surge_share=Share(), unavailable_share=Share(percent=50), surge_min=1)
ALL = {**STRATEGIES, HALF.name: HALF}
PACES = (None, None, Share(count=2), Share(percent=50), Share(), Share(percent=10))
"""A deployment's own numbers."""
NODES = ("a", "b", "c")
LEASE_S = 10.0
SWIFT_ROUNDS = 30
EVENTS = (
    *("tick",) * 6,
    *("wait",) * 3,
    "deploy",
    "deploy",
    "deploy",
    "deploy-bad",
    "deploy-hanging",
    "deploy-unfetched",
    "deploy-migrating",
    "deploy-migrating",
    "deploy-migration-fails",
    "deploy-migration-hangs",
    "deploy-canary",
    "sicken-new",
    "stop-run",
    "fetched",
    "image-failed",
    "rollback",
    "restart",
    "cancel",
    "scale",
    "scale",
    "stop",
    "start",
    "kill",
    "revive",
    "fail",
    "sicken",
    "sleep",
    "drain",
    "drain",
    "uncordon",
    "force-out",
    "edge-silent",
    "edge-back",
    "stuck-session",
)
SHAPES = (("web",), ("web", "worker"), ("api", "worker"), ("web",))
PAUSES = (0.0, 0.1, 1.0, 1.0, 5.0, 20.0)


@dataclass(slots=True)
class EdgeSide:
    """One edge as it is, apart from what it told."""

    name: str
    silent: bool = False
    applied: int = 0
    sessions: dict[str, int] = field(default_factory=dict)
    told: Edge | None = None

    def row(self, now: float) -> Edge:
        return self.told or Edge(id=self.name, name=self.name, lease_until=now + LEASE_S, created_at=0.0)
