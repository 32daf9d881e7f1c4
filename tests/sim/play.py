"""Plays one story from its first event to a platform in peace, and says what was wrong."""

from __future__ import annotations

import gc
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from shellwego.core.errors import ShellWeGoError
from shellwego.core.vms import VmPhase
from tests.sim import timeline
from tests.sim.settled import unsettled
from tests.sim.story import Event, Fault, Story
from tests.sim.tenant import Tenant
from tests.sim.watch import Violation
from tests.sim.world import World

ANSWERS_S = 60.0
"""After the healing every request is answered within so long."""
QUIET_S = 30.0
"""And then everything agrees within so long."""
DEAD_S = 60.0
"""A node that died just before has to be found out first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    story: Story
    violation: Violation | None
    """The first."""
    digest: str
    counts: Mapping[tuple[str, str], int]
    """Requests by fault and operation."""
    outcomes: Mapping[tuple[str, str], int]
    trace: tuple[str, ...]
    commits: int
    seconds: float
    """Of virtual time."""


class _Stop(Exception):
    """Something was violated; what follows is no news."""


def play(story: Story, *, keep_trace: bool = False) -> Outcome:
    """Play it, up to the first violation."""
    gc.disable()
    try:
        with tempfile.TemporaryDirectory(dir=_memory()) as scratch:
            return timeline.run(_play(story, Path(scratch), keep_trace))
    finally:
        gc.enable()


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


async def _play(story: Story, scratch: Path, keep_trace: bool) -> Outcome:
    world = World(story, scratch, keep_trace=keep_trace)
    listen(world)
    tenants = [Tenant(world, index) for index in range(story.apps)]
    try:
        await world.open()
        for tenant in tenants:
            world.spawn(tenant.run())
        for part in story.parts:
            await world.clock.advance(max(0.0, part.at + 0.5 - world.clock.monotonic()))
            await _begin(world, tenants, part)
            _check(world, tenants)
        await world.clock.advance(2.0)
    except _Stop:
        pass
    await finish(world, tenants)
    seconds = world.clock.monotonic()
    violations = list(world.watch.violations)
    await world.close()
    return Outcome(
        story=story,
        violation=violations[0] if violations else None,
        digest=world.watch.digest,
        counts=world.counts,
        outcomes=world.outcomes,
        trace=tuple(world.watch.trace),
        commits=world.watch.commits,
        seconds=seconds,
    )


async def _begin(world: World, tenants: list[Tenant], part: Event | Fault) -> None:
    match part:
        case Fault():
            await world.faults.begin(part)
        case Event(kind="session"):
            edge = world.edges[part.number % len(world.edges)]
            await edge.open_session(part.number // 2, 0.1 + part.number % 50 / 10)
        case Event(kind="workload-ends"):
            _end_workload(world, part.number)
        case Event():
            tenants[part.app].ask(part)


def _end_workload(world: World, number: int) -> None:
    running = [
        (node, view.vm_id) for node in world.nodes for view in node.engine.views if view.phase is VmPhase.RUNNING
    ]
    if running:
        node, vm_id = running[number % len(running)]
        node.engine.end(vm_id, number % 2)


def _check(world: World, tenants: list[Tenant]) -> None:
    """The invariants of every step, beside those of every commit."""
    for tenant in tenants:
        tenant.check()
    _check_addresses(world)
    if world.watch.violations:
        raise _Stop


def _check_addresses(world: World) -> None:
    owners: dict[str, str] = {}
    for node in world.nodes:
        for view in node.engine.views:
            if view.address and view.phase is not VmPhase.ENDED:
                other = owners.setdefault(view.address, view.vm_id)
                if other != view.vm_id:
                    world.watch.violated("two-owners", f"{view.address} is of {other} and of {view.vm_id}")
    for edge in world.edges:
        _check_tenants(world, edge, owners)


def _check_tenants(world: World, edge: Any, owners: Mapping[str, str]) -> None:
    """No request of one app reaches another's VM."""
    apps = {host: app.id for app in world.rows("apps").values() for host in (app.hostname,)}
    rows = world.rows("instances")
    by_backend: dict[str, set[str]] = {}
    for (backend, server), _ in edge.ready().items():
        row = rows.get(server.partition(".")[0])
        if row is not None:
            by_backend.setdefault(backend, set()).add(row.app_id)
    for host, backend in edge.pool.hosts.items():
        foreign = by_backend.get(backend, set()) - {apps.get(host, "")}
        if foreign and host in apps:
            world.watch.violated("two-owners", f"{edge.name}: {host} leads to VMs of {sorted(foreign)}")


async def finish(world: World, tenants: list[Tenant]) -> None:
    """Heal what can be healed, and see whether all agrees soon; not where something was violated already."""
    if not world.watch.violations:
        with suppress(_Stop):
            await _end(world, tenants)


async def _end(world: World, tenants: list[Tenant]) -> None:
    await world.faults.heal()
    await _until(world, lambda: all(tenant.idle for tenant in tenants), ANSWERS_S)
    unanswered = [tenant.name for tenant in tenants if not tenant.idle]
    if unanswered:
        world.watch.violated("no-answer", f"{', '.join(unanswered)} got no answer")
        raise _Stop
    dead = any(node.dead for node in world.nodes)
    await _until(world, lambda: not unsettled(world), QUIET_S + DEAD_S * dead)
    left = unsettled(world)
    if left:
        world.watch.violated("not-settled", "; ".join(left[:6]))
    _check(world, tenants)


async def _until(world: World, reached: Any, seconds: float) -> None:
    end = world.clock.monotonic() + seconds
    while not reached() and world.clock.monotonic() < end and not world.watch.violations:
        await world.clock.advance(1.0)


def listen(world: World) -> None:
    """Whatever the platform logs with a trace is a defect of it; the rest is not kept."""

    def hear(logger: Any, method: str, line: dict[str, Any]) -> Any:
        error = line.get("exc_info")
        if isinstance(error, BaseException) and not isinstance(error, ShellWeGoError):
            world.watch.violated("defect", f"{line['event']}: {error!r} {line.get('reason', '')}")
        elif error is True:
            world.watch.violated("defect", f"{line['event']}")
        raise structlog.DropEvent

    structlog.configure(
        processors=[hear],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        cache_logger_on_first_use=False,
    )


__all__ = ["Counter", "Outcome", "play"]
