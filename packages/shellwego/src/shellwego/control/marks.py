"""Marks: numbers up to which something was done or given. They are kept among the store's counters, and only rise."""

from __future__ import annotations

from dataclasses import replace

from shellwego.core.events import Counter
from shellwego.ports.store import Transaction

DISPATCHED = "events.dispatched"
"""Events up to here were handed to the webhooks that want them."""
PRUNED = "events.pruned"
"""Events up to here are not kept any more."""


def mark(tx: Transaction, name: str) -> int:
    """Where a mark stands; 0 where it was never set."""
    stored = tx.counters.get(name)
    return stored.value if stored else 0


def set_mark(tx: Transaction, name: str, value: int) -> None:
    """Raise a mark."""
    stored = tx.counters.get(name)
    if stored is None:
        tx.counters.insert(Counter(id=name, value=value))
    elif stored.value < value:
        tx.counters.update(replace(stored, value=value))
