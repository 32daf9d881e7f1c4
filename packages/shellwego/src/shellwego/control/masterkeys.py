"""The master key's versions: rotated, watched while data keys move to the new one, retired when nothing needs the old.

A data key is stored only under a master key that is not retired (`sealing.keep_key`), and one is retired only in a
transaction that finds no data key under it; so none can be left behind, whatever two control planes do at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.scopes import missing
from shellwego.control.sealing import note_master_key
from shellwego.control.unit import Unit
from shellwego.core.envelope import MasterKey
from shellwego.core.errors import ConflictError
from shellwego.ports.store import Order, Transaction, eq
from shellwego.wire import subjects

_SHOWN = 100


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A version of the master key, and how many data keys are under it."""

    key: MasterKey
    current: bool
    data_keys: int


def key_statuses(tx: Transaction, current: str) -> list[KeyStatus]:
    """The versions that anything was ever stored under, newest first."""
    keys = tx.master_keys.select(order=Order("created_at", descending=True), limit=_SHOWN)
    return [key_status(tx, key, current) for key in keys]


def key_status(tx: Transaction, key: MasterKey, current: str) -> KeyStatus:
    return KeyStatus(key, key.id == current, tx.data_keys.count(eq("master_key", key.id)))


def note_rotation(unit: Unit, name: str) -> MasterKey:
    """Say that there is a new current version, and have data keys moved to it."""
    note_master_key(unit, name)
    unit.emit("platform.master_key.rotated", name)
    unit.hint(subjects.MASTER_KEYS)
    return find_key(unit.tx, name)


def retire_key(unit: Unit, name: str, current: str) -> MasterKey:
    """Let nothing be stored under a version any more; once more changes nothing.

    Raises:
        NotFoundError: nothing was ever stored under such a version.
        ConflictError: it is the current one, or data keys are still under it, or under an older one (there are KMS that let
            go of a version with all before it).
    """
    key = find_key(unit.tx, name)
    if key.retired_at is not None:
        return key
    if name == current:
        raise ConflictError("master-key-in-use", f"{name} is the current master key", resolution="Rotate it first.")
    older = [each for each in unit.tx.master_keys.select() if each.created_at < key.created_at]
    if any(each.retired_at is None and unit.tx.data_keys.count(eq("master_key", each.id)) for each in older):
        raise ConflictError(
            "older-master-key-in-use", f"a version before {name} is still in use", resolution="Retire that first."
        )
    left = unit.tx.data_keys.count(eq("master_key", name))
    if left:
        raise ConflictError(
            "master-key-in-use",
            f"{left} data keys are still under {name}",
            resolution="They are moved in the background; see: swg keys ls. What does not move is told in the log.",
        )
    unit.emit("platform.master_key.retired", name)
    return unit.tx.master_keys.update(replace(key, retired_at=unit.now()))


def find_key(tx: Transaction, name: str) -> MasterKey:
    """A version by its name; raises `NotFoundError`."""
    key = tx.master_keys.get(name)
    if key is None:
        raise missing("master key", name)
    return key
