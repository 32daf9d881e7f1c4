"""How many files a process may have open: raised at the start, while it is still root's to raise.

Theory. Each connection through the edge takes two descriptors of HAProxy, and each connection to the API one of ours. The
soft limit that a login or a unit gives (1,024) is meant for programs that use select(2), which none here does; the hard one
can be raised by root (CAP_SYS_RESOURCE) up to `fs.nr_open`. What is set before the split holds for all that starts later;
VMs get limits of their own.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

ENOUGH_FILES = 65_536
"""The edge's connections twice, and room."""
_NR_OPEN = Path("/proc/sys/fs/nr_open")


def wanted_file_limit(hard: int, *, nr_open: int, root: bool) -> int:
    """The limit to set, soft and hard alike: the hard one, or as root at least what is enough. Pure."""
    if hard == resource.RLIM_INFINITY or not root:
        return hard
    return max(hard, min(ENOUGH_FILES, nr_open))


def raise_file_limit() -> int:
    """Let this process, and what it starts, open as many files as this host allows; returns how many. Root without the
    capability (in some containers) raises the soft limit alone; the edge tells where that is too little."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (wanted_file_limit(hard, nr_open=_nr_open(), root=os.geteuid() == 0), hard):
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return limit
    return hard


def forbid_core_dumps() -> None:
    """Let no crash write the memory of this process, or of what it starts, to a disk: it holds secrets and keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _nr_open() -> int:
    try:
        return int(_NR_OPEN.read_text())
    except (OSError, ValueError):
        return 0
