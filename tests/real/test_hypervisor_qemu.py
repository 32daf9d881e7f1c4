"""The hypervisor contract on real QEMU, and what only a real guest can show."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.backends import Acceleration
from plasmavmc.errors import GuestError, HostError, UnavailableError
from plasmavmc.guest.api import GuestExited
from plasmavmc.hypervisor.qemu.backend import KvmBackend
from plasmavmc.types import MIB, VmResources
from tests.contract.hypervisor_contract import (
    CHECKS,
    Check,
    a_paused_vm_says_nothing_until_it_runs_again,
    a_spec,
    booted,
    ended,
    gone,
    heard,
    started,
)
from tests.contract.hypervisor_fork_contract import FORK_CHECKS, ForkCheck
from tests.contract.hypervisor_rig import QemuRig, build_image, qemu_rig

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
async def rig(tmp_path: Path, image: Path) -> AsyncIterator[QemuRig]:
    async with qemu_rig(tmp_path, image) as made:
        yield made


@pytest.mark.parametrize(
    "check", [*CHECKS, a_paused_vm_says_nothing_until_it_runs_again], ids=lambda check: check.__name__
)
async def test_the_qemu_backend_keeps_the_contract(rig: QemuRig, check: Check) -> None:
    await check(rig)


@pytest.mark.parametrize("check", FORK_CHECKS, ids=lambda check: check.__name__)
async def test_the_qemu_backend_suspends_and_forks_by_the_contract(rig: QemuRig, check: ForkCheck) -> None:
    await check(rig)


async def test_the_vmm_s_own_complaint_is_told(rig: QemuRig) -> None:
    spec = a_spec()
    with pytest.raises(HostError) as refused:
        await started(rig, spec, rig.broken_plan(spec))
    assert refused.value.code == "vmm-refused"
    assert "kernel" in refused.value.details


async def test_a_kernel_panic_is_shown_with_the_console_s_last_lines(rig: QemuRig) -> None:
    spec = a_spec()
    nothing = rig.directory / "initrd"
    nothing.write_bytes(b"\0" * 512)
    handle = await rig.backend.create_vm(spec, replace(rig.plan(spec), initrd=nothing))
    with pytest.raises(GuestError) as failed:
        await rig.backend.start_vm(handle)
    assert failed.value.code == "boot-failed"
    exited = await ended(rig, handle)
    assert any("Kernel panic" in line for line in exited.console)
    await gone(rig, handle)


async def test_a_guest_that_uses_all_of_its_memory_does_not_get_its_vmm_killed(rig: QemuRig) -> None:
    spec = replace(a_spec(), resources=VmResources(vcpus=2, memory_bytes=192 * MIB))
    handle, channel = await booted(rig, spec, "eat")
    exited = await heard(channel, GuestExited)
    assert isinstance(exited, GuestExited)
    assert exited.oom
    assert (await ended(rig, handle)).code == 0
    await gone(rig, handle, channel)


async def test_a_vmm_that_does_not_answer_is_killed(rig: QemuRig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    os.kill(handle.pid, signal.SIGSTOP)
    async with asyncio.timeout(5.0):
        await rig.backend.stop_vm(handle)
    assert (await ended(rig, handle)).code == -9
    await gone(rig, handle, channel)


async def test_a_vm_outlives_platform_and_helper_and_its_end_is_then_seen_without_a_code(rig: QemuRig) -> None:
    before = rig.traces()
    handle, channel = await booted(rig, a_spec(), "serve")
    await channel.aclose()
    rig.helper.restart()
    rig.restart()
    adopted = await rig.backend.recover(handle)
    assert adopted is not None
    rig.kill(handle)
    assert (await ended(rig, handle)).code is None
    await gone(rig, handle, adopted)
    assert rig.traces() == before


async def test_an_adopted_vm_s_console_is_read_again(rig: QemuRig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    await channel.aclose()
    rig.restart()
    adopted = await rig.backend.recover(handle)
    assert adopted is not None
    await adopted.stop("SIGTERM", 5.0)
    await heard(adopted, GuestExited)
    assert any("reboot" in line for line in (await ended(rig, handle)).console)
    await gone(rig, handle, adopted)


async def test_a_vmm_that_hangs_is_not_adopted_and_not_taken_for_gone(rig: QemuRig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    await channel.aclose()
    rig.restart()
    os.kill(handle.pid, signal.SIGSTOP)
    impatient = KvmBackend(rig.helper.host, rig.site.machine(Acceleration.TCG), recover_deadline_s=0.5)
    with pytest.raises(UnavailableError):
        await impatient.recover(handle)
    assert rig.lives(handle)
    await gone(rig, handle)
    assert not rig.lives(handle)
