"""What every hypervisor backend must do that says it can suspend and fork: more checks of the hypervisor contract."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import pytest

from plasmavmc.errors import ConflictError, HostError
from plasmavmc.guest.api import GuestCard, GuestChannel, GuestExited, GuestHello
from plasmavmc.hypervisor.backend import Forkable, HypervisorBackend, MemoryPlan, VmPlan
from plasmavmc.storage.sparse import allocated_bytes
from plasmavmc.types import VmHandle, VmSpec
from tests.contract.hypervisor_contract import Rig, a_spec, booted, ended, gone, heard


class ForkableBackend(HypervisorBackend, Forkable, Protocol):
    """A backend with these optional abilities."""


class ForkableRig(Rig, Protocol):
    @property
    def backend(self) -> ForkableBackend: ...

    def restored_plan(self, spec: VmSpec, origin: VmSpec, memory: MemoryPlan) -> VmPlan:
        """A plan with `memory`, and the disks that `origin` has (its very own for itself, copies for another)."""

    async def guest_runs(self, handle: VmHandle) -> bool:
        """Whether vCPUs run, seen from outside."""


ForkCheck = Callable[[ForkableRig], Awaitable[None]]
FORK_CHECKS: list[ForkCheck] = []


def fork_check(function: ForkCheck) -> ForkCheck:
    """Make a coroutine function part of the contract of those that can suspend and fork."""
    FORK_CHECKS.append(function)
    return function


CARD = GuestCard(unix_time_ns=1_900_000_000_000_000_000, entropy=b"e" * 64, generation=1)
ON = GuestCard(unix_time_ns=1_900_000_000_000_000_000, entropy=b"e" * 64)


@contextmanager
def state_file() -> Iterator[int]:
    descriptor = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def memory_of(saved: int | None) -> Iterator[int]:
    """A copy of a guest's memory, and the end of the original descriptor."""
    assert saved is not None
    copy = os.memfd_create("swg-guest", os.MFD_CLOEXEC)
    try:
        os.ftruncate(copy, os.fstat(saved).st_size)
        fill(copy, saved)
        yield copy
    finally:
        os.close(copy)


def fill(copy: int, saved: int) -> None:
    """Copy a guest's memory, and give the original up."""
    size = os.fstat(saved).st_size
    assert size == os.fstat(copy).st_size
    for at in range(0, size, 1 << 20):
        os.pwrite(copy, os.pread(saved, 1 << 20, at), at)
    os.close(saved)


@fork_check
async def a_vm_whose_state_was_saved_goes_on_as_if_nothing_had_been(rig: ForkableRig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    with state_file() as state:
        await channel.freeze()
        memory = await rig.backend.save_state(handle, state)
        assert not await rig.guest_runs(handle)
        assert os.fstat(state).st_size > 0
        assert memory is not None
        assert allocated_bytes(memory) <= await rig.backend.state_bytes(a_spec(), handle)
        os.close(memory)
        await rig.backend.go_on(handle)
        await rig.backend.go_on(handle)
    assert await rig.guest_runs(handle)
    await channel.thaw(ON)
    await channel.stop("SIGTERM", 5.0)
    await heard(channel, GuestExited)
    await ended(rig, handle)
    await gone(rig, handle, channel)


@fork_check
async def a_save_that_is_given_up_leaves_a_vm_that_goes_on_and_can_be_saved(rig: ForkableRig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    await channel.freeze()
    for patience in (0, 3):
        with state_file() as state:
            saving = asyncio.create_task(rig.backend.save_state(handle, state))
            for _ in range(patience):
                await asyncio.sleep(0)
            saving.cancel()
            await asyncio.wait({saving})
            if not saving.cancelled() and (memory := saving.result()) is not None:
                os.close(memory)
            await rig.backend.go_on(handle)
        assert await rig.guest_runs(handle)
    with state_file() as state:
        memory = await rig.backend.save_state(handle, state)
        assert memory is not None
        os.close(memory)
        await rig.backend.go_on(handle)
    await channel.thaw(ON)
    await channel.stop("SIGTERM", 5.0)
    await heard(channel, GuestExited)
    await gone(rig, handle, channel)


@fork_check
async def a_vm_that_is_loaded_goes_on_where_it_was_and_leaves_nothing(rig: ForkableRig) -> None:
    before, spec = rig.traces(), a_spec()
    handle, channel = await booted(rig, spec, "serve")
    with state_file() as state:
        await channel.freeze()
        with memory_of(await rig.backend.save_state(handle, state)) as memory:
            await gone(rig, handle, channel)
            plan = rig.restored_plan(spec, spec, MemoryPlan(memory))
            again = await rig.backend.create_vm(spec, plan)
            await rig.backend.load_state(again, state)
            assert not await rig.guest_runs(again)
            woken = await rig.backend.wake_vm(again, CARD)
    hello = await heard(woken, GuestHello)
    assert isinstance(hello, GuestHello)
    assert hello.configured
    await woken.stop("SIGTERM", 5.0)
    await heard(woken, GuestExited)
    await ended(rig, again)
    await gone(rig, again, woken)
    assert rig.traces() == before


@fork_check
async def a_resumed_vm_can_be_saved_again(rig: ForkableRig) -> None:
    spec = a_spec()
    handle, channel = await booted(rig, spec, "serve")
    for _ in range(2):
        with state_file() as state:
            await channel.freeze()
            with memory_of(await rig.backend.save_state(handle, state)) as memory:
                await gone(rig, handle, channel)
                handle = await rig.backend.create_vm(spec, rig.restored_plan(spec, spec, MemoryPlan(memory)))
                await rig.backend.load_state(handle, state)
                channel = await rig.backend.wake_vm(handle, CARD)
    await channel.stop("SIGTERM", 5.0)
    await heard(channel, GuestExited)
    await gone(rig, handle, channel)


@fork_check
async def several_vms_begin_with_one_memory_and_live_apart(rig: ForkableRig) -> None:
    before, origin = rig.traces(), a_spec("origin")
    handle, channel = await booted(rig, origin, "serve")
    copies: list[tuple[VmHandle, GuestChannel]] = []
    with state_file() as state:
        await channel.freeze()
        with memory_of(await rig.backend.save_state(handle, state)) as memory:
            await rig.backend.go_on(handle)
            await channel.thaw(ON)
            for name in ("first", "second"):
                spec = a_spec(name)
                plan = rig.restored_plan(spec, origin, MemoryPlan(memory, own=False))
                copy = await rig.backend.create_vm(spec, plan)
                await rig.backend.load_state(copy, state)
                copies.append((copy, await rig.backend.wake_vm(copy, CARD)))
    assert len({copy.pid for copy, _ in copies} | {handle.pid}) == 3
    first, first_channel = copies[0]
    await first_channel.stop("SIGTERM", 5.0)
    await heard(first_channel, GuestExited)
    await ended(rig, first)
    for other, other_channel in (copies[1], (handle, channel)):
        assert await rig.guest_runs(other)
        await other_channel.stop("SIGTERM", 5.0)
        await heard(other_channel, GuestExited)
    for each, each_channel in (*copies, (handle, channel)):
        await gone(rig, each, each_channel)
    assert rig.traces() == before


@fork_check
async def a_copy_without_memory_of_its_own_can_be_saved_too(rig: ForkableRig) -> None:
    origin, spec = a_spec("origin"), a_spec("copy")
    handle, channel = await booted(rig, origin, "serve")
    with state_file() as state:
        await channel.freeze()
        with memory_of(await rig.backend.save_state(handle, state)) as memory:
            copy = await rig.backend.create_vm(spec, rig.restored_plan(spec, origin, MemoryPlan(memory, own=False)))
            await rig.backend.load_state(copy, state)
            copied = await rig.backend.wake_vm(copy, CARD)
    await gone(rig, handle, channel)
    with state_file() as state, state_file() as memory:
        await copied.freeze()
        saved = await rig.backend.save_state(copy, state)
        await gone(rig, copy, copied)
        os.ftruncate(memory, spec.resources.memory_bytes)
        if saved is not None:
            fill(memory, saved)
        plan = rig.restored_plan(spec, spec, MemoryPlan(memory, filled=saved is not None))
        again = await rig.backend.create_vm(spec, plan)
        await rig.backend.load_state(again, state)
        woken = await rig.backend.wake_vm(again, CARD)
    await woken.stop("SIGTERM", 5.0)
    await heard(woken, GuestExited)
    await gone(rig, again, woken)


@fork_check
async def a_state_that_is_none_is_refused_and_nothing_is_left(rig: ForkableRig) -> None:
    before, spec = rig.traces(), a_spec()
    with state_file() as state, state_file() as memory:
        rig.plan(spec)
        os.ftruncate(memory, spec.resources.memory_bytes)
        os.pwrite(state, b"this is no state" * 1000, 0)
        handle = await rig.backend.create_vm(spec, rig.restored_plan(spec, spec, MemoryPlan(memory)))
        with pytest.raises(HostError) as refused:
            await rig.backend.load_state(handle, state)
    assert refused.value.code == "state-refused"
    await gone(rig, handle)
    assert rig.traces() == before


@fork_check
async def a_vm_that_waits_for_its_state_neither_starts_nor_wakes_nor_stays(rig: ForkableRig) -> None:
    spec = a_spec()
    with state_file() as memory:
        rig.plan(spec)
        os.ftruncate(memory, spec.resources.memory_bytes)
        handle = await rig.backend.create_vm(spec, rig.restored_plan(spec, spec, MemoryPlan(memory)))
        with pytest.raises(ConflictError):
            await rig.backend.wake_vm(handle, CARD)
    rig.restart()
    assert await rig.backend.recover(handle) is None
    assert not rig.lives(handle)
    await rig.backend.delete_vm(handle)


@fork_check
async def a_vm_that_stands_still_is_adopted_and_goes_on(rig: ForkableRig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    with state_file() as state:
        await channel.freeze()
        memory = await rig.backend.save_state(handle, state)
        assert memory is not None
        os.close(memory)
    await channel.aclose()
    rig.restart()
    adopted = await rig.backend.recover(handle)
    assert adopted is not None
    hello = await heard(adopted, GuestHello)
    assert isinstance(hello, GuestHello)
    assert hello.held
    await adopted.thaw(ON)
    await adopted.stop("SIGTERM", 5.0)
    await heard(adopted, GuestExited)
    await gone(rig, handle, adopted)


@fork_check
async def what_a_state_depends_on_is_told_alike_for_alike_vms(rig: ForkableRig) -> None:
    traits = rig.backend.snapshot_traits(a_spec("one"))
    assert traits == rig.backend.snapshot_traits(a_spec("two"))
    assert all(traits.values())
    assert rig.backend.capabilities.suspend
    assert rig.backend.capabilities.fork
