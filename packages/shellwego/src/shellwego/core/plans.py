"""Plans: what an organization may ask of the platform, how often and how much.

The numbers here are defaults; an operator sets what differs for one organization (`core.quota`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests that a token may make: `per_minute` in the long run, `burst` at once."""

    per_minute: int
    burst: int


@dataclass(frozen=True, slots=True)
class Plan:
    rate: Rate | None
    """None: as often as one likes."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """By the names of `core.quota.COUNTED`; what is not named has no limit."""


UNLIMITED = "unlimited"
FREE = "free"

MOST_A_MINUTE = 1 << 31
"""More than any rate."""

PLANS: Mapping[str, Plan] = MappingProxyType(
    {
        FREE: Plan(
            Rate(100, 20),
            {
                "projects": 2,
                "apps": 5,
                "instances": 5,
                "memory": 2 * GIB,
                "cpu": 5_000,
                "volumes": 3,
                "storage": 3 * GIB,
                "images": 10 * GIB,
                "backups": 30,
                "ports": 2,
                "tokens": 10,
            },
        ),
        "starter": Plan(
            Rate(1_000, 50),
            {
                "projects": 10,
                "apps": 25,
                "instances": 50,
                "memory": 32 * GIB,
                "cpu": 50_000,
                "volumes": 50,
                "storage": 100 * GIB,
                "images": 100 * GIB,
                "backups": 1_000,
                "ports": 20,
                "tokens": 50,
            },
        ),
        "growth": Plan(
            Rate(5_000, 100),
            {
                "projects": 50,
                "apps": 100,
                "instances": 250,
                "memory": 256 * GIB,
                "cpu": 250_000,
                "volumes": 250,
                "storage": 1024 * GIB,
                "images": 512 * GIB,
                "backups": 10_000,
                "ports": 200,
                "tokens": 250,
            },
        ),
        "enterprise": Plan(
            Rate(50_000, 500),
            {
                "projects": 500,
                "apps": 1_000,
                "instances": 5_000,
                "memory": 8192 * GIB,
                "cpu": 5_000_000,
                "volumes": 5_000,
                "storage": 64 * 1024 * GIB,
                "images": 4096 * GIB,
                "backups": 100_000,
                "ports": 2_000,
                "tokens": 2_500,
            },
        ),
        UNLIMITED: Plan(None),
    }
)


def plan_named(name: str) -> Plan:
    """The plan of this name; of a name that this version does not know, the smallest."""
    return PLANS.get(name, PLANS[FREE])


def rank(name: str) -> int:
    """How much a plan allows, to compare plans by."""
    rate = plan_named(name).rate
    return MOST_A_MINUTE if rate is None else rate.per_minute
