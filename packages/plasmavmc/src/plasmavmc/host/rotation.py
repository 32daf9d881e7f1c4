"""How the keys of WireGuard are exchanged without a packet being lost. Pure.

Theory. A node has two devices, its *slots*, each with a key and a port of its own; slot n of one node speaks with slot
n of another. Time is cut into generations, and each generation into two halves: the *step* counts halves. Packets take
the slot of the current generation, by turns one and the other.

In the first half of a generation both keys stay as they are, for nodes that are late. In the second half the other
slot, which nobody takes any more, gets its key for the next generation; the key is made known, and the nodes shake
hands with it. When the next generation begins, each node changes over, for each other node separately, once that one
has shaken hands there.

So a key is only replaced where no packet is on its way, and a node that heard nothing for half a generation is still
reached by the slot of which both know the keys.

The slot that is in use is never given another key, whatever step is told: a clock that jumps delays the exchange.
"""

from __future__ import annotations

from collections.abc import Sequence

SLOTS = (0, 1)
STALE_S = 190.0
"""Keys of a session are thrown away 180 s after the handshake (REJECT_AFTER_TIME); who is there has shaken hands again."""
SETTLE_S = 30.0
"""So long a slot was taken by none of our packets before it gets another key: others change over a little later."""
MAX_STEP = 2**40


def slot_in_use(step: int) -> int:
    """That of the current generation."""
    return step // 2 % len(SLOTS)


def first_generation(step: int, slot: int) -> int:
    """Whose key a slot gets that has none."""
    current, late = step // 2, step % 2
    if slot == slot_in_use(step):
        return current
    return current + 1 if late else current - 1


def next_generation(step: int, generations: Sequence[int]) -> int | None:
    """The generation whose key the slot that is not in use is to get now; None: it stays as it is. `generations` are those
    whose keys the slots have."""
    current, late = step // 2, step % 2
    if not late or generations[1 - slot_in_use(step)] == current + 1:
        return None
    return current + 1


def chosen_slot(step: int, ages: Sequence[float | None], present: int | None) -> int:
    """By which slot packets go to another node. `ages`: seconds since the last handshake by slot, None where there was none;
    `present`: the slot that is taken now, if any."""
    preferred = slot_in_use(step)
    for slot in (preferred, 1 - preferred):
        age = ages[slot]
        if age is not None and age < STALE_S:
            return slot
    return preferred if present is None else present
