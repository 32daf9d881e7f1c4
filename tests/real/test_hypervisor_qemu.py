"""The hypervisor contract on real QEMU, and what only a real guest can show."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import GuestError, HostError
from plasmavmc.guest.api import GuestExited
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
)
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


async def test_the_vmm_s_own_complaint_is_told(rig: QemuRig) -> None:
    spec = a_spec()
    with pytest.raises(HostError) as refused:
        await rig.backend.create_vm(spec, rig.broken_plan(spec))
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
