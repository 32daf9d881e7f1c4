"""Is a node alive? Judged by its silence, and only by silence that could have been heard.

Theory. Each look adds the time since the last one to a node's silence, but never more than `MAX_STEP_S`: a control plane
that was paused, starved or off heard nothing in that time, which says nothing of the node. So silence starts at zero with
the process, survives no stall, and a node is down only after one full term of listening. What counts as heard is a change
of `last_heard_at`, whoever wrote it, so that several control planes judge alike.

A node that this process has never heard gets a longer term: its agent may still be on its way up, adopting what runs.

Down raises the epoch, so whatever the node says of the time before is void; it is ready again by a report of its new epoch,
never by a judge.
"""

from __future__ import annotations

from dataclasses import dataclass

from shellwego.core.nodes import Node, NodeHealth

BEAT_S = 2.0
"""A node reports at least so often, also when nothing changed."""
MAX_STEP_S = 1.0
"""The most that one look adds to a silence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Seconds of silence until a node is suspect (nothing new is placed there), and until it is down."""

    suspect_s: float = 3.5
    down_s: float = 5.0
    unheard_s: float = 30.0
    """Until down, for a node that this process never heard."""


DEFAULT_TERMS = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """What one control plane heard of one node."""

    last_heard_at: float
    silence_s: float = 0.0
    ever: bool = False
    """It was heard since this control plane began to listen."""


def listen(hearing: Hearing | None, node: Node, elapsed_s: float | None) -> Hearing:
    """The hearing after a look, `elapsed_s` of monotonic time after the one before; None at the very first.

    A node that turns up at a later look has just registered, so it was heard.
    """
    if hearing is None or elapsed_s is None:
        return Hearing(last_heard_at=node.last_heard_at, ever=elapsed_s is not None)
    if node.last_heard_at != hearing.last_heard_at:
        return Hearing(last_heard_at=node.last_heard_at, ever=True)
    silence = hearing.silence_s + min(max(elapsed_s, 0.0), MAX_STEP_S)
    return Hearing(last_heard_at=hearing.last_heard_at, silence_s=silence, ever=hearing.ever)


def judge(node: Node, hearing: Hearing, terms: Terms) -> NodeHealth:
    """The node's health now. A node that is down stays so until it reports its new epoch."""
    if node.health is NodeHealth.DOWN:
        return NodeHealth.DOWN
    if hearing.silence_s >= (terms.down_s if hearing.ever else max(terms.unheard_s, terms.down_s)):
        return NodeHealth.DOWN
    return NodeHealth.SUSPECT if hearing.silence_s >= terms.suspect_s else NodeHealth.READY
