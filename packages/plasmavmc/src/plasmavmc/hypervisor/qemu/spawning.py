"""Starts a QEMU with everything attached: its command line, the limits it runs under, and its descriptors.

What the command line names, and what is handed over, are made in two places and have to be the same, name by name.
"""

from __future__ import annotations

from contextlib import ExitStack

from plasmavmc.guest.kernel import Kernel
from plasmavmc.host.operations import Host
from plasmavmc.hypervisor.backend import VmPlan
from plasmavmc.hypervisor.bootfiles import open_boot_files
from plasmavmc.hypervisor.limits import limits_of
from plasmavmc.hypervisor.process import VmmProcess
from plasmavmc.hypervisor.qemu.argv import QemuMachine, command_line, disk_name, gives_back, nic_name, secret_name
from plasmavmc.hypervisor.qemu.sockets import VmSockets
from plasmavmc.types import VmSpec


async def spawn(
    host: Host, machine: QemuMachine, spec: VmSpec, plan: VmPlan, sockets: VmSockets
) -> tuple[VmmProcess, str]:
    """The process of a new VM, and what bounds it; its vCPUs are held. Its uid is taken, and is the caller's to free.

    Raises:
        HostError: `boot-file`; what the host says.
    """
    command = command_line(
        machine,
        plan.key,
        spec.resources,
        plan.disks,
        plan.nics,
        memory=plan.memory,
        reclaim=gives_back(spec),
        own_kernel=Kernel(plan.kernel.parent).own,
    )
    with ExitStack() as ours:
        descriptors = {**sockets.listen(ours), **open_boot_files(plan, ours), **_attachments(plan)}
        assert descriptors.keys() == set(command.descriptors)  # noqa: S101 - both sides are ours
        await host.uid_take(plan.key, seat=True)
        spawned = await host.vm_spawn(plan.key, command.argv, limits_of(spec.resources), descriptors)
        return VmmProcess.spawned(host, plan.key, spawned), spawned.confinement


def _attachments(plan: VmPlan) -> dict[str, int]:
    disks = {disk_name(index): disk.fd for index, disk in enumerate(plan.disks)}
    nics = {nic_name(index): nic.fd for index, nic in enumerate(plan.nics)}
    secrets = {secret_name(index): disk.secret for index, disk in enumerate(plan.disks) if disk.secret >= 0}
    return disks | secrets | nics | ({} if plan.memory is None else {"memory": plan.memory.fd})
