"""What a guest's state depends on beside its own specification; see `hypervisor.traits`."""

from __future__ import annotations

import platform
from pathlib import Path

from plasmavmc.backends import Acceleration
from plasmavmc.hypervisor.traits import processor_trait, program_trait
from plasmavmc.types import MIB, OWN_DISKS, VmSpec


def traits_of(program: Path, spec: VmSpec) -> dict[str, str]:
    """Firecracker itself is the release; a snapshot is for the same host kernel besides (docs/snapshotting/versioning.md).

    Raises:
        HostError: `no-vmm`, the program cannot be read.
    """
    resources = spec.resources
    disks, nics = OWN_DISKS + len(spec.volumes), len(spec.networks)
    memory = -(-resources.memory_bytes // MIB)
    return {
        "program": program_trait(program),
        "acceleration": Acceleration.KVM.value,
        "devices": f"{resources.vcpus} vcpus {memory} MiB {disks} disks {nics} nics vsock entropy",
        "template": "none",
        "processor": processor_trait(Acceleration.KVM),
        "host": platform.release(),
    }
