"""The life of a VM: states and the moves between them.

Theory. A VM is one-shot: it is made, runs once and ends; nothing brings it back (whoever wants another attempt makes
another VM). So states never move backwards, except around the pair RUNNING ⇄ PAUSED and RUNNING ⇄ SUSPENDED, whose
memory survives: a suspend that fails or is cancelled leads back to RUNNING, a resume that could not begin back to
SUSPENDED. STOPPED (the workload ended or was stopped), FAILED (it never could, or the VMM died) and DELETED are
terminal for the workload: only clean-up (DELETING → DELETED) follows. FAILED may be entered from each living state,
because a VMM can be killed at any moment.

The table is data: `MOVES[a]` is the set of states that may follow `a`. Tests walk all pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class VmState(StrEnum):
    PENDING = "pending"
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DELETING = "deleting"
    DELETED = "deleted"


S = VmState
MOVES: Mapping[VmState, frozenset[VmState]] = {
    S.PENDING: frozenset({S.PREPARING, S.STOPPED, S.FAILED, S.DELETING}),
    S.PREPARING: frozenset({S.STARTING, S.STOPPING, S.FAILED}),
    S.STARTING: frozenset({S.RUNNING, S.STOPPING, S.STOPPED, S.FAILED}),
    S.RUNNING: frozenset({S.PAUSED, S.SUSPENDING, S.STOPPING, S.STOPPED, S.FAILED}),
    S.PAUSED: frozenset({S.RUNNING, S.STOPPING, S.FAILED}),
    S.SUSPENDING: frozenset({S.SUSPENDED, S.RUNNING, S.STOPPED, S.FAILED}),
    S.SUSPENDED: frozenset({S.RESUMING, S.STOPPED, S.FAILED, S.DELETING}),
    S.RESUMING: frozenset({S.RUNNING, S.SUSPENDED, S.FAILED}),
    S.STOPPING: frozenset({S.STOPPED, S.FAILED}),
    S.STOPPED: frozenset({S.DELETING}),
    S.FAILED: frozenset({S.DELETING}),
    S.DELETING: frozenset({S.DELETED}),
    S.DELETED: frozenset(),
}
ENDED = frozenset({S.STOPPED, S.FAILED, S.DELETING, S.DELETED})
"""States in which no workload runs any more and none will."""


class ForbiddenMoveError(ValueError):
    """A move that the table does not know: a defect of the caller, never of a user."""


def advance(current: VmState, to: VmState) -> VmState:
    """Return `to` if it may follow `current`.

    Raises:
        ForbiddenMoveError: the table forbids the move.
    """
    if to not in MOVES[current]:
        raise ForbiddenMoveError(f"{current.value} -> {to.value}")
    return to
