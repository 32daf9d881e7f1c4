"""Moving a volume to another node: what comes next. Pure; `now` is an argument.

Theory. A move makes a replica where the volume is to be, and brings it up in rounds while the app runs; each is smaller than
the one before, as far as the app lets it. Then whoever holds the volume has to leave it, as in a deploy, and nobody may
take it; one last round is sent, of a volume that nobody writes; and in one transaction the volume is on the other node, and
what was the volume is the replica. It goes only once the volume was reported present where it is now. Where that node is
removed before, the volume is where it came from again, as the last round has it, and the move has failed.

    copying → stopping → last → arriving → clearing → done
       ↑         |         |
       └─────────┴─────────┘      the other node is not there any more, or takes too long: the app goes on where it was

So who owns the data is one row's word at any time. Whoever wrote before the last round was taken had ended by then, and the
volume's node was told, and had heard, that nobody begins (`closed`); so it sends that round only then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

SMALL_BYTES = 32 << 20
"""A round of no more than so much is not worth another one while the app runs."""
MOST_ROUNDS = 3
"""While the app runs, before it is stopped the first time."""
LAST_S = 120.0
"""So long the app may be stopped for the last round; then it goes on where it was."""
MOST_STOPS = 3
"""So often that is tried."""
PAUSE_S = 60.0
"""So long the app is left alone before it is stopped again."""
RETURN_S = 120.0
"""So long a move waits for the app, once the volume is where it is to be."""


class MoveStage(StrEnum):
    COPYING = "copying"
    """Rounds, while the app runs."""
    STOPPING = "stopping"
    """Whoever holds the volume has to leave it."""
    LAST = "last"
    """The last round, while nobody has it."""
    ARRIVING = "arriving"
    """It is on the other node, which has not said so yet."""
    CLEARING = "clearing"
    """It is there; the copy left behind goes, and the app comes back."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


S = MoveStage
STAGE_MOVES: Mapping[MoveStage, frozenset[MoveStage]] = {
    S.COPYING: frozenset({S.STOPPING, S.FAILED, S.CANCELLED}),
    S.STOPPING: frozenset({S.LAST, S.COPYING, S.FAILED, S.CANCELLED}),
    S.LAST: frozenset({S.ARRIVING, S.COPYING, S.FAILED, S.CANCELLED}),
    S.ARRIVING: frozenset({S.CLEARING, S.FAILED}),
    S.CLEARING: frozenset({S.DONE, S.FAILED}),
    S.DONE: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELLED: frozenset(),
}
BEFORE_SWITCH = frozenset({S.COPYING, S.STOPPING, S.LAST})
"""The volume is where it was."""
CLOSED = frozenset({S.STOPPING, S.LAST})
"""Nobody may take the volume."""
ENDED = frozenset({S.DONE, S.FAILED, S.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMove:
    """A move of a volume, the last one: also after it has ended."""

    replica_id: str
    source_node_id: str
    target_node_id: str
    stage: MoveStage = MoveStage.COPYING
    rounds: int = 1
    """That were asked for."""
    stops: int = 0
    """How often the volume was taken from whoever held it."""
    sent_bytes: int = 0
    """In the rounds that have ended."""
    last_bytes: int = 0
    """In the last of them."""
    reason: str = ""
    """What it waits for, or why it ended otherwise than wished."""
    began_at: float
    stage_at: float
    """When the stage began."""
    stopped_at: float | None = None
    """When whoever held the volume was told to leave it; None: nobody was."""
    back_at: float | None = None
    """When the app served again."""
    ended_at: float | None = None
    refused_by: tuple[str, ...] = ()
    """Nodes that this move, or one before, found to have something else under the volume's id."""

    @property
    def active(self) -> bool:
        """It has not ended."""
        return self.stage not in ENDED

    @property
    def closed(self) -> bool:
        """Nobody may take the volume."""
        return self.stage in CLOSED

    @property
    def held_up(self) -> bool:
        """It waits for a node, or for room for the app there, and nobody knows how long."""
        return self.stage in (S.COPYING, S.ARRIVING) and self.reason != ""

    @property
    def stopped_s(self) -> float | None:
        """How long the app was stopped; None: it was not, or is not back yet."""
        if self.stopped_at is None or self.back_at is None:
            return None
        return max(self.back_at - self.stopped_at, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveFacts:
    """All that the next step of a move follows from."""

    move: VolumeMove
    source_ready: bool
    target_ready: bool
    target_exists: bool = True
    round: int
    """That is wanted of the replica."""
    round_held: int
    round_bytes: int = 0
    """In the last round that is held."""
    trouble: str = ""
    """Why the replica's node cannot bring it up."""
    foreign: bool = False
    """What is there under the volume's id was never of the replica, and is left alone."""
    held: bool = False
    """Somebody has the volume."""
    leaving: bool = False
    """Whoever has the volume is told to leave it. He was, and it was taken back, where his node was opened again since."""
    obstacle: str = ""
    """Why whoever has the volume could not be on the other node; empty: he could."""
    arrived: bool = False
    """The volume was reported present where it is now."""
    cleared: bool = False
    """Nothing is left of the copy that is to go."""
    returned: bool = True
    """Whoever mounts the volume serves, or nobody mounts it."""


class Step(StrEnum):
    """What is done next, beside noting the stage."""

    WAIT = "wait"
    ROUND = "round"
    """Ask for another round."""
    STOP = "stop"
    """Have whoever holds the volume leave it."""
    SWITCH = "switch"
    """The volume is on the other node."""
    DROP = "drop"
    """The replica is to go."""


@dataclass(frozen=True, slots=True)
class MovePlan:
    move: VolumeMove
    """As it is after the step."""
    step: Step = Step.WAIT


def plan_move(facts: MoveFacts, now: float) -> MovePlan:
    """What is next for a move."""
    move = facts.move
    if move.stage in BEFORE_SWITCH and not facts.target_exists:
        return MovePlan(_ended(move, S.FAILED, "the node it was to go to was removed", now), Step.DROP)
    if move.stage in BEFORE_SWITCH and facts.foreign:
        why = "the node it was to go to has something else under the volume's id, which was left alone"
        refused_by = (*move.refused_by, move.target_node_id)
        return MovePlan(replace(_ended(move, S.FAILED, why, now), refused_by=refused_by), Step.DROP)
    stages = {
        S.COPYING: _copying,
        S.STOPPING: _closed,
        S.LAST: _closed,
        S.ARRIVING: _arriving,
        S.CLEARING: _clearing,
    }
    return stages[move.stage](facts, now) if move.active else MovePlan(move)


def _copying(facts: MoveFacts, now: float) -> MovePlan:
    move = facts.move
    ready = facts.source_ready and facts.target_ready
    if facts.round_held < facts.round or not ready or facts.obstacle:
        return _waits(move, _hindrance(facts) or (facts.obstacle if ready else ""))
    if move.stops >= MOST_STOPS:
        why = f"the app was stopped {MOST_STOPS} times, and each time the last round took too long"
        return MovePlan(_ended(move, S.FAILED, why, now), Step.DROP)
    if move.stops and now - move.stage_at < PAUSE_S:
        return MovePlan(move)
    counted = _counted(move, facts)
    if facts.round_bytes > SMALL_BYTES and move.rounds < MOST_ROUNDS:
        return MovePlan(replace(counted, rounds=move.rounds + 1, reason=""), Step.ROUND)
    stopped_at = now if facts.held else None
    return MovePlan(_at(replace(counted, stops=move.stops + 1, stopped_at=stopped_at), S.STOPPING, now), Step.STOP)


def _closed(facts: MoveFacts, now: float) -> MovePlan:
    """While nobody may have the volume. What takes too long is given up for now, and the app goes on."""
    move = facts.move
    if not facts.target_ready:  # also with the last round: what is switched to it waits for it, and cannot be given up
        return _reopened(move, "the node it goes to does not answer", now)
    if move.stage is S.LAST and facts.round_held >= facts.round:
        return MovePlan(_at(_counted(move, facts), S.ARRIVING, now), Step.SWITCH)
    if move.stage is S.STOPPING:
        if facts.held:
            told = _waits(move, "whoever has it stops")
            return told if facts.leaving else replace(told, step=Step.STOP)
        return MovePlan(_at(replace(move, rounds=move.rounds + 1), S.LAST, now), Step.ROUND)
    if now - move.stage_at >= LAST_S:
        why = facts.trouble or "it was under way"
        return _reopened(move, f"the last round took longer than {LAST_S:g} s: {why}", now)
    return _waits(move, _hindrance(facts))


def _arriving(facts: MoveFacts, now: float) -> MovePlan:
    if facts.arrived:
        return MovePlan(_at(facts.move, S.CLEARING, now), Step.DROP)
    return _waits(facts.move, "its new node has not taken it over yet")


def _clearing(facts: MoveFacts, now: float) -> MovePlan:
    move = facts.move
    if move.back_at is None and facts.returned:
        move = replace(move, back_at=now)
    late = now - move.stage_at >= RETURN_S
    if move.back_at is None and not late:
        return _waits(move, "the app comes back")
    if not facts.cleared:
        return _waits(move, "the copy left behind is deleted")
    why = "" if move.back_at is not None else f"the app did not come back within {RETURN_S:g} s"
    return MovePlan(_ended(move, S.DONE, why, now))


def _at(move: VolumeMove, stage: MoveStage, now: float) -> VolumeMove:
    return replace(move, stage=stage, stage_at=now, reason="")


def _reopened(move: VolumeMove, reason: str, now: float) -> MovePlan:
    return MovePlan(replace(_at(move, S.COPYING, now), reason=reason, stopped_at=None))


def _counted(move: VolumeMove, facts: MoveFacts) -> VolumeMove:
    return replace(move, sent_bytes=move.sent_bytes + facts.round_bytes, last_bytes=facts.round_bytes)


def _hindrance(facts: MoveFacts) -> str:
    if not facts.source_ready:
        return "its node does not answer"
    return facts.trouble if facts.target_ready else "the node it goes to does not answer"


def _waits(move: VolumeMove, reason: str) -> MovePlan:
    return MovePlan(replace(move, reason=reason))


def _ended(move: VolumeMove, stage: MoveStage, reason: str, now: float) -> VolumeMove:
    return replace(_at(move, stage, now), reason=reason, ended_at=now)


def cancelled(move: VolumeMove, now: float) -> VolumeMove:
    """The move, given up by whoever asked for it."""
    return _ended(move, S.CANCELLED, "", now)


def failed(move: VolumeMove, reason: str, now: float) -> VolumeMove:
    """The move, come to nothing."""
    return _ended(move, S.FAILED, reason, now)
