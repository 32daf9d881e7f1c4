"""Kernel and initrd of a VM, as descriptors that its VMM is given."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.hypervisor.backend import VmPlan


def open_boot_files(plan: VmPlan, stack: ExitStack) -> dict[str, int]:
    """`kernel` and `initrd`, open until the stack is unwound.

    Raises:
        HostError: `boot-file`, one cannot be opened.
    """
    return {"kernel": _open(plan.kernel, stack), "initrd": _open(plan.initrd, stack)}


def _open(path: Path, stack: ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            "boot-file",
            f"{path} cannot be opened",
            details=error.strerror or "",
            resolution="run scripts/setup, which prepares the guest kernel and initrd",
        ) from error
    stack.callback(os.close, descriptor)
    return descriptor
