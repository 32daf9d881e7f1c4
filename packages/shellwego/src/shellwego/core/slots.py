"""One process of an app: which instances go, which come, within the strategy's numbers.

Theory. *Fresh* instances have the target's content and the app's generation, *stale* ones have not. Three steps, the same
for a deploy, a scale, a stop, a restart, a rollback, a failed instance, a lost node and one that is emptied:

1. fresh ones beyond the wanted count go, those that do not serve first;
2. stale ones go as far as the floor allows; those that do not serve are free to go, and those that have a volume which the
   target needs go whatever the floor, for it has one owner;
3. evicted ones, which are as they should be but not where, go once as many as are wanted serve without them;
4. missing fresh ones come, as far as the ceiling allows.

An evicted instance serves until it goes, so it counts as ready; but it fills no slot, so another one comes for its slot.
Where it sleeps, that one goes on with its memory, and sleeps too; whether it can is seen when it is placed.
Its own pace is that of a rolling deployment (`ROLLING`), whatever is rolled out meanwhile: none may be missing for a move.

The floor holds between plans because only what serves now is counted, the ceiling because it counts what is meant to serve,
new and old. Instances that drain or stop count for neither: they are on their way out, bounded by the drain time-out.

Two deadlocks are known. A surge in absolute numbers sticks after a scale-up, so it is a share of what is wanted now. And a
half-finished cutover that a newer release supersedes never yields if all stale ones are held until the new set is complete,
so a cutover holds one full set of stale instances and no more.

A canary (`core.canary`) is the same with a weight below 100: one full set of stale ones is held whatever is ready, and so
much of the fresh set may come beside it; more where stale ones are missing, since nobody starts those.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shellwego.core.apps import Release, RestartMode
from shellwego.core.changes import Change, Drain, Start, Stop
from shellwego.core.deployments import ROLLING, Strategy
from shellwego.core.instances import SERVING, Desired, Eviction, Instance, Phase
from shellwego.core.routes import service_port
from shellwego.core.target import Target

CLOCK_SLACK_S = 5.0
"""By so much may the times of two transactions be in another order than the transactions."""
REPLACE_BACKOFF_S = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
"""Pause before a slot is filled again after its first failure within the hour, the second, …; the node has spent its own
retries before each of them."""
FAILURE_WINDOW_S = 3600.0
DRAINABLE = frozenset({Phase.HEALTHY, Phase.UNHEALTHY, Phase.ASLEEP})
"""Phases in which requests may be under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFacts:
    """What the plan of one process starts from."""

    process: str
    wanted: int
    target: Target
    strategy: Strategy
    instances: tuple[Instance, ...]
    """Of this process, without those that are lost."""
    releases: Mapping[str, Release]
    hold: bool = False
    """Nothing that serves is replaced; only what is missing is made up for."""
    keep_serving: bool = False
    """The target has no such process, but the rest of it is not ready yet."""
    weight: int = 100
    """Percent of the wanted count that may be fresh; below 100 stale ones are held."""
    yielding: frozenset[str] = frozenset()
    """Stale ones that have a volume which the target needs."""

    @property
    def part(self) -> int:
        """How many the weight stands for."""
        return -(-self.wanted * self.weight // 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    changes: tuple[Change, ...] = ()
    next_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """The instances of a process, sorted by what they are to the plan."""

    fresh: tuple[Instance, ...]
    evicted: tuple[Instance, ...]
    """Of the target as the fresh ones, but they have to leave their nodes."""
    stale: tuple[Instance, ...]
    completed: tuple[Instance, ...]
    """Fresh ones that ended well and are not to be restarted: they fill their slots."""

    @property
    def ready(self) -> int:
        """Instances of the target that do, or did, what they are for; without those that go now."""
        staying = [i for i in self.evicted if i.eviction is not Eviction.FORCED]
        return _serving(self.fresh) + _serving(staying) + len(self.completed)


def census(facts: SlotFacts) -> Census:
    """Sort the instances that are meant to serve."""
    alive = [i for i in facts.instances if i.live and i.desired is Desired.SERVE]
    return Census(
        fresh=tuple(i for i in alive if facts.target.matches(i) and not i.evicted),
        evicted=tuple(i for i in alive if facts.target.matches(i) and i.evicted),
        stale=tuple(i for i in alive if not facts.target.matches(i)),
        completed=tuple(i for i in facts.instances if i.slot < facts.wanted and is_completed(i, facts.target)),
    )


def staying(facts: SlotFacts) -> list[Instance]:
    """Those of the target that this process keeps for now: without those beyond the wanted count, and without those that
    are replaced elsewhere."""
    counted = census(facts)
    going = {i.id for i in _leaving(facts, counted)}
    return [i for i in (*counted.fresh, *counted.evicted) if i.id not in going]


def is_completed(instance: Instance, target: Target) -> bool:
    """It ended by itself, well, and its process is one that may: no service, no restart after a clean exit."""
    if instance.phase is not Phase.STOPPED or instance.desired is not Desired.SERVE or not target.matches(instance):
        return False
    process = target.process(instance.process)
    return (
        process is not None
        and process.restart.mode is not RestartMode.ALWAYS
        and target.release is not None
        and not service_port(target.release.config, process.name)
    )


def has_failed(instance: Instance, target: Target) -> bool:
    """It ended by itself without having done what it is for."""
    ended = instance.phase in (Phase.FAILED, Phase.STOPPED) and instance.desired is Desired.SERVE
    return ended and target.matches(instance) and not is_completed(instance, target)


def plan_slots(facts: SlotFacts, now: float) -> SlotPlan:
    """The changes of one process."""
    counted = census(facts)
    leaving = _leaving(facts, counted)
    starts, next_at = _starts(facts, counted, leaving, now)
    removals = [remove(i, facts.releases, _reason(i)) for i in leaving]
    return SlotPlan(changes=(*removals, *starts), next_at=next_at)


def _reason(instance: Instance) -> str:
    if instance.preempted:
        return "preempted: its place is needed for an instance of higher priority"
    return "has to leave its node" if instance.evicted else "no longer wanted"


def _leaving(facts: SlotFacts, counted: Census) -> list[Instance]:
    """All that may go now."""
    going = [*_surplus(facts, counted), *_outdated(facts, counted)]
    return [*going, *_moving(facts, counted, going)]


def remove(instance: Instance, releases: Mapping[str, Release], reason: str) -> Change:
    """The first step out: drain what may have requests under way, stop what cannot."""
    release = releases.get(instance.release_id)
    port = service_port(release.config, instance.process) if release else 0
    if port and instance.phase in DRAINABLE:
        return Drain(instance_id=instance.id, reason=reason)
    return Stop(instance_id=instance.id, reason=reason)


def _surplus(facts: SlotFacts, counted: Census) -> list[Instance]:
    """Fresh ones beyond the wanted count: those that do not serve first, then the highest slots."""
    beyond = len(counted.fresh) + len(counted.completed) - facts.wanted
    return sorted(counted.fresh, key=lambda i: (i.phase in SERVING, -i.slot, i.id))[: max(0, beyond)]


def _outdated(facts: SlotFacts, counted: Census) -> list[Instance]:
    """Stale ones that may go now: what yields, what does not serve, and of what else serves as much as floor and cutover
    leave; first those that have to leave their nodes anyway. What has to at once goes whatever the floor (`_moving`), and
    does not count here."""
    if facts.hold:
        return []
    canary = facts.weight < 100
    done = counted.ready >= facts.wanted and not facts.keep_serving and not canary
    going = [] if canary else [i for i in counted.stale if i.id in facts.yielding]
    rest = [i for i in counted.stale if i not in going and i.eviction is not Eviction.FORCED]
    held = _serving(rest)
    spare = counted.ready + held - _floor(facts, held)
    for instance in sorted(rest, key=lambda i: (i.phase in SERVING, not i.evicted, -i.created_at, i.slot, i.id)):
        if instance.phase in SERVING and not done:
            if spare <= 0 or ((facts.strategy.cutover or canary) and held <= facts.wanted):
                continue
            spare -= 1
            held -= 1
        going.append(instance)
    return going


def _moving(facts: SlotFacts, counted: Census, leaving: Sequence[Instance]) -> list[Instance]:
    """Evicted ones that may go now: by force, or because they do not serve, or because enough serve without them."""
    forced = [i for i in (*counted.evicted, *counted.stale) if i.eviction is Eviction.FORCED and i not in leaving]
    gone = {i.id for i in (*leaving, *forced)}
    gentle = [i for i in counted.evicted if i.eviction is not Eviction.FORCED]
    idle = [i for i in gentle if i.phase not in SERVING]
    serving = sorted((i for i in gentle if i.phase in SERVING), key=lambda i: (i.slot, i.id))
    ready = counted.ready - _serving(i for i in counted.fresh if i.id in gone)
    needed = max(facts.part, facts.wanted - _serving(i for i in counted.stale if i.id not in gone))
    return [*forced, *idle, *serving[: max(0, ready - needed)]]


def _floor(facts: SlotFacts, serving: int) -> int:
    """How many must go on serving.

    A process that is to vanish has no wanted count to take a share of; it serves on in full until the rest is ready, unless
    the strategy spares nothing. (No share of what serves: that is less once one is gone, and then the next might go.)
    """
    if facts.keep_serving:
        return 0 if facts.strategy.spares_nothing else serving
    return facts.wanted - facts.strategy.unavailable(facts.wanted)


def _starts(
    facts: SlotFacts, counted: Census, leaving: Sequence[Instance], now: float
) -> tuple[list[Start], float | None]:
    """Starts for free slots within the ceiling; and when the first slot that has to wait may be filled."""
    release = facts.target.release
    if release is None:
        return [], None
    gone = {i.id for i in leaving}
    fresh = [i for i in counted.fresh if i.id not in gone]
    stale = [i for i in counted.stale if i.id not in gone]
    moving = sum(i.id not in gone for i in counted.evicted)
    filled = len(fresh) + len(counted.completed)
    room = facts.wanted + _surge(facts, moving) - filled - len(stale) - moving
    missing = min(facts.wanted, max(facts.part, facts.wanted - len(stale))) - filled
    left = sorted(i.slot for i in counted.evicted if i.id not in gone)
    slots = _free_slots({i.slot for i in (*fresh, *counted.completed)}, left, missing)
    failures = _failures(facts)
    due = {slot: _due(failures.get(slot, ()), now) for slot in slots}
    ready = [slot for slot in slots if due[slot] <= now][: max(0, room)]
    asleep = {i.slot: i.id for i in counted.evicted if i.sleeps and i.id not in gone}
    starts = [
        Start(
            process=facts.process,
            slot=slot,
            release_id=release.id,
            generation=facts.target.generation,
            memory_of=asleep.get(slot, ""),
        )
        for slot in ready
    ]
    return starts, min((moment for moment in due.values() if moment > now), default=None)


def _surge(facts: SlotFacts, moving: int) -> int:
    """How many may exist beyond the wanted count, where so many wait to be replaced elsewhere."""
    moves = min(moving, ROLLING.surge(facts.wanted))
    if facts.hold:
        return moves
    return facts.part + moves if facts.weight < 100 else max(facts.strategy.surge(facts.wanted), moves)


def _free_slots(taken: set[int], leaving: Iterable[int], count: int) -> list[int]:
    """Those first of which somebody has to leave his node, since who comes for him is known by the slot; then the lowest."""
    first = [slot for slot in leaving if slot not in taken]
    others = (slot for slot in itertools.count() if slot not in taken and slot not in first)
    return list(itertools.islice(itertools.chain(first, others), max(0, count)))


def _failures(facts: SlotFacts) -> dict[int, list[float]]:
    """When which slot failed, as far as it counts for this target."""
    found: dict[int, list[float]] = {}
    for instance in facts.instances:
        if instance.phase_since >= facts.target.failures_since and has_failed(instance, facts.target):
            found.setdefault(instance.slot, []).append(instance.phase_since)
    return found


def _due(failures: Sequence[float], now: float) -> float:
    """When a slot may be filled again, by how often it failed in the hour up to its last failure.

    A failure that lies ahead is of a clock that was set back since: to wait for it may take as long as the step was.
    """
    failures = [moment for moment in failures if moment <= now + CLOCK_SLACK_S]
    if not failures:
        return now
    recent = sum(moment > max(failures) - FAILURE_WINDOW_S for moment in failures)
    return max(failures) + REPLACE_BACKOFF_S[min(recent, len(REPLACE_BACKOFF_S)) - 1]


def _serving(instances: Iterable[Instance]) -> int:
    return sum(instance.phase in SERVING for instance in instances)
