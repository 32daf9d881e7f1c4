"""What every hypervisor backend must do, as checks that run against a rig.

A rig is a backend with what a test needs beside it: plans for VMs, a hand that kills a VMM from outside, and an eye for
what is left on the host. The workload of its image takes its orders from its arguments: `exit N` ends with code N,
`serve` runs until it is told to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import pytest

from plasmavmc.errors import ConflictError, HostError, NotFoundError
from plasmavmc.guest.api import GuestChannel, GuestConfig, GuestEvent, GuestExited, GuestHello, GuestReady
from plasmavmc.hypervisor.backend import HypervisorBackend, Pausable, VmmExit, VmPlan
from plasmavmc.types import SYSTEM_SCOPE, VmHandle, VmSpec, VmUsage

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


Check = Callable[[Rig], Awaitable[None]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Make a coroutine function part of the contract."""
    CHECKS.append(function)
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
    assert (await rig.backend.usage(handle)).memory_rss_bytes > 0
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
    assert (await rig.backend.usage(handle)).memory_rss_bytes > 1_000_000
    rig.kill(handle)
    await ended(rig, handle)
    assert await rig.backend.usage(handle) == VmUsage()
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
