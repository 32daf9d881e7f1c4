"""Instances: what fills a slot of a process.

An instance keeps its id and its node and is replaced, never moved. Three writers share the row, each with its own
columns: the control plane says what it wants (`desired`), the node what it saw (`observed`, with epoch and sequence), the
control plane again how far to believe it (`judged`). Planners read judged over observed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from shellwego.core.placement_rules import DEFAULT_PRIORITY


class Phase(StrEnum):
    PENDING = "pending"
    """No node yet."""
    ASSIGNED = "assigned"
    """A node was chosen and has not reported yet."""
    STARTING = "starting"
    """The node prepares or boots it, or checks have not passed yet."""
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    ASLEEP = "asleep"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """Retries are spent, or it can never start."""
    LOST = "lost"
    """Its node was judged dead; what becomes of it there no longer matters."""


P = Phase
PHASE_MOVES: Mapping[Phase, frozenset[Phase]] = {
    P.PENDING: frozenset({P.ASSIGNED, P.STOPPED, P.FAILED}),
    P.ASSIGNED: frozenset({P.STARTING, P.HEALTHY, P.UNHEALTHY, P.ASLEEP, P.STOPPING, P.STOPPED, P.FAILED, P.LOST}),
    P.STARTING: frozenset({P.HEALTHY, P.UNHEALTHY, P.ASLEEP, P.STOPPING, P.STOPPED, P.FAILED, P.LOST}),
    P.HEALTHY: frozenset({P.STARTING, P.UNHEALTHY, P.ASLEEP, P.STOPPING, P.STOPPED, P.FAILED, P.LOST}),
    P.UNHEALTHY: frozenset({P.STARTING, P.HEALTHY, P.ASLEEP, P.STOPPING, P.STOPPED, P.FAILED, P.LOST}),
    P.ASLEEP: frozenset({P.STARTING, P.HEALTHY, P.UNHEALTHY, P.STOPPING, P.STOPPED, P.FAILED, P.LOST}),
    P.STOPPING: frozenset({P.STOPPED, P.FAILED, P.LOST}),
    P.STOPPED: frozenset(),
    P.FAILED: frozenset(),
    P.LOST: frozenset(),
}
TERMINAL = frozenset({P.STOPPED, P.FAILED, P.LOST})
SERVING = frozenset({P.HEALTHY, P.ASLEEP})
"""Phases that count as capacity. One that sleeps takes no requests and is not woken by any, but somebody put it to sleep
and is to wake it: it keeps its slot, and no other is started for it."""


class Desired(StrEnum):
    SERVE = "serve"
    """Present, and in the routes while healthy."""
    DRAIN = "drain"
    """Present, out of the routes, finishing what it has."""
    STOP = "stop"
    """Absent."""


class Sleep(StrEnum):
    """Whether an instance that is present is to sleep. Whether it does is observed (`Phase.ASLEEP`)."""

    AWAKE = "awake"
    DOZING = "dozing"
    """Out of the routes, finishing what it has; then it is to sleep."""
    ASLEEP = "asleep"
    """On its node's disk, until somebody wakes it."""


class Eviction(StrEnum):
    """Whether an instance has to leave its node, though it may be what it should be. It is never taken back once another
    one was started for it."""

    NONE = "none"
    QUEUED = "queued"
    """It is to move once its turn comes; until then it stays."""
    GENTLE = "gentle"
    """As soon as another one serves in its place."""
    FORCED = "forced"
    """Now, replaced or not."""


SUSPEND_FAILED = "suspend-failed"
"""Reason code of a node that could not put an instance to sleep: it runs on."""
PREEMPTED = "preempted"
"""Reason code of an instance whose place was needed for one of higher priority."""
MEMORY_LOST = "memory-lost"
"""Reason code of a node that could not wake an instance ever again, or could not get the memory that it was to go on with:
it begins anew."""


class OwnerKind(StrEnum):
    APP = "app"
    RUN = "run"
    """A one-off command (`swg run`); never routed, never restarted, never touched by the rollout planner."""


UNIX = "unix:"
"""How the address of a VM begins that is a socket on its node, which has no ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the node last said about an instance. `sequence` orders reports within an epoch."""

    phase: Phase = Phase.PENDING
    attempt: int = 0
    vm_id: str = ""
    address: str = ""
    """IPv4 address of its VM, while it has one; or `unix:path`, where a VM without a network takes requests."""
    private_address: str = ""
    """IPv6 address of its VM on the project's private network, while it has one."""
    reason: str = ""
    reason_code: str = ""
    exit_code: int | None = None
    ends: int = 0
    """How often its workload ended without being asked to."""
    log_tail: tuple[str, ...] = ()
    detail: str = ""
    """While starting: what it does now (`image`, `disks`, `boot`, `checks`)."""
    epoch: int = 0
    sequence: int = 0

    @property
    def ipv4(self) -> str:
        """Its address on the network; empty where it has none, or a socket on its node."""
        return "" if self.address.startswith(UNIX) else self.address


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    id: str
    app_id: str
    owner: OwnerKind = OwnerKind.APP
    process: str
    slot: int
    release_id: str
    content_hash: str
    generation: int
    command: tuple[str, ...] | None = None
    """Only for one-off runs: what to run in place of the release's command."""
    deployment_id: str = ""
    """Only for a release command: the deployment that waits for it."""
    memory_bytes: int
    cpu_milli: int
    disk_bytes: int
    node_id: str = ""
    desired: Desired = Desired.SERVE
    sleep: Sleep = Sleep.AWAKE
    eviction: Eviction = Eviction.NONE
    memory_of: str = ""
    """The instance that sleeps elsewhere, whose memory this one is to go on with; empty once it has that, or never will."""
    priority: int = DEFAULT_PRIORITY
    """What its app asks for, as far as the organization's limit allows."""
    reserved_node_id: str = ""
    """While it has no node: the one where room is made for it, and kept."""
    makes_room_for: str = ""
    """Where it was evicted for that: the instance that gets its place."""
    phase: Phase = Phase.PENDING
    """Judged: what planners read. Follows `observed.phase` while the node is believed."""
    observed: Observed = Observed()
    placement_reason: str = ""
    """Why it could not be placed yet: the filters' own words."""
    routed_version: int | None = None
    """The routes version from which on edges send it requests; None while it never was in the routes."""
    unrouted_version: int | None = None
    """The routes version from which on no edge sends it new requests; None while it is routed or never was."""
    drain_since: float | None = None
    created_at: float
    phase_since: float
    stopped_at: float | None = None
    version: int = 1

    @property
    def live(self) -> bool:
        """It has, or will have, something on a node."""
        return self.phase not in TERMINAL

    @property
    def wanted(self) -> Desired:
        """What is wanted of it now. Of what has ended, nothing is.

        Its row keeps what was wanted when it ended: by that a plan tells an end of its own from one that was asked for.
        """
        return self.desired if self.live else Desired.STOP

    @property
    def evicted(self) -> bool:
        """It has to leave its node."""
        return self.eviction in (Eviction.GENTLE, Eviction.FORCED)

    @property
    def sleeps(self) -> bool:
        """It lies on its node's disk, and is to stay there until it is woken."""
        return self.desired is Desired.SERVE and self.sleep is Sleep.ASLEEP and self.phase is Phase.ASLEEP

    @property
    def preempted(self) -> bool:
        """It has to go, or had, because an instance of higher priority needs its place."""
        return bool(self.makes_room_for)

    @property
    def serving(self) -> bool:
        """It counts as capacity now, be it awake or not."""
        return self.desired is Desired.SERVE and self.phase in SERVING
