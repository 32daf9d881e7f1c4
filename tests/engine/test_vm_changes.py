"""What a VM may reach and what may reach it, changed while an address is found for it: that holds when it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

import pytest

from plasmavmc.errors import HostError, NotFoundError
from plasmavmc.hypervisor.memory import MemoryBackend
from plasmavmc.manager import VmManager
from plasmavmc.network.ipam import AddressPool
from plasmavmc.policy import Egress
from plasmavmc.types import ForkIdentity, NetworkSpec, vm_key
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, reaches, running, started

DEADLINE_S = 5.0


class Slow:
    """Something that goes on once `found` is set."""

    def __init__(self) -> None:
        self.asked, self.found = asyncio.Event(), asyncio.Event()

    async def wait(self) -> None:
        self.asked.set()
        await self.found.wait()

    async def closed_meanwhile(self, manager: VmManager, vm_id: str, coming_up: Awaitable[object]) -> None:
        """Let the VM reach nobody, and nobody reach it, while it waits; returns when it is up."""
        up = asyncio.ensure_future(coming_up)
        async with asyncio.timeout(DEADLINE_S):
            await self.asked.wait()
            await manager.restrict(vm_id, ())
            await manager.screen(vm_id, "db", ())
            self.found.set()
            await up


class SlowBook(Slow):
    """From now on the next address is found when `found` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        look_ahead = AddressPool.look_ahead

        async def slowly(pool: AddressPool) -> None:
            await self.wait()
            await look_ahead(pool)

        monkeypatch.setattr(AddressPool, "look_ahead", slowly)


class SlowVmm(Slow):
    """From now on VMMs do this when `found` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
        super().__init__()
        done = getattr(MemoryBackend, operation)

        async def slowly(backend: MemoryBackend, *asked: object) -> object:
            await self.wait()
            return await done(backend, *asked)

        monkeypatch.setattr(MemoryBackend, operation, slowly)


def closed(rig: EngineRig, vm_id: str) -> bool:
    """The rules in force say that it reaches nobody, and nobody it."""
    assert rig.network.rules is not None
    tap = rig.network._members.tap_of(vm_key(vm_id))
    (member,) = [each for each in rig.network.rules.members if each.tap == tap]
    return (member.egress, member.identity, member.ingress) == ((), "db", ())


async def test_a_change_while_a_vm_boots_is_in_force_when_it_runs(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = rig.manager()
    book = SlowBook(monkeypatch)
    await book.closed_meanwhile(manager, "vm_one", started(manager, rig.spec("one", "serve")))
    assert closed(rig, "vm_one")


async def test_a_change_while_a_copy_comes_up_is_in_force_when_it_runs(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig, safe=True)
    book = SlowBook(monkeypatch)
    forking = manager.fork("vm_one", [ForkIdentity("vm_copy", "copy")])
    await book.closed_meanwhile(manager, "vm_copy", forking)
    await reaches(manager, "vm_copy", S.RUNNING)
    assert closed(rig, "vm_copy")


async def test_a_change_while_a_vm_stands_still_to_be_copied_is_its_copies_too(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig, safe=True)
    forking = manager.fork("vm_one", [ForkIdentity("vm_copy", "copy")])
    await SlowVmm(monkeypatch, "save_state").closed_meanwhile(manager, "vm_one", forking)
    await reaches(manager, "vm_copy", S.RUNNING)
    assert closed(rig, "vm_one")
    assert closed(rig, "vm_copy")


async def test_a_change_while_a_vm_wakes_whose_address_is_another_s_is_in_force_when_it_runs(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    assert rig.network.rules is not None
    (member,) = rig.network.rules.members
    await manager.suspend("vm_one")
    taken = NetworkSpec("nic_two", "net_1", ipv4=member.ipv4)
    await started(manager, replace(rig.spec("two", "serve"), networks=(taken,)))
    book = SlowBook(monkeypatch)
    await book.closed_meanwhile(manager, "vm_one", manager.resume("vm_one"))
    assert closed(rig, "vm_one")


async def test_a_change_while_a_vm_wakes_lasts_where_it_does_not_wake(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    rig.vmms.faults.load = HostError("vmm-refused", "QEMU ended at its start with code 1")
    with pytest.raises(HostError):
        await SlowVmm(monkeypatch, "load_state").closed_meanwhile(manager, "vm_one", manager.resume("vm_one"))
    assert manager.get("vm_one").status.state is S.SUSPENDED
    rig.vmms.faults.load = None
    await manager.resume("vm_one")
    assert closed(rig, "vm_one")
    assert manager.get("vm_one").spec.networks[0].egress == ()


async def test_a_change_while_what_its_last_vmm_left_is_taken_back_is_in_force_when_it_wakes(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    rig.vmms.kept.add("vm_one")
    await manager.suspend("vm_one")
    rig.vmms.kept.clear()
    await SlowVmm(monkeypatch, "delete_vm").closed_meanwhile(manager, "vm_one", manager.resume("vm_one"))
    assert closed(rig, "vm_one")


async def test_a_change_of_a_vm_that_is_being_deleted_is_not_written_down(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    disk, host = Slow(), Slow()
    remove, hold = rig.parts.storage.delete, rig.network.restrict

    async def removed_slowly(key: str) -> None:
        await disk.wait()
        await remove(key)

    async def held_slowly(key: str, egress: Egress) -> None:
        await host.wait()
        await hold(key, egress)

    monkeypatch.setattr(rig.parts.storage, "delete", removed_slowly)
    monkeypatch.setattr(rig.network, "restrict", held_slowly)
    deleting = asyncio.ensure_future(manager.delete("vm_one"))
    async with asyncio.timeout(DEADLINE_S):
        await disk.asked.wait()
        changing = asyncio.ensure_future(manager.restrict("vm_one", ()))
        await asyncio.sleep(0)
        disk.found.set()
        await deleting
        host.found.set()
        with pytest.raises(NotFoundError):
            await changing
    assert rig.parts.records.load() == []
