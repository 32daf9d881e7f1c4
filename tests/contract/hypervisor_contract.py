"""What every hypervisor backend must do, as checks that run against a rig.

A rig is a backend with what a test needs beside it: plans for VMs, a hand that kills a VMM from outside, and an eye for
what is left on the host. The workload of its image takes its orders from its arguments: `exit N` ends with code N,
`serve` runs until it is told to stop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import pytest

from plasmavmc.errors import ConflictError, HostError, NotFoundError
from plasmavmc.guest.api import (
    GuestCard,
    GuestChannel,
    GuestConfig,
    GuestEvent,
    GuestExited,
    GuestHello,
    GuestReady,
)
from plasmavmc.hypervisor.backend import Forkable, HypervisorBackend, MemoryPlan, Pausable, VmmExit, VmPlan
from plasmavmc.types import SYSTEM_SCOPE, VmHandle, VmSpec

BOOT_DEADLINE_S = 60.0
SEEN_DEADLINE_S = 3.0


class Rig(Protocol):
    @property
    def backend(self) -> HypervisorBackend: ...

    def plan(self, spec: VmSpec) -> VmPlan:
        """Disks and addresses for a VM; the rig closes and removes them at its end."""

    def broken_plan(self, spec: VmSpec) -> VmPlan:
        """A plan with which no VMM can start."""

    def restart(self) -> None:
        """Throw the backend away, without a word to the VMs, and make a new one."""

    def kill(self, handle: VmHandle) -> None:
        """SIGKILL to the VMM."""

    def make_zombie(self, handle: VmHandle) -> None:
        """Let the VMM end while nobody watches, and leave it unreaped."""

    def lives(self, handle: VmHandle) -> bool:
        """Whether the VMM's process lives, seen from outside."""

    def traces(self) -> frozenset[str]:
        """What VMs hold on the host now: processes, sockets, uids, descriptors of ours."""


class PausableBackend(HypervisorBackend, Pausable, Protocol):
    """A backend with this optional ability."""


class PausableRig(Rig, Protocol):
    @property
    def backend(self) -> PausableBackend: ...


class ForkableBackend(HypervisorBackend, Forkable, Protocol):
    """A backend with these optional abilities."""


class ForkableRig(Rig, Protocol):
    @property
    def backend(self) -> ForkableBackend: ...

    def restored_plan(self, spec: VmSpec, origin: VmSpec, memory: MemoryPlan) -> VmPlan:
        """A plan with `memory`, and the disks that `origin` has (its very own for itself, copies for another)."""

    async def guest_runs(self, handle: VmHandle) -> bool:
        """Whether vCPUs run, seen from outside."""


Check = Callable[[Rig], Awaitable[None]]
CHECKS: list[Check] = []
ForkCheck = Callable[[ForkableRig], Awaitable[None]]
FORK_CHECKS: list[ForkCheck] = []
"""For a backend that says it can suspend and fork."""


def check(function: Check) -> Check:
    """Make a coroutine function part of the contract."""
    CHECKS.append(function)
    return function


def fork_check(function: ForkCheck) -> ForkCheck:
    """Make a coroutine function part of the contract of those that can suspend and fork."""
    FORK_CHECKS.append(function)
    return function


def a_spec(name: str = "one") -> VmSpec:
    return VmSpec(f"vm_{name}", SYSTEM_SCOPE, name, "sha256:" + "0" * 64)


async def heard(channel: GuestChannel, kind: type[GuestEvent]) -> GuestEvent:
    """The next event of a kind."""
    async with asyncio.timeout(BOOT_DEADLINE_S):
        async for event in channel.events():
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the channel ended without {kind.__name__}")


async def booted(rig: Rig, spec: VmSpec, *arguments: str) -> tuple[VmHandle, GuestChannel]:
    """A VM whose workload runs."""
    handle = await rig.backend.create_vm(spec, rig.plan(spec))
    channel = await rig.backend.start_vm(handle)
    hello = await heard(channel, GuestHello)
    assert isinstance(hello, GuestHello)
    assert not hello.configured
    await channel.configure(GuestConfig(argv=("/app", *arguments)))
    await heard(channel, GuestReady)
    return handle, channel


async def ended(rig: Rig, handle: VmHandle, deadline_s: float = SEEN_DEADLINE_S) -> VmmExit:
    """How the VMM ended; it must be seen in time."""
    async with asyncio.timeout(deadline_s):
        return await rig.backend.wait_vm(handle)


async def gone(rig: Rig, handle: VmHandle, channel: GuestChannel | None = None) -> None:
    """End and delete a VM as a manager does."""
    if channel is not None:
        await channel.aclose()
    await rig.backend.stop_vm(handle)
    await rig.backend.delete_vm(handle)


async def started(rig: Rig, spec: VmSpec, plan: VmPlan) -> None:
    """Start a VM, and delete it again."""
    handle = await rig.backend.create_vm(spec, plan)
    try:
        channel = await rig.backend.start_vm(handle)
        await channel.aclose()
    finally:
        await rig.backend.delete_vm(handle)


@check
async def a_workload_s_exit_code_is_heard_and_then_the_vmm_ends(rig: Rig) -> None:
    handle, channel = await booted(rig, a_spec(), "exit", "3")
    exited = await heard(channel, GuestExited)
    assert isinstance(exited, GuestExited)
    assert exited.exit_code == 3
    assert (await ended(rig, handle)).code == 0
    await gone(rig, handle, channel)


@check
async def a_handle_names_vm_backend_process_and_confinement(rig: Rig) -> None:
    spec = a_spec()
    plan = rig.plan(spec)
    handle = await rig.backend.create_vm(spec, plan)
    assert handle.vm_id == spec.id
    assert handle.backend == rig.backend.capabilities.name
    assert handle.runtime_dir == str(plan.runtime_dir)
    assert handle.pid > 1
    assert handle.start_time > 0
    assert handle.backend_state["confinement"]
    await gone(rig, handle)


@check
async def the_same_vm_twice_is_a_conflict_and_the_first_lives_on(rig: Rig) -> None:
    spec = a_spec()
    handle = await rig.backend.create_vm(spec, rig.plan(spec))
    with pytest.raises(ConflictError):
        await rig.backend.create_vm(spec, rig.plan(replace(spec, id="vm_other")))
    assert rig.lives(handle)
    await gone(rig, handle)


@check
async def a_vm_is_started_once(rig: Rig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    with pytest.raises(ConflictError):
        await rig.backend.start_vm(handle)
    await gone(rig, handle, channel)


@check
async def a_vmm_that_cannot_start_is_a_host_error_and_leaves_nothing(rig: Rig) -> None:
    spec = a_spec()
    before = rig.traces()
    plan = rig.broken_plan(spec)
    with pytest.raises(HostError) as refused:
        await started(rig, spec, plan)
    assert refused.value.code
    assert rig.traces() == before


@check
async def a_running_vm_is_stopped_at_once_and_stopping_again_is_fine(rig: Rig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    async with asyncio.timeout(SEEN_DEADLINE_S):
        await rig.backend.stop_vm(handle)
    assert not rig.lives(handle)
    await rig.backend.stop_vm(handle)
    await ended(rig, handle)
    await gone(rig, handle, channel)


@check
async def a_vm_that_never_ran_can_be_stopped_and_deleted(rig: Rig) -> None:
    spec = a_spec()
    before = rig.traces()
    handle = await rig.backend.create_vm(spec, rig.plan(spec))
    await rig.backend.stop_vm(handle)
    await ended(rig, handle)
    await rig.backend.delete_vm(handle)
    assert rig.traces() == before


@check
async def a_killed_vmm_is_seen_by_all_who_wait_and_its_channel_ends(rig: Rig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    waiting = [asyncio.create_task(rig.backend.wait_vm(handle)) for _ in range(2)]
    await asyncio.sleep(0)
    rig.kill(handle)
    async with asyncio.timeout(SEEN_DEADLINE_S):
        assert [(await task).code for task in waiting] == [-9, -9]
        async for event in channel.events():
            assert not isinstance(event, GuestExited)
    await gone(rig, handle, channel)


@check
async def who_gives_up_waiting_disturbs_nobody(rig: Rig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    impatient = asyncio.create_task(rig.backend.wait_vm(handle))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait({impatient})
    rig.kill(handle)
    assert (await ended(rig, handle)).code == -9
    await gone(rig, handle, channel)


@check
async def a_deleted_vm_leaves_nothing_and_deleting_again_is_fine(rig: Rig) -> None:
    before = rig.traces()
    handle, channel = await booted(rig, a_spec(), "exit", "0")
    assert rig.traces() != before
    await ended(rig, handle)
    await channel.aclose()
    await rig.backend.delete_vm(handle)
    await rig.backend.delete_vm(handle)
    assert rig.traces() == before


@check
async def deleting_a_running_vm_ends_it_first(rig: Rig) -> None:
    before = rig.traces()
    handle, channel = await booted(rig, a_spec(), "serve")
    await channel.aclose()
    await rig.backend.delete_vm(handle)
    assert not rig.lives(handle)
    assert rig.traces() == before


@check
async def the_name_of_a_deleted_vm_may_be_used_again(rig: Rig) -> None:
    for _ in range(2):
        spec = a_spec()
        handle = await rig.backend.create_vm(spec, rig.plan(spec))
        await gone(rig, handle)


@check
async def an_unknown_vm_is_not_found(rig: Rig) -> None:
    stranger = VmHandle("vm_stranger", rig.backend.capabilities.name, "/nonexistent", 2**22 - 1, 1)
    for ask in (rig.backend.start_vm, rig.backend.wait_vm, rig.backend.usage):
        with pytest.raises(NotFoundError):
            await ask(stranger)
    assert await rig.backend.recover(stranger) is None
    await rig.backend.stop_vm(stranger)
    await rig.backend.delete_vm(stranger)


@check
async def a_running_vm_is_adopted_by_a_new_backend_and_goes_on(rig: Rig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    await channel.aclose()
    rig.restart()
    adopted = await rig.backend.recover(handle)
    assert adopted is not None
    hello = await heard(adopted, GuestHello)
    assert isinstance(hello, GuestHello)
    assert hello.configured
    assert rig.lives(handle)
    assert (await rig.backend.usage(handle))["memory_rss_bytes"] > 0
    await adopted.stop("SIGTERM", 5.0)
    await heard(adopted, GuestExited)
    await ended(rig, handle)
    await gone(rig, handle, adopted)


@check
async def the_end_of_an_adopted_vm_is_seen(rig: Rig) -> None:
    before = rig.traces()
    handle, channel = await booted(rig, a_spec(), "serve")
    await channel.aclose()
    rig.restart()
    adopted = await rig.backend.recover(handle)
    assert adopted is not None
    rig.kill(handle)
    await ended(rig, handle)
    await gone(rig, handle, adopted)
    assert rig.traces() == before


@check
async def a_vm_that_ended_meanwhile_is_gone_and_can_be_deleted(rig: Rig) -> None:
    before = rig.traces()
    handle, channel = await booted(rig, a_spec(), "serve")
    await channel.aclose()
    rig.restart()
    rig.make_zombie(handle)
    assert await rig.backend.recover(handle) is None
    with pytest.raises(NotFoundError):
        await rig.backend.wait_vm(handle)
    await rig.backend.delete_vm(handle)
    assert rig.traces() == before


@check
async def a_reused_process_number_is_not_adopted(rig: Rig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    await channel.aclose()
    rig.restart()
    stranger = replace(handle, start_time=handle.start_time + 1)
    assert await rig.backend.recover(stranger) is None
    await rig.backend.stop_vm(stranger)
    assert rig.lives(handle)
    adopted = await rig.backend.recover(handle)
    await gone(rig, handle, adopted)


@check
async def a_vm_that_was_created_but_never_started_is_not_adopted_and_does_not_stay(rig: Rig) -> None:
    spec = a_spec()
    handle = await rig.backend.create_vm(spec, rig.plan(spec))
    rig.restart()
    assert await rig.backend.recover(handle) is None
    assert not rig.lives(handle)
    await rig.backend.delete_vm(handle)


@check
async def two_vms_run_side_by_side_and_one_s_end_is_not_the_other_s(rig: Rig) -> None:
    first, first_channel = await booted(rig, a_spec("first"), "serve")
    second, second_channel = await booted(rig, a_spec("second"), "serve")
    rig.kill(first)
    await ended(rig, first)
    assert rig.lives(second)
    await gone(rig, first, first_channel)
    await gone(rig, second, second_channel)


@check
async def usage_is_told_while_a_vm_runs_and_is_nothing_after_its_end(rig: Rig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    assert (await rig.backend.usage(handle))["memory_rss_bytes"] > 1_000_000
    rig.kill(handle)
    await ended(rig, handle)
    assert await rig.backend.usage(handle) == {"memory_rss_bytes": 0.0, "cpu_seconds": 0.0}
    await gone(rig, handle, channel)


async def a_paused_vm_says_nothing_until_it_runs_again(rig: PausableRig) -> None:
    """For a `Pausable` backend."""
    handle, channel = await booted(rig, a_spec(), "serve")
    await rig.backend.pause_vm(handle)
    await channel.stop("SIGTERM", 5.0)
    exited = asyncio.create_task(heard(channel, GuestExited))
    done, _ = await asyncio.wait({exited}, timeout=0.3)
    assert not done
    await rig.backend.unpause_vm(handle)
    await exited
    await ended(rig, handle)
    await gone(rig, handle, channel)


# For a backend that can suspend and fork

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
        size = os.fstat(saved).st_size
        os.ftruncate(copy, size)
        for at in range(0, size, 1 << 20):
            os.pwrite(copy, os.pread(saved, 1 << 20, at), at)
        os.close(saved)
        yield copy
    finally:
        os.close(copy)


@fork_check
async def a_vm_whose_state_was_saved_goes_on_as_if_nothing_had_been(rig: ForkableRig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    with state_file() as state:
        await channel.freeze()
        memory = await rig.backend.save_state(handle, state)
        assert not await rig.guest_runs(handle)
        assert os.fstat(state).st_size > 0
        assert memory is not None
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
    with state_file() as state, state_file() as empty:
        await copied.freeze()
        assert await rig.backend.save_state(copy, state) is None
        await gone(rig, copy, copied)
        os.ftruncate(empty, spec.resources.memory_bytes)
        again = await rig.backend.create_vm(spec, rig.restored_plan(spec, spec, MemoryPlan(empty, filled=False)))
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
