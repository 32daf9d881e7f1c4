"""What a worker may use of the host, by what its VM was given."""

from __future__ import annotations

from plasmavmc.host.operations import WORKER_FILES_BYTES, Limits
from plasmavmc.types import MIB, VmResources

WORKER_BYTES = 192 * MIB
"""Beside the module's memory: interpreter and library (30 MiB), the compiler at work, the ring of output. Measured for a
module of 1 MiB of code."""
_PIDS = 64


def limits_of(resources: VmResources) -> Limits:
    """The limits of a worker with a VM."""
    return Limits(
        memory_bytes=resources.memory_bytes + WORKER_BYTES + WORKER_FILES_BYTES,
        cpu_milli=resources.cpu_milli,
        pids=_PIDS,
    )


SPARE = limits_of(VmResources())
"""Of a worker that waits for its VM: those of a VM of the usual size, which then need not be set."""
