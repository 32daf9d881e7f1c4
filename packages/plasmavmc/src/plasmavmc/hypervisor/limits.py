"""What a VMM may use of the host, by what its VM was given."""

from __future__ import annotations

from plasmavmc.host.operations import Limits
from plasmavmc.types import MIB, VmResources

VMM_OVERHEAD_BYTES = 128 * MIB
"""What QEMU needs beside the guest's memory: measured 34 MiB of its own under TCG, and 67 MiB of files it has mapped.
Firecracker needs less."""
VMM_OVERHEAD_PER_VCPU = 16 * MIB
VMM_OVERHEAD_SHARE = 16
"""One part in so many of the guest's memory for what grows with it: page tables and, under TCG, the software TLBs."""
VMM_CPU_MILLI = 100
"""What the VMM's own threads (devices, monitor) may use beside the guest's share. A guest that keeps its CPU busy, as one
that boots does, would be held up by them otherwise: measured 10 to 23 ms of a cold start."""
VMM_THREADS = 96
"""Main, RCU and up to 64 threads that wait for disks; vCPUs come on top."""


def limits_of(resources: VmResources) -> Limits:
    """What a VMM may use, so that a guest which uses all of its memory and CPU neither gets its VMM killed nor is held up
    by it."""
    overhead = VMM_OVERHEAD_BYTES + resources.vcpus * VMM_OVERHEAD_PER_VCPU
    return Limits(
        memory_bytes=resources.memory_bytes + resources.memory_bytes // VMM_OVERHEAD_SHARE + overhead,
        cpu_milli=resources.cpu_milli + VMM_CPU_MILLI,
        pids=VMM_THREADS + resources.vcpus,
    )
