"""What differs between the processor architectures of hosts. A guest has its host's: all words of one are here, but for the
root helper's list of what it lets pass, and two formats that only x86 has (`guest.bzimage`, `guest.tsc`).

A further architecture is an entry here, a fragment of its name in `native/kernel`, and its machine on the helper's list.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from plasmavmc.errors import HostError

MACHINE = platform.machine()
"""This host's, as uname(2) tells it."""
PACKAGE_NAMES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}
"""In names of the distribution's packages, and in images (Go's words)."""
PACKAGE_NAME = PACKAGE_NAMES.get(MACHINE, MACHINE)
EMULATOR = f"qemu-system-{MACHINE}"
EMULATOR_PACKAGE = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}.get(MACHINE, "qemu-system")
BPF_CALL = {"x86_64": 321, "aarch64": 280}.get(MACHINE)
"""The number of bpf(2), for which the C library has no function; None: not known."""


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """What a filter of system calls knows an architecture by, and its numbers of those that are filtered."""

    audit: int
    """AUDIT_ARCH_… of linux/audit.h."""
    ioctl: int
    connect: int


SYSTEM_CALLS = {
    "x86_64": SystemCalls(0xC000003E, 16, 42),
    "aarch64": SystemCalls(0xC00000B7, 29, 203),
}.get(MACHINE)
"""None: not known."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What guests of an architecture are started with."""

    machine: str
    qemu_machine: str
    """QEMU's machine and its properties, for the distribution's kernel."""
    own_qemu_machine: str
    """The same for a kernel of our own configuration, which is told its devices in another way."""
    emulated_cpu: str
    """The model that emulation can do most with."""
    kernel_parameters: tuple[str, ...]
    """Console, what ends the VM, and what need not be looked for."""
    emulated_clock: tuple[str, ...]
    """How a guest without KVM's clock learns the time's pace; `{khz}` is that of the host's counter."""
    kernel_packages: Mapping[str, str]
    """The package that always depends on the distribution's newest kernel for VMs, by `ID` of os-release(5)."""
    kernel_name: str
    """The kernel's own word for the architecture, for `ARCH=`."""
    kernel_target: str
    """What to make of its source for a VMM to start."""
    kernel_image: str
    """Where that lies, below the directory of objects."""


X86_64 = Architecture(
    machine="x86_64",
    qemu_machine="microvm,acpi=on",
    own_qemu_machine="microvm,acpi=off",
    emulated_cpu="max",
    kernel_parameters=("console=ttyS0", "reboot=t", "8250.nr_uarts=1", "no_timer_check"),
    emulated_clock=("tsc=reliable", "tsc_early_khz={khz}"),
    kernel_packages={"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"},
    kernel_name="x86",
    kernel_target="vmlinux",
    kernel_image="vmlinux",
)

ARCHITECTURES: Mapping[str, Architecture] = {each.machine: each for each in (X86_64,)}


def host_architecture() -> Architecture:
    """This host's.

    Raises:
        HostError: `unsupported-host`.
    """
    if MACHINE not in ARCHITECTURES:
        raise HostError(
            "unsupported-host",
            f"no guests are known for hosts of the architecture {MACHINE}",
            resolution=f"Supported: {', '.join(sorted(ARCHITECTURES))}.",
        )
    return ARCHITECTURES[MACHINE]
