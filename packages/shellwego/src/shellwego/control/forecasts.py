"""What a rollout would do to each process, told before it is done: how many stay, come and go, and whether there is room.

Room is judged by the placement that decides later, for as many as the strategy starts first. What only gets room when old
instances have gone is not told as an obstacle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shellwego.control.facts import node_usage, process_peers, process_request, releases_of
from shellwego.control.instances import live_instances
from shellwego.control.preemption import find_room
from shellwego.control.priorities import allowed_priority
from shellwego.core.apps import App, AppConfig, Process, wanted_counts
from shellwego.core.deployments import IMMEDIATE, Strategy
from shellwego.core.fleet import Fleet
from shellwego.core.instances import Desired, Instance
from shellwego.core.placement import NodeUsage, PlacementRequest, Refusal
from shellwego.ports.store import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessForecast:
    process: str
    count: int
    """How many are wanted afterwards."""
    kept: int
    started: int
    stopped: int
    obstacle: str = ""
    """Why the first that are to come could not be placed now; empty: they could."""
    pause: str = ""
    """The volume for which old instances stop before new ones start; empty: they need not."""
    evicts: int = 0
    """How many of lower priority would have to make room for the first that has none; 0: nothing makes it."""


def forecast(
    tx: Transaction, app: App, config: AppConfig, hashed: str, *, strategy: Strategy, weight: int
) -> tuple[ProcessForecast, ...]:
    """Each process of the config, and each that would go; `weight` is the first of a canary, else 100."""
    living = [i for i in live_instances(tx, app) if i.desired is Desired.SERVE]
    wanted = wanted_counts(app, config)
    nodes, usage, peers = tx.nodes.select(), node_usage(tx), process_peers(tx, app.id)
    found = []
    for process in config.processes:
        own = [i for i in living if i.process == process.name]
        fresh = [i for i in own if (i.content_hash, i.generation) == (hashed, app.generation)]
        count, kept = wanted[process.name], min(len(fresh), wanted[process.name])
        told = ProcessForecast(
            process=process.name, count=count, kept=kept, started=count - kept, stopped=len(own) - kept
        )
        stale = [i for i in own if i not in fresh]
        pause = _pause(tx, stale, process, config) if told.started else ""
        steps, share = (IMMEDIATE, 100) if pause else (strategy, weight)
        wave = _first_wave(told, len(own), steps, share)
        fleet = Fleet(nodes, _with_room(usage, stale, told, steps))
        mounted = (tx.volumes.get(mount.volume_id) for mount in config.mounts_of(process.name))
        request = process_request(process, config, [volume for volume in mounted if volume is not None])
        beside: Mapping[str, int] = peers.get(process.name, {})
        obstacle = _obstacle(fleet, request, beside, wave)
        made = find_room(tx, app, request, allowed_priority(tx, app, config), beside) if obstacle else None
        found.append(replace(told, obstacle=obstacle, pause=pause, evicts=len(made.victims) if made else 0))
    gone = {i.process for i in living} - wanted.keys()
    found += [
        ProcessForecast(process=name, count=0, kept=0, started=0, stopped=sum(i.process == name for i in living))
        for name in sorted(gone)
    ]
    return tuple(found)


def _pause(tx: Transaction, stale: Sequence[Instance], process: Process, config: AppConfig) -> str:
    """A volume that the process needs and an old instance of it has."""
    releases = releases_of(tx, [instance.release_id for instance in stale])
    held = frozenset[str]().union(*(each.config.volumes_of(process.name) for each in releases.values()))
    return next((mount.source for mount in config.mounts_of(process.name) if mount.volume_id in held), "")


def _first_wave(told: ProcessForecast, living: int, strategy: Strategy, weight: int) -> int:
    """How many are started before anything old goes; one at least, if any."""
    beyond = -(-told.count * weight // 100) if weight < 100 else strategy.surge(told.count)
    return max(min(told.started, 1), min(told.started, told.count + beyond - living))


def _with_room(
    usage: Mapping[str, NodeUsage], stale: Sequence[Instance], told: ProcessForecast, strategy: Strategy
) -> dict[str, NodeUsage]:
    """The usage of the nodes when the first are started: where none may be beyond, old ones go before."""
    room = dict(usage)
    first = stale[: strategy.unavailable(told.count)] if not strategy.surge(told.count) else []
    for instance in first:
        if instance.node_id in room:
            used = room[instance.node_id]
            room[instance.node_id] = replace(
                used,
                memory_bytes=used.memory_bytes - instance.memory_bytes,
                cpu_milli=used.cpu_milli - instance.cpu_milli,
                disk_bytes=used.disk_bytes - instance.disk_bytes,
            )
    return room


def _obstacle(fleet: Fleet, request: PlacementRequest, placed: Mapping[str, int], count: int) -> str:
    peers = fleet.peers(placed)
    for _ in range(count):
        outcome = fleet.place(request, peers)
        if isinstance(outcome, Refusal):
            return outcome.reason
        fleet.take(outcome.node_id, request, peers)
    return ""
