"""The contract of `Host` on the memory driver, and careless drivers that it rejects."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from plasmavmc.host.configuration import QEMU, HelperConfiguration, Listener
from plasmavmc.host.memory import MemoryHost
from plasmavmc.host.operations import Keep, Limits, Peer, ProcessId, Reach, Routed, Spawned, Swept
from tests.contract.host_contract import HostContract
from tests.contract.host_parts import ONE, HostRig

IN_USE = IPv4Network("10.64.0.0/20")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def rig_of(kind: type[MemoryHost]) -> tuple[HostRig, MemoryHost]:
    listener = Listener("127.0.0.1", free_port())
    configuration = HelperConfiguration("swg_memory", 1000, 1000, listeners=(listener,))
    host = kind(configuration, networks=(IN_USE,))
    return HostRig(host, configuration.names, QEMU, listener, IN_USE, configuration.vm_uids), host


class TestMemoryHost(HostContract):
    @pytest.fixture
    def rig(self) -> Iterator[HostRig]:
        rig, host = rig_of(MemoryHost)
        yield rig
        host.close()


class CarelessHost(MemoryHost):
    """Wrong: believes a pid without its start time, whoever names it."""

    async def vm_signal(self, key: str, process: ProcessId, signal: int) -> bool:
        for vm in self.vms.values():
            if vm.id.pid == process.pid:
                self.end(vm.key, -signal)
        return True


class HastyHost(MemoryHost):
    """Wrong: its sweep ends everything, and it dismantles under running VMs."""

    async def sweep(self, keep: Keep) -> Swept:
        return await super().sweep(Keep())

    async def dismantle(self) -> None:
        await self.sweep(Keep())


class TrustingHost(MemoryHost):
    """Wrong: runs whatever command line it is given, with or without a uid."""

    async def vm_spawn(self, key: str, argv: Sequence[str], limits: Limits, fds: Mapping[str, int]) -> Spawned:
        await self.uid_take(key)
        plain = (self._configuration.vmms[0], "-name", self._names.process(key))
        return await super().vm_spawn(key, plain, limits, {})


class CarefreeHost(MemoryHost):
    """Wrong: has a way to every node, in clear where there is no other."""

    async def routes_apply(self, peers: Sequence[Peer], reach: Reach) -> Routed:
        return replace(await super().routes_apply(peers, reach), lacking=())


@pytest.mark.parametrize(
    ("wrong", "behaviour"),
    [
        (CarefreeHost, HostContract.test_who_encrypts_has_no_way_to_who_does_not),
        (CarelessHost, HostContract.test_a_signal_never_reaches_another_process),
        (HastyHost, HostContract.test_a_sweep_leaves_what_is_kept_and_removes_the_rest),
        (HastyHost, HostContract.test_an_installation_with_vms_is_not_dismantled),
        (TrustingHost, HostContract.test_what_is_not_a_vmm_of_ours_is_refused),
        (TrustingHost, HostContract.test_a_vmm_needs_a_uid),
    ],
)
async def test_a_wrong_host_is_rejected(
    wrong: type[MemoryHost], behaviour: Callable[[HostContract, HostRig], Awaitable[None]]
) -> None:
    rig, host = rig_of(wrong)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await behaviour(HostContract(), rig)
    host.close()


async def test_what_was_asked_for_can_be_looked_at() -> None:
    rig, host = rig_of(MemoryHost)
    await host.bridge_ensure(rig.bridge)
    await host.uid_take(ONE)
    assert host.bridge == rig.bridge
    assert host.uids.keys() == {ONE}
