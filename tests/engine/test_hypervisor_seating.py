"""When the next VMM's seat is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from plasmavmc.backends import Acceleration
from plasmavmc.errors import HostError
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.memory import MemoryHost
from plasmavmc.hypervisor.qemu.argv import QemuMachine
from plasmavmc.hypervisor.qemu.backend import KvmBackend
from plasmavmc.hypervisor.qemu.seating import Seating


class Refusing(MemoryHost):
    """A host that can have no seat."""

    asked = 0

    async def seat_make(self, *, kvm: bool) -> None:
        self.asked += 1
        raise HostError("host-cgroup", "it cannot be made")


@pytest.fixture
async def host() -> AsyncIterator[MemoryHost]:
    made = MemoryHost(HelperConfiguration("swg_seating", 1, 1))
    yield made
    made.close()


async def settled() -> None:
    """Everything that waits for no time has been done."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_is_made_when_the_host_is_idle_and_of_the_kind_that_was_asked_for_last(host: MemoryHost) -> None:
    seating = Seating(host, idle_s=0)
    seating.later(kvm=True)
    seating.later(kvm=False)
    await settled()
    assert host.seats == [False]


async def test_none_is_made_while_a_vm_starts(host: MemoryHost) -> None:
    seating = Seating(host, idle_s=0)
    seating.later(kvm=False)
    seating.put_off()
    await settled()
    assert host.seats == []


async def test_a_host_that_refuses_does_no_harm() -> None:
    host = Refusing(HelperConfiguration("swg_seating", 1, 1))
    seating = Seating(host, idle_s=0)
    for _ in range(2):
        seating.later(kvm=False)
        await settled()
    assert host.asked == 2


async def test_none_is_made_once_the_engine_ends_whatever_starts_still(host: MemoryHost) -> None:
    seating = Seating(host, idle_s=0)
    machine = QemuMachine("/usr/bin/qemu-system-x86_64", "i1", Acceleration.TCG, tsc_khz=2_596_000)
    backend = KvmBackend(host, machine, seating=seating)
    backend.use(machine)
    await backend.dismiss()
    backend.use(machine)
    await settled()
    assert host.seats == []
