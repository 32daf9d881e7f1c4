"""When checks are tried, and what follows from a row of tries.

Theory. A VM that has just started is tried at once and then at pauses of a twentieth of its age, up to the check's
interval: so waiting for the next try costs a cold start at most five percent, and a slow starter is not hammered. Once a
check has passed, its interval counts, and `retries` failures in a row turn it to failing; one pass turns it back.

A VM that was adopted after a restart of the agent may have been healthy for days. It is *unsettled* until its checks have
passed or failed as often as they may; until then the agent says nothing of it, so that a restart takes no endpoint out of
the routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from shellwego.agent.probes import Prober, Target
from shellwego.agent.waiting import cancel_all
from shellwego.core.apps import Check, CheckKind
from shellwego.core.assignments import Workload
from shellwego.core.health import Health, Verdict
from shellwego.ports.clock import Clock

SHORTEST_PAUSE_S = 0.005
PAUSE_SHARE = 0.05
"""Of the VM's age, between two tries before the first pass."""
MIN_INTERVAL_S = 0.1
SHORT_CONNECT_S = 0.25
RUNNING_S = 5.0
"""A workload without checks and without a port is healthy after running so long."""


@dataclass(frozen=True, slots=True)
class Streak:
    """What the tries of one check say so far."""

    since: float
    verdict: Verdict = Verdict.WAITING
    failures: int = 0
    reason: str = ""


def checks_of(workload: Workload) -> tuple[Check, ...]:
    """The checks of a workload: those given for its process, else a connection to its port; none where it has no port."""
    own = [check for check in workload.checks if check.process == workload.process]
    if own:
        return tuple(check if check.port else replace(check, port=workload.port) for check in own)
    return (Check(kind=CheckKind.TCP, process=workload.process, port=workload.port),) if workload.port else ()


def judge(streak: Streak, check: Check, reason: str, age: float, now: float) -> Streak:
    """The streak after one more try; `reason` is empty where it passed, `age` is the VM's."""
    if not reason:
        passed = replace(streak, failures=0, reason="")
        return passed if streak.verdict is Verdict.PASSING else replace(passed, verdict=Verdict.PASSING, since=now)
    failures = streak.failures + 1 if age >= check.grace_s else 0
    failed = replace(streak, failures=failures, reason=reason)
    if streak.verdict is Verdict.PASSING and failures >= check.retries:
        return replace(failed, verdict=Verdict.FAILING, since=now)
    return failed


def pause(streak: Streak, check: Check, age: float) -> float:
    """How long to wait before the next try."""
    interval = max(check.interval_s, MIN_INTERVAL_S)
    if streak.verdict is Verdict.WAITING:
        return min(interval, max(SHORTEST_PAUSE_S, age * PAUSE_SHARE))
    return interval


def combine(vm_id: str, streaks: Iterable[Streak]) -> Health:
    """The health of a VM by all its checks: failing if one fails, waiting if one waits, else passing since the last."""
    streaks = list(streaks)
    for verdict in (Verdict.FAILING, Verdict.WAITING):
        worst = [streak for streak in streaks if streak.verdict is verdict]
        if worst:
            reason = next((streak.reason for streak in worst if streak.reason), "")
            return Health(vm_id=vm_id, verdict=verdict, reason=reason, since=min(streak.since for streak in worst))
    return Health(vm_id=vm_id, verdict=Verdict.PASSING, since=max(streak.since for streak in streaks))


class _Watch:
    """The checks of one VM, each in a task of its own."""

    def __init__(
        self,
        target: Target,
        checks: tuple[Check, ...],
        *,
        adopted: bool,
        clock: Clock,
        prober: Prober,
        changed: Callable[[], None],
    ) -> None:
        self.target = target
        self.checks = checks
        self._clock = clock
        self._prober = prober
        self._changed = changed
        self._adopted = adopted
        self._started = clock.monotonic()
        self._streaks = [Streak(since=self._started)] * max(len(checks), 1)
        self.health = combine(target.vm_id, self._streaks)
        steps = [self._try_for_ever(place, check) for place, check in enumerate(checks)] or [self._endure()]
        self.tasks = [asyncio.create_task(step) for step in steps]

    def is_settled(self) -> bool:
        """What `health` says may be told."""
        return not self._adopted or all(
            streak.verdict is not Verdict.WAITING or streak.failures >= check.retries
            for streak, check in zip(self._streaks, self.checks or (_ENDURANCE,), strict=True)
        )

    async def _endure(self) -> None:
        await self._clock.sleep(RUNNING_S)
        self._set(0, replace(self._streaks[0], verdict=Verdict.PASSING, since=self._clock.monotonic()))

    async def _try_for_ever(self, place: int, check: Check) -> None:
        while True:
            streak = self._streaks[place]
            connect_s = check.timeout_s
            if streak.verdict is Verdict.WAITING:
                connect_s = min(check.timeout_s, max(SHORT_CONNECT_S, self._age()))
            reason = await self._prober.probe(self.target, check, connect_s)
            streak = judge(streak, check, reason, self._age(), self._clock.monotonic())
            self._set(place, streak)
            age = float("inf") if self._adopted else self._age()
            await self._clock.sleep(pause(streak, check, age))

    def _age(self) -> float:
        return self._clock.monotonic() - self._started

    def _set(self, place: int, streak: Streak) -> None:
        before = self.health, self.is_settled()
        self._streaks[place] = streak
        self.health = combine(self.target.vm_id, self._streaks)
        if (self.health, self.is_settled()) != before:
            self._changed()


_ENDURANCE = Check(kind=CheckKind.TCP, retries=1)
"""Stands for the one thing that is waited for where there are no checks."""


class Checker:
    """Keeps the checks of all running VMs going; `changed` is called when a verdict or its reason changes."""

    def __init__(self, clock: Clock, prober: Prober, changed: Callable[[], None]) -> None:
        self._clock = clock
        self._prober = prober
        self._changed = changed
        self._watches: dict[str, _Watch] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def health(self) -> Mapping[str, Health]:
        """By VM id."""
        return {vm_id: watch.health for vm_id, watch in self._watches.items()}

    def unsettled(self) -> frozenset[str]:
        """Instances of adopted VMs of which nothing can be told yet."""
        return frozenset(watch.target.instance_id for watch in self._watches.values() if not watch.is_settled())

    def sync(self, running: Mapping[str, tuple[Target, tuple[Check, ...]]], *, adopted: bool) -> None:
        """Check exactly these VMs (by id): start for those that are new, end for those that are gone."""
        for vm_id in self._watches.keys() - running.keys():
            self._end(vm_id)
        for vm_id, (target, checks) in running.items():
            watch = self._watches.get(vm_id)
            if watch is not None and (watch.target, watch.checks) != (target, checks):
                self._end(vm_id)
                watch = None
            if watch is None:
                self._watches[vm_id] = _Watch(
                    target, checks, adopted=adopted, clock=self._clock, prober=self._prober, changed=self._changed
                )

    async def close(self) -> None:
        """End all checks."""
        for vm_id in list(self._watches):
            self._end(vm_id)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _end(self, vm_id: str) -> None:
        ending = asyncio.create_task(cancel_all(self._watches.pop(vm_id).tasks))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
