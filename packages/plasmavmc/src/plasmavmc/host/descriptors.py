"""How many descriptors this process may have: raised at the start, for connections and VMs take some each.

The soft limit that a login or a unit gives (1,024) is meant for programs that use select(2), which none here does.
"""

from __future__ import annotations

import resource
from contextlib import suppress

_PLENTY = 1 << 20
"""Where there is no limit."""


def raise_descriptor_limit() -> None:
    """Let this process, and what it starts, have as many descriptors as the hard limit says."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the soft one stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _PLENTY if soft == resource.RLIM_INFINITY else soft
