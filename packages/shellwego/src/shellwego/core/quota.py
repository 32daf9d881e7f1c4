"""How much may be wanted, and what is: limits by plan and by what was set, and the amounts that count against them.

What counts is what is *wanted*, from an app's first deployment until it is stopped or destroyed, and one-off commands while
they live. Wanted are the app's counts times the sizes of a config; and since no change of the config touches what runs, that
is not only the current one. Each release counts that may run, or come back, without being asked for again: what the app aims
at and returns to, and that of each unfinished deployment. The largest is taken, not the sum: they follow one another. So a
deployment is charged before it begins, an automatic rollback has room kept for it, and a config that was made small gives
nothing back before it was rolled out in full.

What a rollout adds for a while (surge) is the platform's to bear and counts for nothing: a quota never stands between an app
and its repair. But what serves goes on until something took its place, and that may never come: so what serves of each such
release, and together what serves of others, is the least that counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shellwego.core.apps import App, AppConfig, Release, wanted_counts
from shellwego.core.instances import Desired, Instance, OwnerKind
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
    "images": "bytes",
    "backups": "",
    "ports": "",
    "tokens": "",
}
"""What has limits, with its unit. `storage` is the sizes of volumes, as wanted, and what their snapshots take; `images` is
what those that projects know take, as they are packed, each counted once; `backups` are those that did not fail; `ports` are
published ones. `tokens` are those of service accounts that are neither revoked nor expired."""
PRIORITY = "priority"
"""The limit that counts nothing: no instance of the organization has a higher one."""
OF_ORGANIZATIONS = (*COUNTED, PRIORITY)
OF_PROJECTS = ("apps", "instances", "memory", "cpu", "volumes", "storage", "images", "backups", "ports")
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


@dataclass(frozen=True, slots=True)
class Standing:
    """What may run of an app beside its current config."""

    releases: tuple[Release, ...] = ()
    """What it aims at and returns to, and those of its unfinished deployments."""
    instances: tuple[Instance, ...] = ()
    """That live; they matter only where it is not `settled`."""


def settled(app: App, releases: Iterable[Release]) -> bool:
    """Whether its last release was rolled out in full, so that nothing else serves; `releases` is of `Standing`."""
    return any(each.id == app.stable_release_id and each.number == app.last_release_number for each in releases)


def app_takes(app: App, standing: Standing) -> Counter[str]:
    """What an app takes: instances, memory, CPU."""
    taken: Counter[str] = Counter()
    if not app.last_release_number or app.stopped or app.deleting:
        return taken
    for config in (app.config, *(release.config for release in standing.releases)):
        taken |= _wanted(app, config)
    for serving in _serving(standing):
        taken |= instances_take(serving)
    return taken


def _wanted(app: App, config: AppConfig) -> Counter[str]:
    taken: Counter[str] = Counter()
    counts = wanted_counts(app, config)
    for process in config.processes:
        taken.update(_sized(counts[process.name], process.memory_bytes, process.cpu_milli))
    return taken


def _serving(standing: Standing) -> Iterable[Sequence[Instance]]:
    """What serves, or is to: by each content and generation that is known, and all others together."""
    known = {release.content_hash for release in standing.releases}
    found: dict[tuple[str, int], list[Instance]] = {}
    for each in standing.instances:
        if each.live and each.owner is OwnerKind.APP and each.desired is Desired.SERVE:
            of = (each.content_hash, each.generation) if each.content_hash in known else ("", 0)
            found.setdefault(of, []).append(each)
    return found.values()


def instances_take(instances: Iterable[Instance]) -> Counter[str]:
    """What these take."""
    taken: Counter[str] = Counter()
    for each in instances:
        taken.update(_sized(1, each.memory_bytes, each.cpu_milli))
    return taken


def growth(before: Amounts, after: Amounts) -> dict[str, int]:
    """What is wanted more than before."""
    return {name: more for name, amount in after.items() if (more := amount - before.get(name, 0)) > 0}


def _sized(count: int, memory_bytes: int, cpu_milli: int) -> dict[str, int]:
    return {"instances": count, "memory": count * memory_bytes, "cpu": count * cpu_milli}
