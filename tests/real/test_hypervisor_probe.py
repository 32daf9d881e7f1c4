"""The probe on this host, through the root helper: what it finds, that it is remembered, and that nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from plasmavmc.backends import Acceleration, Readiness
from plasmavmc.hypervisor.qemu.offer import announce_qemu, probe_qemu, settle_qemu
from plasmavmc.hypervisor.registry import HypervisorRegistry
from tests.contract.hypervisor_contract import a_spec
from tests.contract.hypervisor_rig import QemuRig, qemu_rig

pytestmark = pytest.mark.real


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[QemuRig]:
    async with qemu_rig(tmp_path, tmp_path) as made:
        yield made


@pytest.fixture
async def rig_with_kvm(tmp_path: Path) -> AsyncIterator[QemuRig]:
    async with qemu_rig(tmp_path, tmp_path, open_kvm=True) as made:
        yield made


async def test_the_first_start_probes_and_the_second_remembers(rig: QemuRig) -> None:
    before = rig.traces()
    registry = HypervisorRegistry()
    announced = announce_qemu(registry, rig.helper.host, rig.site)
    assert registry.statuses()[0].readiness is Readiness.PROBING
    first = await settle_qemu(registry, announced, rig.helper.host, rig.site)
    assert first.chosen is not None
    assert rig.traces() == before
    backend = registry.select(a_spec())
    assert backend is announced
    assert backend.capabilities.acceleration is first.chosen.acceleration
    async with asyncio.timeout(1.0):
        assert await probe_qemu(rig.helper.host, rig.site) == first


async def test_kvm_is_believed_only_when_a_guest_came_up_with_it(rig_with_kvm: QemuRig) -> None:
    before = rig_with_kvm.traces()
    result = await probe_qemu(rig_with_kvm.helper.host, rig_with_kvm.site)
    kvm = result.trials[0]
    assert kvm.acceleration is Acceleration.KVM
    assert kvm.booted or result.chosen is not None
    assert kvm.booted or result.reason.startswith("kvm: ")
    assert kvm.seconds < 15
    assert rig_with_kvm.traces() == before
