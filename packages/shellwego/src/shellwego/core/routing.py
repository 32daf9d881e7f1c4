"""Routes: from hostname to endpoints, as the edges see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

EVEN_WEIGHT = 8
"""Of endpoints that share alike. Edges share as finely as weights are large."""
MAX_WEIGHT = 256


class RouteState(StrEnum):
    SERVING = "serving"
    STOPPED = "stopped"
    STARTING = "starting"
    """No instance was ever healthy yet, or all are on their way."""
    FAILING = "failing"
    ASLEEP = "asleep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    instance_id: str
    address: str
    """`tcp:10.64.0.5:8080` or `unix:/path`."""
    weight: int = EVEN_WEIGHT
    """Its part of the requests, beside those of the app's other endpoints: 0 to `MAX_WEIGHT`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Departed:
    """An instance outside of the routes whose former VM is known to have ended, or to sleep: what is still open there gets
    no answer.

    It is told only where an edge has such sessions. One that drains, is unhealthy, or was just lost with its node is not
    departed: its VM may still answer.
    """

    instance_id: str
    address: str = ""
    """Of its next VM, which must be spared; empty: it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    host: str
    app_id: str
    app_name: str
    state: RouteState
    endpoints: tuple[Endpoint, ...] = ()
    departed: tuple[Departed, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """All routes of the platform at one version. A version never goes back."""

    version: int
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeReport:
    """What an edge has done: the version it serves, and sessions still open per instance that left its routes."""

    edge_id: str
    applied_version: int
    open_sessions: Mapping[str, int] = field(default_factory=dict)
    """Instance id → sessions; only for instances that are draining or were just removed. Absent means none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    id: str
    name: str
    applied_version: int = 0
    open_sessions: Mapping[str, int] = field(default_factory=dict)
    lease_until: float
    created_at: float
    version: int = 1
