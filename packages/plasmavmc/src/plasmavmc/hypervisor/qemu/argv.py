"""The QEMU command line of a VM, as a value.

Theory. A VMM runs as a uid that can open nothing of ours, so whatever it needs is a descriptor: kernel and initrd by
`/dev/fd/N` (opened again, so both must be world-readable), disks by `/dev/fdset/N`, the tap by `fd=`, its sockets as
listening ones that we bound. `@name@` stands for the number which a descriptor gets in the child; the host rewrites it.
The sandbox is not here: the host adds it, so that no caller can leave it out.

Traps (QEMU 7.2):
- Devices on virtio-mmio are found by the guest in the order of the command line; disks come first to be vda, vdb, ….
- `-drive file=/dev/fdset/N` refuses a read-write disk with one O_RDWR descriptor; `-blockdev` takes it.
- A write that finds the host's disk full stops the whole VM, for good (`werror=enospc` is the default). So it is reported:
  the guest's write fails, and an app that needs no disk goes on.
- `fd=` on a tap forbids `ifname`, `script` and `vnet_hdr`.
- Debian's kernel needs `acpi=on` (it cannot take devices from its command line). One of our own needs `acpi=off`: QEMU then
  writes the devices onto its command line, and without PCI it could not load ACPI's tables. Which machine a VM has follows
  from its kernel alone, so a suspended one gets its own again, whatever kernel is in use by then. Without ACPI there are
  places for eight devices, with it for 24.
- Without KVM's clock a kernel needs the frequency of the TSC: under load nine of ten boots hung calibrating it.
  `tsc_early_khz` must be the host's true value.
- Memory is a memfd that can be shared, so that a snapshot is devices' state alone (70 KiB) and its copy. A guest restored
  from one needs the same device line, and its RAM under the same name: `memory-backend-memfd` and `-file` agree on it.
- A secret is read from `/dev/fd/N`, opened again, so its file must be readable by the VMM's uid; and as text, so what opens
  a sealed disk is its key in hexadecimal. The size of a sealed disk is, to QEMU, what its guest sees.
- A throttle group's limits are an object; `x-bps-total` and its like are QEMU's own shorthand, and may go. The bucket holds
  a tenth of a second's worth.
- A page that a guest reports as free is punched out of its memfd. Where several VMs begin with one memfd each would take it
  from the others: so no VM that may be copied has a balloon, and the memory of a template is sealed besides.
- `-smp` alone spreads vCPUs over sockets; one socket with n cores is what Linux schedules best on.

Sources: qemu-system-x86_64(1), docs/system/i386/microvm.rst, Documentation/admin-guide/kernel-parameters.rst.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

from plasmavmc.backends import Acceleration
from plasmavmc.host.architecture import Architecture, host_architecture
from plasmavmc.host.names import HostNames
from plasmavmc.hypervisor.backend import DiskPlan, MemoryPlan, NicPlan
from plasmavmc.types import MIB, NO_LIMIT, VmResources, VmSpec

OWN_KERNEL_DISKS = 5
"""Without ACPI a microvm has eight places for devices in all: these, an interface, the channel and the balloon."""
CHANNEL_PORT = "ctl"
"""Name of the virtio-serial port that the guest's init opens."""
TRANSLATION_CACHE_MIB = 32
"""TCG's cache of translated code. The default is a fraction of RAM; 32 MiB boots and serves as fast."""


@dataclass(frozen=True, slots=True)
class QemuMachine:
    """What is the same for all VMs of a host."""

    program: str
    installation: str
    """Key of the installation; it is in the VMM's name, by which a sweep knows ours from others."""
    acceleration: Acceleration
    tsc_khz: int
    """Frequency of the host's TSC, for guests without KVM's clock; see `guest.tsc`."""
    architecture: Architecture = field(default_factory=host_architecture)
    balloon: bool = False
    """The guest's kernel has the driver. Without it the device is there, and nothing comes back."""
    max_disks: int = 12
    """That a VM may have, its own two among them."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    argv: tuple[str, ...]
    descriptors: tuple[str, ...]
    """Names that occur in `argv` as `@name@`; each must come with a descriptor."""


def disk_name(index: int) -> str:
    """Name of the descriptor of the disk at `index`."""
    return f"disk{index}"


def secret_name(index: int) -> str:
    """Name of the descriptor of the passphrase of the disk at `index`."""
    return f"secret{index}"


def nic_name(index: int) -> str:
    """Name of the descriptor of the tap at `index`."""
    return f"tap{index}"


def command_line(
    machine: QemuMachine,
    key: str,
    resources: VmResources,
    disks: Sequence[DiskPlan],
    nics: Sequence[NicPlan],
    *,
    memory: MemoryPlan | None = None,
    reclaim: bool = False,
    own_kernel: bool = False,
) -> CommandLine:
    """The command line of VM `key`. The guest does not run until it is told to over QMP (`-S`). With `memory` it does
    not boot: it waits for a state that goes with that memory. With `reclaim` what it frees goes back to the host; not for
    one that may be copied: see the traps. `own_kernel`: its kernel is of our own configuration."""
    sections = (
        _identity(machine, key),
        _processor(machine, resources, own_kernel=own_kernel),
        _memory(resources, memory),
        _kernel(machine),
        *(_disk(index, disk) for index, disk in enumerate(disks)),
        *(_nic(index, nic) for index, nic in enumerate(nics)),
        _channel(),
        _balloon() if reclaim else (),
        _console(),
        _monitor(),
    )
    names = ("kernel", "initrd", "channel", "console", "qmp", *(() if memory is None else ("memory",)))
    taken = (*map(disk_name, range(len(disks))), *map(nic_name, range(len(nics))))
    secrets = (secret_name(index) for index, disk in enumerate(disks) if disk.secret >= 0)
    return CommandLine(tuple(chain.from_iterable(sections)), (*names, *taken, *secrets))


_TRAITS = ("-M", "-cpu", "-smp", "-m", "-device")


def gives_back(spec: VmSpec) -> bool:
    """Whether what a VM frees goes back to the host: not where its memory may come to be shared with copies."""
    return not spec.snapshot_safe


def device_traits(machine: QemuMachine, resources: VmResources, disks: int, nics: int, *, reclaim: bool) -> str:
    """The machine as a state sees it: what must be the same where one is loaded, and nothing that may differ. What follows
    from the kernel is left to that."""
    plans = [DiskPlan("", -1, read_only=index == 0) for index in range(disks)]
    cards = [NicPlan("", -1, "") for _ in range(nics)]
    argv = command_line(machine, "", resources, plans, cards, reclaim=reclaim).argv
    return " ".join(value for option, value in pairwise(argv) if option in _TRAITS)


def kernel_parameters(machine: QemuMachine) -> str:
    """What the guest kernel is told. Nothing about the workload: that travels over the channel, being secret."""
    return " ".join((*machine.architecture.kernel_parameters, *_COMMON_PARAMETERS, *_clock_parameters(machine)))


_COMMON_PARAMETERS = ("quiet", "panic=-1", "cryptomgr.notests", "audit=0", "init_on_alloc=0")
"""With `panic=-1`, the architecture's way to reboot and `-no-reboot`, a reboot, a power-off and a panic all end QEMU at
once. The rest spares time in each boot, and means nothing to a kernel of our own configuration."""


def _clock_parameters(machine: QemuMachine) -> tuple[str, ...]:
    if machine.acceleration is Acceleration.KVM:
        return ()
    return tuple(word.format(khz=machine.tsc_khz) for word in machine.architecture.emulated_clock)


def _identity(machine: QemuMachine, key: str) -> tuple[str, ...]:
    return (
        machine.program,
        *("-name", HostNames(machine.installation).process(key)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-S"),
        *("-display", "none"),
    )


def _processor(machine: QemuMachine, resources: VmResources, *, own_kernel: bool) -> tuple[str, ...]:
    kvm, words = machine.acceleration is Acceleration.KVM, machine.architecture
    model = words.own_qemu_machine if own_kernel else words.qemu_machine
    return (
        *("-M", f"{model},memory-backend=mem"),
        *("-accel", "kvm" if kvm else f"tcg,tb-size={TRANSLATION_CACHE_MIB}"),
        *("-cpu", "host" if kvm else words.emulated_cpu),
        *("-smp", f"cpus={resources.vcpus},sockets=1,cores={resources.vcpus},threads=1"),
        *("-m", f"{_mebibytes(resources.memory_bytes)}M"),
    )


def _mebibytes(size: int) -> int:
    return -(-size // MIB)


def _memory(resources: VmResources, memory: MemoryPlan | None) -> tuple[str, ...]:
    size = f"id=mem,size={_mebibytes(resources.memory_bytes)}M"
    if memory is None:
        return ("-object", f"memory-backend-memfd,{size},share=on")
    share = "on" if memory.own else "off"
    place = f"memory-backend-file,{size},mem-path=/dev/fd/@memory@,share={share}"
    return ("-object", place, "-incoming", "defer")


def _kernel(machine: QemuMachine) -> tuple[str, ...]:
    return (
        *("-kernel", "/dev/fd/@kernel@"),
        *("-initrd", "/dev/fd/@initrd@"),
        *("-append", kernel_parameters(machine)),
    )


def _disk(index: int, disk: DiskPlan) -> tuple[str, ...]:
    access = "read-only=on" if disk.read_only else "discard=unmap,file.discard=unmap"
    on_error = "" if disk.read_only else ",werror=report"
    file = f"file.driver=file,file.filename=/dev/fdset/{index},file.locking=off"
    limited, sealed = disk.limit != NO_LIMIT, disk.secret >= 0
    form = f"driver=luks,key-secret=k{index}" if sealed else "driver=raw"
    return (
        *("-add-fd", f"fd=@{disk_name(index)}@,set={index}"),
        *(("-object", f"secret,id=k{index},format=raw,file=/dev/fd/@{secret_name(index)}@") if sealed else ()),
        *("-blockdev", f"{form},node-name={'f' if limited else 'd'}{index},{file},{access}"),
        *(_throttle(index, disk) if limited else ()),
        *("-device", f"virtio-blk-device,drive=d{index}{on_error}"),
    )


def _throttle(index: int, disk: DiskPlan) -> tuple[str, ...]:
    """A filter before the disk, in a group of its own. It holds requests back and fails none."""
    limits = {"bps-total": disk.limit.bytes_per_second, "iops-total": disk.limit.operations_per_second}
    group = {"qom-type": "throttle-group", "id": f"g{index}", "limits": {k: v for k, v in limits.items() if v}}
    access = "read-only=on" if disk.read_only else "discard=unmap"
    return (
        *("-object", json.dumps(group, separators=(",", ":"))),
        *("-blockdev", f"driver=throttle,node-name=d{index},throttle-group=g{index},file=f{index},{access}"),
    )


def _nic(index: int, nic: NicPlan) -> tuple[str, ...]:
    return (
        *("-netdev", f"tap,id=n{index},fd=@{nic_name(index)}@"),
        *("-device", f"virtio-net-device,netdev=n{index},mac={nic.mac}"),
    )


def _channel() -> tuple[str, ...]:
    return (
        *("-device", "virtio-serial-device"),
        *("-chardev", "socket,id=c0,fd=@channel@,server=on,wait=off"),
        *("-device", f"virtserialport,chardev=c0,name={CHANNEL_PORT},nr=1"),
    )


def _balloon() -> tuple[str, ...]:
    """Never inflated: it is there for its reports of pages that the guest has no use for."""
    return ("-device", "virtio-balloon-device,free-page-reporting=on")


def _console() -> tuple[str, ...]:
    return ("-chardev", "socket,id=s0,fd=@console@,server=on,wait=off", "-serial", "chardev:s0")


def _monitor() -> tuple[str, ...]:
    return ("-chardev", "socket,id=q0,fd=@qmp@,server=on,wait=off", "-mon", "chardev=q0,mode=control")
