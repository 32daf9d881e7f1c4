"""Which VM has which volume. One that writes has it alone; any number may read what nobody writes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plasmavmc.errors import ConflictError
from plasmavmc.types import OWN_DISKS, DiskSpec


@dataclass(frozen=True, slots=True)
class Holding:
    """A VM that has a volume, in what place among its disks."""

    vm_id: str
    disk: int
    read_only: bool


def held(volume_id: str, vm_id: str, done: str) -> ConflictError:
    """A volume cannot be `done` now. `vm_id` may be unknown."""
    who = f"VM {vm_id}" if vm_id else "a process of a VM that is not known any more"
    return ConflictError(
        "volume-held",
        f"volume {volume_id} is held by {who}, and cannot be {done}",
        resolution="Stop that VM first." if vm_id else "It is free when that process has ended.",
    )


class Holdings:
    """All of a node's, as far as its engine knows."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[Holding, ...]] = {}

    def of(self, volume_id: str) -> tuple[Holding, ...]:
        """Who has a volume."""
        return self._of.get(volume_id, ())

    def writer(self, volume_id: str) -> Holding | None:
        """Who may write to it."""
        return next((each for each in self.of(volume_id) if not each.read_only), None)

    def hold(self, vm_id: str, disks: Sequence[DiskSpec]) -> None:
        """Enter a VM with all of its volumes, or with none. Idempotent.

        Raises:
            ConflictError: `volume-held`, another writes to one, or reads what this one would write to.
        """
        for disk in disks:
            for other in self.of(disk.reference):
                if other.vm_id != vm_id and not (other.read_only and disk.read_only):
                    raise held(disk.reference, other.vm_id, "given to another VM")
        self.release(vm_id)
        for place, disk in enumerate(disks, OWN_DISKS):
            self._of[disk.reference] = (*self.of(disk.reference), Holding(vm_id, place, disk.read_only))

    def release(self, vm_id: str) -> None:
        """A VM has no volume any more."""
        left = {volume_id: tuple(h for h in holders if h.vm_id != vm_id) for volume_id, holders in self._of.items()}
        self._of = {volume_id: holders for volume_id, holders in left.items() if holders}
