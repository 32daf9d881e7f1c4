"""Offers the QEMU backend to a registry: announced first, then settled as ready with what works, or unavailable.

At a start: `announce_qemu`, adopt the VMs that run, sweep, and `settle_qemu` beside whatever comes next.
"""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from plasmavmc.backends import Acceleration
from plasmavmc.errors import HostError
from plasmavmc.guest.boot import load_assets
from plasmavmc.guest.kernel import Kernel
from plasmavmc.host.architecture import EMULATOR
from plasmavmc.host.operations import Host
from plasmavmc.host.run import find_program
from plasmavmc.hypervisor.backend import VmPlan
from plasmavmc.hypervisor.probe import KVM_DEVICE, ProbeCache, ProbeFacts, ProbeResult, gather_facts, probe
from plasmavmc.hypervisor.qemu.argv import OWN_KERNEL_DISKS, QemuMachine
from plasmavmc.hypervisor.qemu.backend import NAME, KvmBackend
from plasmavmc.hypervisor.qemu.drivers import BALLOON_DRIVER, drives
from plasmavmc.hypervisor.qemu.seating import Seating
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.types import MIB, SYSTEM_SCOPE, VmResources, VmSpec, vm_key

_RESOURCES = VmResources(cpu_milli=1000, vcpus=1, memory_bytes=256 * MIB)


@dataclass(frozen=True, slots=True)
class QemuSite:
    """Where QEMU and what it boots lie on this host."""

    program: Path
    installation: str
    """Key of the installation."""
    tsc_khz: int
    kernel: Path
    initrd: Path
    run_dir: Path
    """Sockets of trial VMs go below it."""
    cache: Path
    """Results of probes are kept here."""

    def machine(self, acceleration: Acceleration) -> QemuMachine:
        """The machine that VMs of this host get with an acceleration."""
        balloon = drives(BALLOON_DRIVER, self.kernel, self.initrd)
        machine = QemuMachine(str(self.program), self.installation, acceleration, self.tsc_khz, balloon=balloon)
        return replace(machine, max_disks=OWN_KERNEL_DISKS) if Kernel(self.kernel.parent).own else machine


def announce_qemu(registry: HypervisorRegistry, host: Host, site: QemuSite) -> KvmBackend:
    """Enter the backend `kvm` as probing: VMs of an earlier life can be adopted, new ones wait."""
    backend = KvmBackend(host, site.machine(Acceleration.TCG), seating=Seating(host))
    registry.probing(NAME, backend)
    return backend


async def settle_qemu(registry: HypervisorRegistry, backend: KvmBackend, host: Host, site: QemuSite) -> ProbeResult:
    """Probe this host, then register the backend with what works, or refuse it. Run it beside.

    A trial VM is in no record, so a sweep of the host would end it: sweep first.
    """
    result = await probe_qemu(host, site)
    chosen = result.chosen
    if chosen is None:
        registry.refuse(NAME, result.reason)
    else:
        backend.use(site.machine(chosen.acceleration))
        registry.register(backend, reason=result.reason)
    return result


def cached_result(site: QemuSite) -> ProbeResult | None:
    """What an earlier probe found, where it still holds for this host."""
    return ProbeCache(site.cache).load(_facts(site))


def probed(cache: Path) -> ProbeResult | None:
    """What the last probe of this host found, where it still holds; None also without QEMU or the guest's files."""
    try:
        program, assets = find_program(EMULATOR), load_assets(cache)
    except HostError:
        return None
    return ProbeCache(cache / "probes").load(gather_facts(Path(program), assets.kernel, assets.initrd))


def _facts(site: QemuSite) -> ProbeFacts:
    return gather_facts(site.program, site.kernel, site.initrd)


async def probe_qemu(host: Host, site: QemuSite) -> ProbeResult:
    """What boots with QEMU on this host, from the cache or by trying."""

    async def boot(acceleration: Acceleration) -> None:
        await boot_guest(host, site, acceleration)

    return await probe(boot, _facts(site), ProbeCache(site.cache))


async def boot_guest(host: Host, site: QemuSite, acceleration: Acceleration) -> None:
    """Boot a guest without disks and network until its init says hello; nothing of it is left.

    Raises:
        HostError, UnavailableError: QEMU could not be started, with its own words.
        GuestError: the guest did not come up; the console's last lines are in the details.
    """
    if acceleration is Acceleration.KVM and not KVM_DEVICE.exists():
        raise HostError("no-kvm", f"{KVM_DEVICE} does not exist")
    backend = KvmBackend(host, site.machine(acceleration))
    vm_id = f"probe_{acceleration}_{secrets.token_hex(4)}"
    spec = VmSpec(vm_id, SYSTEM_SCOPE, "probe", "", resources=_RESOURCES)
    async with AsyncExitStack() as undo:
        runtime_dir = Path(undo.enter_context(TemporaryDirectory(prefix="probe-", dir=site.run_dir)))
        handle = await backend.create_vm(spec, VmPlan(vm_key(vm_id), runtime_dir, site.kernel, site.initrd))
        undo.push_async_callback(backend.delete_vm, handle)
        channel = await backend.start_vm(handle)  # it has said hello
        await channel.aclose()
