"""The order in which a VM comes up: its guest never runs before the rules of its network are in force."""

from __future__ import annotations

import asyncio

from plasmavmc.errors import HostError
from plasmavmc.manager import VmManager
from plasmavmc.states import VmState
from plasmavmc.types import Vm
from tests.engine.engine_rig import EngineRig


async def boot(manager: VmManager, rig: EngineRig, until: VmState) -> Vm:
    manager.create(rig.spec("a", "serve"))
    manager.start("vm_a")
    async with asyncio.timeout(20):
        revision = -1
        while manager.get("vm_a").status.state is not until:
            revision = await manager.changed(revision)
    return manager.get("vm_a")


async def test_no_guest_runs_before_its_rules_are_in_force(rig: EngineRig) -> None:
    manager = rig.manager()
    asked, in_force, admit = asyncio.Event(), asyncio.Event(), rig.network.admit

    async def slow(key: str) -> None:
        asked.set()
        await in_force.wait()
        await admit(key)

    rig.network.admit = slow  # type: ignore[method-assign]  # a host whose firewall takes its time
    booting = asyncio.create_task(boot(manager, rig, VmState.RUNNING))
    await asked.wait()
    assert rig.vmms.living() == {"vm_a"}
    assert rig.vmms.running() == frozenset()
    in_force.set()
    await booting
    assert rig.vmms.running() == {"vm_a"}
    assert rig.network.rules is not None
    assert len(rig.network.rules.members) == 1


async def test_a_vm_whose_rules_are_refused_never_runs_and_leaves_nothing(rig: EngineRig) -> None:
    manager = rig.manager()

    async def refuse(key: str) -> None:
        raise HostError("host-firewall", "nft refused the rules")

    rig.network.admit = refuse  # type: ignore[method-assign]  # a host whose firewall takes no rules
    vm = await boot(manager, rig, VmState.FAILED)
    assert vm.status.reason_code == "host-firewall"
    assert rig.vmms.known() == frozenset()
    assert await rig.storage.disks() == ()
    assert rig.network.rules is not None
    assert rig.network.rules.members == ()
