"""Published ports over a real server: whose they are, and until when."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field, replace

import pytest
from structlog.testing import capture_logs

from plasmavmc.manager import VmManager
from plasmavmc.rpc.client import EngineClient
from plasmavmc.states import ENDED, VmState
from plasmavmc.types import ForkIdentity, PublishedPort, Vm
from tests.rpc.rpc_rig import RpcRig, running
from tests.waiting import until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def published(rig: RpcRig, client: EngineClient, *command: str) -> int:
    port = free_port()
    spec = replace(rig.spec(command=command), published=(PublishedPort(port, 80),))
    await client.vms.create(spec, start=True)
    return port


async def reached(client: EngineClient, *states: VmState, vm_id: str = "vm_one") -> None:
    async def look() -> Vm | None:
        vm = await client.vms.get(vm_id)
        return vm if vm.status.state in states else None

    await until(look, f"{vm_id} is one of {states}")


@dataclass
class SlowRestarts:
    """A VM that is restarted has ended, and is made anew when it is let."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def heard_of(self) -> None:
        """Return when it has ended, and whoever follows the VMs knows."""
        await self.ended.wait()
        for _ in range(100):
            await asyncio.sleep(0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowRestarts:
    restarts, delete = SlowRestarts(), VmManager.delete

    async def slowly(manager: VmManager, vm_id: str) -> None:
        restarts.ended.set()
        await restarts.go_on.wait()
        await delete(manager, vm_id)

    monkeypatch.setattr(VmManager, "delete", slowly)
    return restarts


@pytest.mark.parametrize("ended", [False, True])
async def test_a_vm_that_is_restarted_keeps_its_ports(rig: RpcRig, slow: SlowRestarts, ended: bool) -> None:
    async with rig.client("operator") as client:
        port = await published(rig, client, *(("exit", "0") if ended else ("serve",)))
        await reached(client, *(ENDED if ended else (VmState.RUNNING,)))

        async def given_back() -> bool:
            return not await is_open(port)

        if ended:
            await until(given_back, "its port is given back")
        restarting = asyncio.create_task(client.vms.restart("vm_one"))
        await slow.heard_of()
        assert await is_open(port), "another could take it"
        slow.go_on.set()
        await restarting
        if not ended:
            await reached(client, VmState.RUNNING)
            assert await is_open(port)


async def test_connections_to_a_vm_that_is_restarted_are_cut(
    rig: RpcRig, slow: SlowRestarts, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached_guest = asyncio.Event()

    async def for_ever(*_connection: object) -> None:
        reached_guest.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("plasmavmc.server.ports._serve", for_ever)
    async with rig.client("operator") as client:
        port = await published(rig, client, "serve")
        await reached(client, VmState.RUNNING)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reached_guest.wait()
        restarting = asyncio.create_task(client.vms.restart("vm_one"))
        async with asyncio.timeout(5.0):
            assert await reader.read() == b""
        slow.go_on.set()
        await restarting
        writer.close()


async def test_a_restart_that_is_refused_gives_an_ended_vm_s_ports_back(
    rig: RpcRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.client("operator") as client:
        port = await published(rig, client, "exit", "0")
        await reached(client, *ENDED)

        async def fails(_manager: VmManager, _vm_id: str) -> Vm:
            raise OSError("the disk is gone")

        monkeypatch.setattr(VmManager, "restart", fails)
        with pytest.raises(Exception, match="internal"):
            await client.vms.restart("vm_one")

        async def given_back() -> bool:
            return not await is_open(port)

        await until(given_back, "its port is given back")


async def test_a_vm_whose_port_was_anothers_when_the_server_came_back_is_restarted_without_it(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        port = free_port()
        spec = replace(rig.spec(), env={}, published=(PublishedPort(port, 80),))
        await client.vms.create(spec, start=True)
        await reached(client, VmState.RUNNING)
    rig.vms._ports.aclose()
    await rig.manager.close(keep_vms=True)

    async def taken() -> socket.socket | None:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            return None

    other = await until(taken, "its port is given back")
    assert other is not None
    with other:
        async with running(engine=rig.engine) as after, after.client("operator") as client:
            with capture_logs() as said:
                await client.vms.restart("vm_one")
            assert [line["vm"] for line in said if line["event"] == "port.not_published"] == ["vm_one"]
            await reached(client, VmState.RUNNING)


async def test_a_copy_takes_no_port_of_its_origin(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        port = PublishedPort(free_port(), 80)
        await client.vms.create(replace(rig.spec(), env={}, snapshot_safe=True, published=(port,)), start=True)
        await reached(client, VmState.RUNNING)
        [copy] = await client.vms.fork("vm_one", [ForkIdentity("vm_copy", "copy")])
        assert copy.spec.published == ()
        await reached(client, VmState.RUNNING, vm_id="vm_copy")
        await client.vms.stop("vm_copy")
        await client.vms.restart("vm_copy")
        await reached(client, VmState.RUNNING, vm_id="vm_copy")
        assert (await client.vms.get("vm_one")).spec.published == (port,)
    rig.vms._ports.aclose()
    await rig.manager.close(keep_vms=True)
    with capture_logs() as said:
        async with running(engine=rig.engine) as after:
            assert [vm.spec.id for vm in after.manager.list_vms() if vm.spec.published] == ["vm_one"]

            async def open_again() -> bool:
                return await is_open(port.host_port)

            await until(open_again, "it is published again")
    assert not [line for line in said if line["event"] == "port.not_published"]
