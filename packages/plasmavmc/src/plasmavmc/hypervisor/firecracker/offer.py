"""Offers the Firecracker backend to a registry: announced first, then settled as ready where a guest boots, or unavailable.

That the programs are there proves nothing; that they are not, or that others than root could have changed them, is told
without a probe. As with QEMU: announce, adopt the VMs that run, sweep, and settle beside whatever comes next. Its probe is
run after that of QEMU, the default: until it has shown that a guest boots, only VMs that name this backend wait for it.
"""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from plasmavmc.backends import Acceleration
from plasmavmc.errors import HostError
from plasmavmc.host.helper.programs import check_program
from plasmavmc.host.operations import Host, Jails
from plasmavmc.hypervisor.backend import VmPlan
from plasmavmc.hypervisor.firecracker.backend import NAME, FirecrackerBackend
from plasmavmc.hypervisor.probe import DEADLINES_S, KVM_DEVICE, ProbeCache, gather_facts, probe
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.types import MIB, SYSTEM_SCOPE, VmResources, VmSpec, vm_key

_RESOURCES = VmResources(cpu_milli=1000, vcpus=1, memory_bytes=256 * MIB)


@dataclass(frozen=True, slots=True)
class FirecrackerSite:
    """Where Firecracker and what it boots lie on this host. The programs are those that the root helper was told."""

    program: Path
    jailer: Path
    kernel: Path
    initrd: Path
    run_dir: Path
    cache: Path
    """Results of probes are kept here."""


def announce_firecracker(
    registry: HypervisorRegistry, host: Host, jails: Jails, site: FirecrackerSite
) -> FirecrackerBackend:
    """Enter the backend as probing: VMs of an earlier life can be adopted, new ones that name it wait."""
    backend = FirecrackerBackend(host, jails, program=site.program)
    registry.probing(NAME, backend, by_default=False)
    return backend


async def settle_firecracker(registry: HypervisorRegistry, backend: FirecrackerBackend, site: FirecrackerSite) -> None:
    """Probe this host, then register the backend, or refuse it with the reason. Run it beside, after the first sweep."""
    reason = await _trouble(backend, site)
    if reason:
        registry.refuse(NAME, reason)
    else:
        registry.register(backend)


async def _trouble(backend: FirecrackerBackend, site: FirecrackerSite) -> str:
    """Why no VM can be made; empty where a guest booted, now or before under the same facts."""
    try:
        for program in (site.program, site.jailer):
            check_program(program)
    except HostError as error:
        return str(error)
    if not KVM_DEVICE.exists():
        return f"{KVM_DEVICE} does not exist"

    async def boot(_acceleration: Acceleration) -> None:
        await boot_guest(backend, site)

    facts = gather_facts(site.program, site.jailer, site.kernel, site.initrd)
    deadlines = {Acceleration.KVM: DEADLINES_S[Acceleration.KVM]}
    result = await probe(boot, facts, ProbeCache(site.cache), deadlines)
    return "" if result.chosen is not None else result.reason


async def boot_guest(backend: FirecrackerBackend, site: FirecrackerSite) -> None:
    """Boot a guest without disks until its init says hello; nothing of it is left.

    Raises:
        HostError, UnavailableError: Firecracker could not be started, with its own words.
        GuestError: the guest did not come up; the console's last lines are in the details.
    """
    vm_id = f"probe_firecracker_{secrets.token_hex(4)}"
    spec = VmSpec(vm_id, SYSTEM_SCOPE, "probe", "", resources=_RESOURCES)
    async with AsyncExitStack() as undo:
        runtime_dir = Path(undo.enter_context(TemporaryDirectory(prefix="probe-", dir=site.run_dir)))
        handle = await backend.create_vm(spec, VmPlan(vm_key(vm_id), runtime_dir, site.kernel, site.initrd))
        undo.push_async_callback(backend.delete_vm, handle)
        channel = await backend.start_vm(handle)  # it has said hello
        await channel.aclose()
