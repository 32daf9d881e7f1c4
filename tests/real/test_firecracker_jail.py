"""Real tier: the driver over the root helper, the real jailer and the real Firecracker, with a guest of a few instructions.

What is shown is the way in and out: jail, uid, network, limits, API, end, leftovers. A Linux guest runs only in the last
test, and only where the host's KVM can run one. Opt-in as `test_firecracker_real.py`; the jailer is looked for beside the
program.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from time import monotonic

import pytest

from plasmavmc.backends import Readiness
from plasmavmc.errors import GuestError, HostError, UnavailableError
from plasmavmc.guest.boot import build_guest
from plasmavmc.host.operations import ProcessId
from plasmavmc.host.processes import is_alive, uids_of
from plasmavmc.hypervisor.backend import DiskPlan, MemoryPlan, NicPlan, VmPlan
from plasmavmc.hypervisor.firecracker import backend as backend_module
from plasmavmc.hypervisor.firecracker.backend import FirecrackerBackend
from plasmavmc.hypervisor.firecracker.offer import FirecrackerSite, announce_firecracker, settle_firecracker
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.types import SYSTEM_SCOPE, NetworkSpec, RateLimit, VmHandle, VmSpec, vm_key
from tests.contract.host_rig import NOBODY, RealHelper, real_helper
from tests.contract.tiny_kernel import chatter, idle, reset
from tests.host_cache import cache_directory
from tests.real.test_firecracker_real import firecracker

__all__ = ["firecracker"]
pytestmark = pytest.mark.real
JAILER = "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5"
SPEC = VmSpec("vm_one", SYSTEM_SCOPE, "one", "sha256:" + "0" * 64)
KEY = vm_key(SPEC.id)


@pytest.fixture(scope="module")
def place(firecracker: Path) -> Iterator[Path]:
    """A directory that only root can change, up to the root, with both programs: the helper takes no others."""
    jailer = firecracker.with_name("jailer")
    assert hashlib.sha256(jailer.read_bytes()).hexdigest() == JAILER
    made = Path(tempfile.mkdtemp(prefix="swg-jail-", dir="/var/lib"))
    made.chmod(0o755)
    for program in (firecracker, jailer):
        shutil.copy(program, made / program.name)
        (made / program.name).chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def helper(place: Path, tmp_path: Path) -> AsyncIterator[RealHelper]:
    programs = {"firecracker": str(place / "firecracker"), "jailer": str(place / "jailer")}
    async with real_helper(tmp_path, **programs, jail_root=place / "jails") as made:
        yield made


class Vm:
    """A backend, and what a VM of it is made from."""

    def __init__(self, helper: RealHelper, place: Path, kernel: bytes, *, recover_deadline_s: float = 30.0) -> None:
        self.backend = FirecrackerBackend(helper.host, helper.host, recover_deadline_s=recover_deadline_s)
        (place / "kernel").write_bytes(kernel)
        (place / "initrd").write_bytes(bytes(4096))
        (place / "disk").write_bytes(bytes(1 << 20))
        os.chown(place / "disk", NOBODY, NOBODY)
        for name in ("kernel", "initrd"):
            (place / name).chmod(0o644)
        self._disk = os.open(place / "disk", os.O_RDWR | os.O_CLOEXEC)
        disks = (DiskPlan("layer", self._disk, read_only=False),)
        self.plan = VmPlan(KEY, place, place / "kernel", place / "initrd", disks)

    async def created(self) -> VmHandle:
        return await self.backend.create_vm(SPEC, self.plan)

    def close(self) -> None:
        self.backend.close()
        os.close(self._disk)


@pytest.fixture
def vm(helper: RealHelper, place: Path) -> Iterator[Vm]:
    made = Vm(helper, place, idle())
    yield made
    made.close()


def jails_left(place: Path) -> list[Path]:
    return list((place / "jails").rglob("*-*"))


def seen_of(handle: VmHandle) -> tuple[set[str], list[str]]:
    """What lies in its root directory, and its network devices."""
    names = {path.name for path in Path(f"/proc/{handle.pid}/root").iterdir()}
    devices = Path(f"/proc/{handle.pid}/net/dev").read_text().splitlines()[2:]
    return names, [line.partition(":")[0].strip() for line in devices]


def status_of(handle: VmHandle) -> dict[str, str]:
    lines = Path(f"/proc/{handle.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_a_vmm_is_jailed_and_nothing_of_it_is_left(vm: Vm, helper: RealHelper, place: Path) -> None:
    handle = await vm.created()
    names, devices = seen_of(handle)
    status = status_of(handle)
    assert handle.backend_state["version"] == "1.12.1"
    uid = await helper.host.uid_take(KEY)
    assert uids_of(handle.pid) == {uid}
    assert int(status["CapEff"], 16) == 0
    assert status["Groups"] == ""
    assert names >= {"kernel", "initrd", "disk0", "s"}
    assert devices == ["lo"]
    groups = {helper.names.vm_cgroup(uid)} if handle.backend_state["confinement"] != "rlimits" else set()
    assert helper.cgroups() == groups
    await vm.backend.delete_vm(handle)
    assert helper.cgroups() == set()
    assert not jails_left(place)
    assert not is_alive(ProcessId(handle.pid, handle.start_time))


async def test_an_interface_is_on_the_tap_in_the_jail_and_its_cable_goes_with_the_vm(
    vm: Vm, helper: RealHelper, place: Path
) -> None:
    network = BridgeNetwork(helper.host, helper.names, IPv4Network("10.64.0.0/29"), monotonic)
    await network.configure_bridge()
    limited = NetworkSpec("nic", "net_a", receive=RateLimit(bytes_per_second=1 << 20))
    attachment = await network.setup_tap(KEY, limited, opened=False)
    nic = NicPlan("n0", attachment.fd, attachment.lease.mac, attachment.tap)
    handle = await vm.backend.create_vm(replace(SPEC, networks=(limited,)), replace(vm.plan, nics=(nic,)))
    assert set(seen_of(handle)[1]) == {"lo", "tap0", "cable0"}
    assert attachment.tap in helper.namespace.links()
    await vm.backend.delete_vm(handle)
    assert attachment.tap not in helper.namespace.links()
    await network.release(KEY)


async def test_a_guest_that_says_nothing_is_a_boot_that_failed_with_its_console(
    vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "HELLO_DEADLINE_S", 2.0)
    handle = await vm.created()
    with pytest.raises(GuestError) as failed:
        await vm.backend.start_vm(handle)
    assert failed.value.code == "boot-timeout"
    assert "up" in failed.value.details.splitlines()[-1]
    assert (status_of(handle)["NoNewPrivs"], status_of(handle)["Seccomp"]) == ("1", "2")
    await vm.backend.pause_vm(handle)
    await vm.backend.unpause_vm(handle)
    await vm.backend.delete_vm(handle)


async def test_a_state_leaves_one_jail_and_enters_another(
    vm: Vm, helper: RealHelper, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a guest that has no init to be woken: it runs on, that is all."""
    monkeypatch.setattr(backend_module, "HELLO_DEADLINE_S", 1.0)
    handle = await vm.created()
    with pytest.raises(GuestError):
        await vm.backend.start_vm(handle)
    state = os.memfd_create("state", os.MFD_CLOEXEC)
    memory = await vm.backend.save_state(handle, state)
    assert memory is not None
    written = os.fstat(memory)
    assert (written.st_gid, written.st_mode & 0o777, written.st_nlink) == (NOBODY, 0o660, 0)
    assert written.st_size == SPEC.resources.memory_bytes
    await vm.backend.go_on(handle)
    await vm.backend.delete_vm(handle)

    again = await vm.backend.create_vm(SPEC, replace(vm.plan, memory=MemoryPlan(memory)))
    await vm.backend.load_state(again, state)
    await vm.backend.go_on(again)
    assert set(os.listdir(f"/proc/{again.pid}/root/s")) == {"api.sock", "vsock.sock"}  # noqa: PTH208 - not blocking
    plan = replace(vm.plan, key=vm_key("vm_two"), memory=MemoryPlan(memory))
    other = await vm.backend.create_vm(replace(SPEC, id="vm_two"), plan)
    os.pwrite(state, b"nonsense" * 100, 64)
    with pytest.raises(HostError) as refused:
        await vm.backend.load_state(other, state)
    assert refused.value.code == "state-refused"
    for each in (again, other):
        await vm.backend.delete_vm(each)
    for fd in (state, memory):
        os.close(fd)


async def test_a_guest_that_resets_is_a_vmm_that_ended(helper: RealHelper, place: Path) -> None:
    vm = Vm(helper, place, reset())
    handle = await vm.created()
    with pytest.raises(GuestError) as failed:
        await vm.backend.start_vm(handle)
    assert failed.value.code == "boot-failed"
    assert (await vm.backend.wait_vm(handle)).code == 0
    await vm.backend.delete_vm(handle)
    vm.close()


async def test_a_kernel_that_is_none_is_told_with_firecrackers_words(helper: RealHelper, place: Path) -> None:
    vm = Vm(helper, place, b"no kernel" * 1000)
    handle = await vm.created()
    with pytest.raises(HostError) as refused:
        await vm.backend.start_vm(handle)
    assert refused.value.code == "firecracker-refused"
    assert "kernel" in refused.value.details
    await vm.backend.delete_vm(handle)
    vm.close()


async def test_a_vmm_whose_console_nobody_reads_any_more_lives_on(
    helper: RealHelper, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "HELLO_DEADLINE_S", 1.0)
    vm = Vm(helper, place, chatter())
    handle = await vm.created()
    with pytest.raises(GuestError):
        await vm.backend.start_vm(handle)
    vm.close()
    helper.restart()
    again = Vm(helper, place, chatter(), recover_deadline_s=1.0)
    with pytest.raises(UnavailableError) as silent:  # its API answers, its guest does not
        await again.backend.recover(handle)
    assert silent.value.code == "vsock-silent"
    assert is_alive(ProcessId(handle.pid, handle.start_time))
    await again.backend.delete_vm(handle)
    again.close()


async def test_a_vm_that_never_ran_is_ended_when_it_is_found_again(vm: Vm, helper: RealHelper, place: Path) -> None:
    handle = await vm.created()
    vm.backend.close()
    helper.restart()
    again = Vm(helper, place, idle())
    assert await again.backend.recover(handle) is None
    await again.backend.delete_vm(handle)
    assert not jails_left(place)
    again.close()


async def test_a_linux_guest_boots_here_or_the_probe_says_why_not_and_leaves_nothing(
    helper: RealHelper, place: Path, tmp_path: Path
) -> None:
    """On a host whose KVM runs Linux guests this is one that boots."""
    assets, _ = await build_guest(cache_directory())
    site = FirecrackerSite(
        place / "firecracker", place / "jailer", assets.kernel, assets.vsock_initrd, place, tmp_path / "probes"
    )
    registry = HypervisorRegistry()
    backend = announce_firecracker(registry, helper.host, helper.host, site)
    await settle_firecracker(registry, backend, site)
    backend.close()
    [status] = registry.statuses()
    assert status.readiness is Readiness.READY or "hangs" in status.reason or "ended" in status.reason
    assert not jails_left(place)
    assert helper.cgroups() == set()
