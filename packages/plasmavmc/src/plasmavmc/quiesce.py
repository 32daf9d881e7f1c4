"""A guest that stands still: who can make one, and how it is let go on.

Whoever takes something from a guest as it is at one moment holds it first: its processes (or, before it has any, its
devices) by its own init, then its vCPUs. It must never be left standing.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, TypeGuard

import structlog

from plasmavmc.errors import ConflictError, PlasmaError
from plasmavmc.guest.api import GuestCard, GuestChannel
from plasmavmc.host.threads import in_thread, to_its_end
from plasmavmc.hypervisor.backend import HypervisorBackend, Suspendable
from plasmavmc.parts import EngineParts
from plasmavmc.types import VmHandle, VmSpec

ENTROPY_BYTES = 64

log = structlog.get_logger("plasmavmc.quiesce")


class SuspendableBackend(HypervisorBackend, Suspendable, Protocol):
    """A backend with this optional ability."""


def can_suspend(backend: HypervisorBackend) -> TypeGuard[SuspendableBackend]:
    """Whether a backend has this ability, by what it says of itself."""
    return backend.capabilities.suspend


def suspendable(backend: HypervisorBackend) -> SuspendableBackend:
    """A backend as one that can suspend.

    Raises:
        ConflictError: `cannot-suspend`, it cannot.
    """
    if not can_suspend(backend):
        raise ConflictError(
            "cannot-suspend",
            f"the backend {backend.capabilities.name} cannot suspend VMs",
            resolution="Stop the VM, or run it on a backend that can.",
        )
    return backend


async def traits_of(backend: SuspendableBackend, spec: VmSpec, kernel: str, init: str) -> dict[str, str]:
    """All that must be the same where a snapshot of this VM is resumed."""
    of_backend = await in_thread(backend.snapshot_traits, spec)
    return {**of_backend, "kernel": kernel, "init": init}


@asynccontextmanager
async def standing_still(
    backend: SuspendableBackend, handle: VmHandle, channel: GuestChannel, parts: EngineParts, state: int
) -> AsyncIterator[int | None]:
    """A VM that stands still for the block, its devices' state written to `state`; gives a descriptor of its memory,
    None where that is in the state. When the block raises, the VM goes on; when it does not, the caller decides.

    Raises:
        GuestError: the guest could not hold its workload.
        HostError, UnavailableError: the state could not be had.
    """
    memory: int | None = None
    try:
        await channel.freeze()
        memory = await backend.save_state(handle, state)
        yield memory
    except BaseException:
        await go_on(backend, handle, channel, parts)
        raise
    finally:
        if memory is not None:
            os.close(memory)


async def go_on(backend: SuspendableBackend, handle: VmHandle, channel: GuestChannel, parts: EngineParts) -> None:
    """Let a VM that stood still, or was about to, run on with the right time. One that cannot is ended. Who is
    cancelled meanwhile waits all the same: nothing must be left standing."""
    await to_its_end(_go_on(backend, handle, channel, parts))


async def _go_on(backend: SuspendableBackend, handle: VmHandle, channel: GuestChannel, parts: EngineParts) -> None:
    try:
        await backend.go_on(handle)
        await channel.thaw(plain_card(parts))
    except (PlasmaError, TimeoutError) as error:
        log.warning("vm.not_thawed", vm=handle.vm_id, error=str(error))
        await backend.stop_vm(handle)


def plain_card(parts: EngineParts, generation: int = 0) -> GuestCard:
    """The time and fresh entropy."""
    return GuestCard(int(parts.clock() * 1e9), parts.entropy(ENTROPY_BYTES), generation)
