"""What may be placed on a node: an operator's word, beside what is judged of its health.

`open` ⇄ `cordoned`; from either to `draining`, and from there by itself to `drained` once nothing is left on the node
(`control.drains`). From all of them an uncordon leads back to `open`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.drains import release_evicted
from shellwego.control.nodeadmin import wake_waiting
from shellwego.control.unit import Unit
from shellwego.control.volumedrains import try_again
from shellwego.core.errors import FieldError, InvalidError
from shellwego.core.liveness import steadied
from shellwego.core.nodes import MOVES_AT_A_TIME, DrainOrder, Node, Scheduling
from shellwego.wire import subjects

MAX_PARALLEL = 1000
MAX_DEADLINE_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainWish:
    """How a node is to be emptied."""

    deadline_s: float | None = None
    """From now on; None: it takes as long as it takes."""
    force: bool = False
    """Stop what is left at the deadline, replaced or not."""
    parallel: int = MOVES_AT_A_TIME
    """So many of its instances move at a time."""
    volumes: bool = False
    """Have the volumes that live there go to other nodes, and their apps with them."""


def cordon(unit: Unit, node: Node) -> Node:
    """Place nothing new on the node; what is there stays. One that is not open stays as it is."""
    if node.scheduling is not Scheduling.OPEN:
        return node
    unit.emit("node.cordoned", node.id, data={"name": node.name})
    return unit.tx.nodes.update(replace(node, scheduling=Scheduling.CORDONED))


def uncordon(unit: Unit, node: Node) -> Node:
    """Let the node have VMs again, also where it was found to flap; what waited for room is looked at anew. Where it was
    being emptied, what has begun to move goes on, and all else stays."""
    if node.scheduling is Scheduling.OPEN and node.flapping_since is None:
        return node
    unit.emit("node.uncordoned", node.id, data={"name": node.name})
    release_evicted(unit, node)
    wake_waiting(unit)
    return unit.tx.nodes.update(replace(steadied(node), scheduling=Scheduling.OPEN, drain=None))


def drain(unit: Unit, node: Node, wish: DrainWish) -> Node:
    """Have the node emptied, or change how; one that is drained stays as it is. Its volumes, where they are to leave, are
    tried again where moves before stopped their apps in vain.

    Raises:
        InvalidError: a number is out of its bounds; or what is left is to be stopped, and it is not said when.
    """
    _check(wish)
    if node.scheduling is Scheduling.DRAINED:
        return node
    begun = node.drain.since if node.drain else unit.now()
    order = DrainOrder(
        since=begun,
        deadline=None if wish.deadline_s is None else unit.now() + wish.deadline_s,
        force=wish.force,
        parallel=wish.parallel,
        volumes=wish.volumes,
    )
    if node.scheduling is not Scheduling.DRAINING:
        unit.emit("node.draining", node.id, data={"name": node.name})
    if wish.volumes:
        try_again(unit, node)
    unit.hint(subjects.DRAINS)
    return unit.tx.nodes.update(replace(node, scheduling=Scheduling.DRAINING, drain=order))


def _check(wish: DrainWish) -> None:
    faults = []
    if wish.deadline_s is not None and not 0 <= wish.deadline_s <= MAX_DEADLINE_S:
        faults.append(FieldError("deadline", "out-of-range", f"between 0 and {MAX_DEADLINE_S:g} seconds"))
    if not 1 <= wish.parallel <= MAX_PARALLEL:
        faults.append(FieldError("parallel", "out-of-range", f"between 1 and {MAX_PARALLEL}"))
    if wish.force and wish.deadline_s is None:
        faults.append(FieldError("force", "no-deadline", "needs a deadline, after which what is left is stopped"))
    if faults:
        text = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise InvalidError("bad-drain", text, errors=tuple(faults))
