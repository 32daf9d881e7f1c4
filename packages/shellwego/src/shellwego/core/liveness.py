"""Is a node alive? Judged by its silence, and only by silence that could have been heard.

Theory. Each look adds the time since the last one to a node's silence, but never more than `MAX_STEP_S`: a control
plane that was paused, starved or off heard nothing in that time, which says nothing of the node. So silence starts at
zero with the process, and again after a gap of more than `MAX_GAP_S`, and a node is down only after one full term of
listening. What counts as heard is a change of `last_heard_at`, whoever wrote it, so that several control planes judge
alike.

All control planes listen, and one of them judges. One that takes over has listened before, but a silence that began
before may have been the other server's doing: what nodes said to a server that died was heard by nobody, and they need
a moment to turn to another. So the new judge listens for a full term in its office before it judges a node down. Where
the office changes hands all the time, a silence that is longer than the term by `handover_s` is enough.

A store that can be read and not written (a full disk, a database that came back read-only) hears nobody either. No lease
outlives that for long; so silence does not grow while nobody holds the office of the judge.

A node that this process has never heard gets a longer term: its agent may still be on its way up, adopting what runs.

A judgement `down` raises the epoch, so whatever the node says of the time before is void. The node is ready again by a
report of its new epoch, never by a judge.

A node that goes down again and again is *flapping*: each time, what was placed there in between is lost again. So it
gets nothing new until it was heard for a while without a break.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.core.nodes import Node, NodeHealth

BEAT_S = 2.0
"""A node reports at least so often, also when nothing changed."""
MAX_STEP_S = 1.0
"""The most that one look adds to a silence."""
MAX_GAP_S = 3.0
"""A look that comes later than that begins anew: what could be heard in between was stored by nobody."""
FLAPS, FLAP_WINDOW_S = 3, 3600.0
"""A node flaps once it went down so often within so many seconds."""
STEADY_S = 300.0
"""It is steady again once it was heard for so long."""
_MAX_DOWNS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Seconds of silence until a node is suspect (nothing new is placed there), and until it is down."""

    suspect_s: float = 3.5
    down_s: float = 5.0
    unheard_s: float = 30.0
    """Until down, for a node that this process never heard."""
    handover_s: float = 5.0
    """So much later, where who judges has not listened for the whole term in that office."""


DEFAULT_TERMS = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """What one control plane heard of one node."""

    last_heard_at: float
    silence_s: float = 0.0
    judging_s: float = 0.0
    """The end of the silence, through which this control plane was the one who judges."""
    ever: bool = False
    """It was heard since this control plane began to listen."""

    def counted_s(self, terms: Terms) -> float:
        """How much of the silence is held against the node."""
        return max(self.judging_s, self.silence_s - terms.handover_s)


def listen(
    hearing: Hearing | None, node: Node, elapsed_s: float | None, *, judging: bool, storing: bool = True
) -> Hearing:
    """The hearing after a look, `elapsed_s` of monotonic time after the one before; None at the very first.

    `judging`: this control plane was the one who judges, since the look before; `storing`: what a node said could be
    stored. A node that turns up at a later look has just registered, so it was heard.
    """
    if hearing is None or elapsed_s is None:
        return Hearing(last_heard_at=node.last_heard_at, ever=elapsed_s is not None)
    if node.last_heard_at != hearing.last_heard_at:
        return Hearing(last_heard_at=node.last_heard_at, ever=True)
    if elapsed_s > MAX_GAP_S:
        return Hearing(last_heard_at=node.last_heard_at)
    step = min(max(elapsed_s, 0.0), MAX_STEP_S) if storing else 0.0
    return replace(hearing, silence_s=hearing.silence_s + step, judging_s=hearing.judging_s + step if judging else 0.0)


def judge(node: Node, hearing: Hearing, terms: Terms) -> NodeHealth:
    """The node's health now. A node that is down stays so until it reports its new epoch."""
    if node.health is NodeHealth.DOWN:
        return NodeHealth.DOWN
    silence_s = hearing.counted_s(terms)
    if silence_s >= (terms.down_s if hearing.ever else max(terms.unheard_s, terms.down_s)):
        return NodeHealth.DOWN
    return NodeHealth.SUSPECT if silence_s >= terms.suspect_s else NodeHealth.READY


def gone_down(node: Node, now: float) -> Node:
    """The node as it is once it was judged down: its epoch is over, and it may be found to flap."""
    downs = (*node.downs, now)[-_MAX_DOWNS:]
    flaps = sum(moment > now - FLAP_WINDOW_S for moment in downs) >= FLAPS
    since = node.flapping_since if node.flapping_since is not None or not flaps else now
    return replace(
        node, health=NodeHealth.DOWN, epoch=node.epoch + 1, ready_since=None, downs=downs, flapping_since=since
    )


def come_up(node: Node, now: float) -> Node:
    """The node as it is once it is heard again after a silence."""
    return replace(node, health=NodeHealth.READY, ready_since=now)


def steady_at(node: Node) -> float | None:
    """When a node that flaps is steady again if it is heard until then; None where it does not flap, or is not heard."""
    if node.flapping_since is None or node.health is not NodeHealth.READY or node.ready_since is None:
        return None
    return node.ready_since + STEADY_S


def steadied(node: Node) -> Node:
    """The node as it is once it does not flap any more; what was is forgotten."""
    return replace(node, downs=(), flapping_since=None)
