"""What a guest's state depends on beside its own specification: told as words, so that a refusal can name what
differs."""

from __future__ import annotations

from pathlib import Path

from plasmavmc.hypervisor.qemu.argv import QemuMachine, device_traits, gives_back
from plasmavmc.hypervisor.traits import processor_trait, program_trait
from plasmavmc.types import OWN_DISKS, VmSpec


def traits_of(machine: QemuMachine, spec: VmSpec) -> dict[str, str]:
    """Blocking: the program is read once for each change of it.

    Raises:
        HostError: `no-vmm`, the program cannot be read.
    """
    return {
        "program": program_trait(Path(machine.program)),
        "acceleration": machine.acceleration.value,
        "devices": device_traits(
            machine, spec.resources, OWN_DISKS + len(spec.volumes), len(spec.networks), reclaim=gives_back(spec)
        ),
        "processor": processor_trait(machine.acceleration),
    }
