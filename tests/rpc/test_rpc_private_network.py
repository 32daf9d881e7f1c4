"""Numbers of networks on an engine that is served alone: tenants name networks, and the engine tells them apart."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from plasmavmc.types import NetworkSpec, Scope
from tests.rpc.rpc_rig import ACME, RpcRig, running

OTHER = Scope("other", "main")


def numbers(rig: RpcRig) -> dict[str, int]:
    return {vm.spec.id: vm.spec.networks[0].network_number for vm in rig.manager.list_vms()}


async def create(rig: RpcRig, name: str, scope: Scope, network: str, asked: int = 0) -> str:
    wanted = NetworkSpec("nic0", network, network_number=asked)
    made = await rig.vms.create(replace(rig.spec(name, scope), networks=(wanted,)), start=False)
    assert made.spec.networks[0].network_number == 0  # nothing that a tenant has to know
    return made.spec.id


async def test_each_network_of_each_tenant_has_a_number_of_its_own_whatever_was_asked_for() -> None:
    async with running() as rig:
        one = await create(rig, "one", ACME, "net", asked=9)
        two = await create(rig, "two", ACME, "net")
        other, strange = await asyncio.gather(create(rig, "four", ACME, "back"), create(rig, "three", OTHER, "net"))
        told = numbers(rig)
        assert told[one] == told[two] > 0
        assert len({told[one], told[other], told[strange]}) == 3
        assert 0 not in told.values()


async def test_numbers_stay_over_a_restart() -> None:
    async with running() as rig:
        one = await create(rig, "one", ACME, "net")
        await create(rig, "two", OTHER, "net")
        before, engine = numbers(rig), rig.engine
        async with running(engine=engine) as again:
            three = await create(again, "three", ACME, "net")
            assert numbers(again) == {**before, three: before[one]}
