"""Orders that end or remake a VM: whom they reach when they had to wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from plasmavmc.errors import ConflictError, NotFoundError
from plasmavmc.guest.api import GuestConfig
from plasmavmc.guest.memory import MemoryGuest, Script
from plasmavmc.hypervisor.memory import PretendedVmms
from plasmavmc.manager import VmManager
from plasmavmc.rpc.client import EngineClient
from plasmavmc.states import VmState
from plasmavmc.types import ForkIdentity
from tests.engine.engine_rig import EngineRig
from tests.rpc.rpc_rig import OTHER, RpcRig, running
from tests.waiting import until

LONG_S = 600.0
AT_ONCE_S = 5.0


async def reached(client: EngineClient, vm_id: str, state: VmState) -> None:
    async def look() -> bool:
        return (await client.vms.get(vm_id)).status.state is state

    await until(look, f"{vm_id} is {state}")


# Those that wait for a guest


def deaf_script(_config: GuestConfig) -> Script:
    return Script(stop_code=None)


@pytest.fixture
async def deaf(tmp_path: Path) -> AsyncIterator[RpcRig]:
    """No guest here takes notice of the stop signal."""
    engine = EngineRig(tmp_path, vmms=PretendedVmms(lambda _spec: MemoryGuest(deaf_script)))
    async with running(engine=engine) as made:
        yield made


async def restarting(rig: RpcRig, client: EngineClient) -> asyncio.Task[object]:
    """A restart of a VM whose guest has its long grace."""
    await client.vms.create(replace(rig.spec(), stop_grace_s=LONG_S), start=True)
    await reached(client, "vm_one", VmState.RUNNING)
    restart: asyncio.Task[object] = asyncio.create_task(client.vms.restart("vm_one"))
    await reached(client, "vm_one", VmState.STOPPING)
    return restart


async def test_who_cannot_have_an_id_hears_so_though_its_vm_is_being_restarted(deaf: RpcRig) -> None:
    async with deaf.client("operator") as ours, deaf.client("stranger") as theirs:
        restart = await restarting(deaf, ours)
        async with asyncio.timeout(AT_ONCE_S):
            with pytest.raises(ConflictError) as refused:
                await theirs.vms.create(deaf.spec(scope=OTHER))
        assert refused.value.code == "vm-exists"
        await ours.vms.stop("vm_one", 0)
        await restart


async def test_a_vm_that_is_being_restarted_is_deleted_now(deaf: RpcRig) -> None:
    async with deaf.client("operator") as client:
        restart = await restarting(deaf, client)
        async with asyncio.timeout(AT_ONCE_S):
            await client.vms.delete("vm_one")
            await restart
        with pytest.raises(NotFoundError):
            await client.vms.get("vm_one")
        assert not deaf.engine.vmms.known()


# Those that wait for each other


@dataclass
class SlowDeletes:
    """A VM that is deleted is gone when it is let, and who deletes it hears of it when it is let again."""

    begin: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    end: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowDeletes:
    deletes, delete = SlowDeletes(), VmManager.delete

    async def slowly(manager: VmManager, vm_id: str) -> None:
        await deletes.begin.wait()
        await delete(manager, vm_id)
        deletes.gone.set()
        await deletes.end.wait()

    monkeypatch.setattr(VmManager, "delete", slowly)
    return deletes


@pytest.mark.parametrize("restarts", [False, True])
async def test_an_order_that_waited_does_nothing_to_the_vm_of_another_project(
    rig: RpcRig, slow: SlowDeletes, restarts: bool
) -> None:
    async with rig.client("operator") as ours, rig.client("stranger") as theirs:
        await ours.vms.create(rig.spec())
        await theirs.vms.create(replace(rig.spec("two", OTHER), snapshot_safe=True), start=True)
        await reached(theirs, "vm_two", VmState.RUNNING)
        first = asyncio.create_task(rig.vms.delete("vm_one"))
        waiting = asyncio.create_task(rig.vms.restart("vm_one") if restarts else rig.vms.delete("vm_one"))
        await asyncio.sleep(0)
        slow.begin.set()
        await slow.gone.wait()
        await theirs.vms.fork("vm_two", [ForkIdentity("vm_one", "one")])
        await reached(theirs, "vm_one", VmState.RUNNING)
        process = rig.manager.get("vm_one").handle
        slow.end.set()
        await first
        if restarts:
            with pytest.raises(NotFoundError, match="there is no VM vm_one"):
                await waiting
        else:
            await waiting
        now = rig.manager.get("vm_one")
        assert (now.spec.scope, now.status.state, now.handle) == (OTHER, VmState.RUNNING, process)
