"""What differs between the processor architectures of hosts. Guests have the host's: all that knows it by name is here,
or is called from here by what it holds.

A further one is an entry here, a fragment of its name in `native/kernel`, and a rule of the helper for its machine.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from plasmavmc.errors import HostError


@dataclass(frozen=True, slots=True)
class Architecture:
    machine: str
    """As uname(2) tells it."""
    package: str
    """In names of the distribution's packages, and in images (Go's word)."""
    kernel_name: str
    """The kernel's own word, for `ARCH=`."""
    kernel_target: str
    """What to make of its source for a VMM to start."""
    kernel_image: str
    """Where that lies, below the directory of objects."""


X86_64 = Architecture(
    machine="x86_64", package="amd64", kernel_name="x86", kernel_target="vmlinux", kernel_image="vmlinux"
)

ARCHITECTURES: Mapping[str, Architecture] = {each.machine: each for each in (X86_64,)}


def host_architecture() -> Architecture:
    """This host's.

    Raises:
        HostError: `unsupported-host`.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise HostError(
            "unsupported-host",
            f"no guests are known for hosts of the architecture {machine}",
            resolution=f"Supported: {', '.join(sorted(ARCHITECTURES))}.",
        )
    return ARCHITECTURES[machine]
