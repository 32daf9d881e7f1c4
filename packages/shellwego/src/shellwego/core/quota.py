"""How much may be wanted, and what is: limits by plan and by what was set, and the amounts that count against them.

What counts is what is *wanted*: an app's counts times the sizes of its current config, from its first deployment until it
is stopped or destroyed, and one-off commands while they live. What a rollout adds for a while (surge), or an automatic
rollback returns to, is the platform's to bear and counts for nothing: a quota never stands between an app and its repair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shellwego.core.apps import App, wanted_counts
from shellwego.core.instances import Instance
from shellwego.core.placement_rules import DEFAULT_PRIORITY, MOST_PRIORITY
from shellwego.core.plans import plan_named

COUNTED: Mapping[str, str] = {
    "projects": "",
    "apps": "",
    "instances": "",
    "memory": "bytes",
    "cpu": "thousandths of a core",
    "volumes": "",
    "storage": "bytes",
    "backups": "",
    "ports": "",
    "tokens": "",
}
"""What has limits, with its unit. `storage` is the sizes of volumes, as wanted; `backups` are
those that did not fail; `ports` are published ones. `tokens` are those of service accounts that
are neither revoked nor expired."""
PRIORITY = "priority"
"""The limit that counts nothing: no instance of the organization has a higher one."""
OF_ORGANIZATIONS = (*COUNTED, PRIORITY)
OF_PROJECTS = ("apps", "instances", "memory", "cpu", "volumes", "storage", "backups", "ports")
"""What lies in a project, so that a project may have limits of its own."""
MOST = 1 << 53
"""No limit is larger: JSON's numbers are exact up to here."""

Amounts = Mapping[str, int]
Limits = Mapping[str, int | None]
"""By name; None: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Limits that were set for one scope; those that are not named here are the plan's."""

    id: str
    """Of the organization or project."""
    limits: Limits
    created_at: float
    version: int = 1


@dataclass(frozen=True, slots=True)
class Excess:
    """What would go beyond its limit."""

    name: str
    limit: int
    used: int
    more: int


def organization_limits(plan: str, quota: Quota | None) -> dict[str, int | None]:
    """What holds for an organization, by everything that has limits."""
    planned = {**plan_named(plan).limits, PRIORITY: DEFAULT_PRIORITY}
    given = quota.limits if quota else {}
    return {name: given.get(name, planned.get(name)) for name in OF_ORGANIZATIONS}


def priority_limit(quota: Quota | None) -> int:
    """The highest priority that instances of an organization have, whatever its plan is: to push others aside is for the
    platform's operator to allow."""
    limit = (quota.limits if quota else {}).get(PRIORITY, DEFAULT_PRIORITY)
    return MOST_PRIORITY if limit is None else limit


def most_of(name: str) -> int:
    """No limit of this name is larger."""
    return MOST_PRIORITY if name == PRIORITY else MOST


def project_limits(quota: Quota | None) -> dict[str, int | None]:
    """What holds for a project, beside what holds for its organization."""
    given = quota.limits if quota else {}
    return {name: given.get(name) for name in OF_PROJECTS}


def binding(limits: Limits, more: Amounts) -> tuple[str, ...]:
    """What of these additional amounts has a limit at all; only this need be counted."""
    return tuple(name for name, amount in more.items() if amount > 0 and limits.get(name) is not None)


def excess(limits: Limits, used: Amounts, more: Amounts) -> Excess | None:
    """The first of the additional amounts that does not fit; what shrinks always does, even where all is too much."""
    for name in binding(limits, more):
        limit = limits[name]
        if limit is not None and used.get(name, 0) + more[name] > limit:
            return Excess(name, limit, used.get(name, 0), more[name])
    return None


def app_takes(app: App) -> Counter[str]:
    """What is wanted of an app: instances, memory, CPU."""
    taken: Counter[str] = Counter()
    if not app.last_release_number:
        return taken
    counts = wanted_counts(app, app.config)
    for process in app.config.processes:
        taken.update(_sized(counts[process.name], process.memory_bytes, process.cpu_milli))
    return taken


def runs_take(runs: Iterable[Instance]) -> Counter[str]:
    """What living one-off commands take."""
    taken: Counter[str] = Counter()
    for run in runs:
        taken.update(_sized(1, run.memory_bytes, run.cpu_milli))
    return taken


def growth(before: Amounts, after: Amounts) -> dict[str, int]:
    """What is wanted more than before."""
    return {name: more for name, amount in after.items() if (more := amount - before.get(name, 0)) > 0}


def _sized(count: int, memory_bytes: int, cpu_milli: int) -> dict[str, int]:
    return {"instances": count, "memory": count * memory_bytes, "cpu": count * cpu_milli}
