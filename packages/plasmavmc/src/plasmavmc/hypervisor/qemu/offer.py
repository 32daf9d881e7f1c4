"""Offers the QEMU backend to a registry: probing first, then ready with what works, or unavailable with the reason."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from plasmavmc.errors import HostError
from plasmavmc.host.operations import Host
from plasmavmc.hypervisor.backend import VmPlan
from plasmavmc.hypervisor.probe import KVM_DEVICE, ProbeCache, ProbeFacts, ProbeResult, gather_facts, probe
from plasmavmc.hypervisor.qemu.argv import KernelFlavour, QemuMachine
from plasmavmc.hypervisor.qemu.backend import NAME, KvmBackend
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.types import MIB, SYSTEM_SCOPE, Acceleration, VmResources, VmSpec, vm_key

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
    flavour: KernelFlavour = KernelFlavour.DISTRIBUTION

    def machine(self, acceleration: Acceleration) -> QemuMachine:
        """The machine that VMs of this host get with an acceleration."""
        return QemuMachine(str(self.program), self.installation, acceleration, self.tsc_khz, self.flavour)


async def offer_qemu(registry: HypervisorRegistry, host: Host, site: QemuSite) -> ProbeResult:
    """Probe this host and register the backend `kvm`. Run it beside: VMs wait meanwhile, and are told so.

    A trial VM is not in any record, so a sweep of the host would end it: sweep first.
    """
    registry.probing(NAME)
    result = await probe_qemu(host, site)
    chosen = result.chosen
    if chosen is None:
        registry.refuse(NAME, result.reason)
    else:
        registry.register(KvmBackend(host, site.machine(chosen.acceleration)), reason=result.reason)
    return result


def cached_result(site: QemuSite) -> ProbeResult | None:
    """What an earlier probe found, where it still holds for this host."""
    return ProbeCache(site.cache).load(_facts(site))


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
