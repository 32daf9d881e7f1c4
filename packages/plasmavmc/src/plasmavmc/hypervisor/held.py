"""The VMs that a backend holds, by id: each is made or adopted once, and is the backend's until it is forgotten."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from plasmavmc.errors import ConflictError, NotFoundError
from plasmavmc.types import VmHandle

V = TypeVar("V")


class Watched(Protocol):
    """What sees a VMM."""

    def close(self) -> None:
        """See it no more."""


W = TypeVar("W", bound=Watched)


class HeldVms(dict[str, V]):
    """What a backend knows of each VM that it holds."""

    def check_new(self, vm_id: str) -> None:
        """Raises `ConflictError` (`vm-exists`) where a VM with this id is held, so that none can be made."""
        if vm_id in self:
            raise ConflictError("vm-exists", f"VM {vm_id} exists already")

    def check_unheld(self, handle: VmHandle) -> None:
        """Raises `ConflictError` (`vm-exists`) where this VM is held, so that it cannot be adopted."""
        if handle.vm_id in self:
            raise ConflictError("vm-exists", f"VM {handle.vm_id} is held already")

    def of(self, handle: VmHandle) -> V:
        """Raises `NotFoundError` (`no-such-vm`) where this VM is not held."""
        try:
            return self[handle.vm_id]
        except KeyError:
            raise NotFoundError("no-such-vm", f"no VM {handle.vm_id} is held by this backend") from None

    async def end(self, handle: VmHandle, found: W | None, how: Callable[[W], Awaitable[None]]) -> None:
        """End the VMM that was found for a VM, if one was. That of a VM that is not held was found for this alone, and is
        let go of again."""
        if found is None:
            return
        held = handle.vm_id in self
        try:
            await how(found)
        finally:
            if not held:
                found.close()
