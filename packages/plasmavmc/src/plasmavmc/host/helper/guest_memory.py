"""The memory of a guest, found among the descriptors of its VMM.

Theory. A guest whose memory can be shared has it in a memfd, which only its VMM holds: the unprivileged side has no
descriptor of it, or has lost it by a restart. Root finds it by its name in /proc/<pid>/fd and opens it anew, for
reading.

Traps: the VMM may be its guest's by now, and descriptors of its making may have any name; a device or a pipe must not
even be opened. So each candidate is first opened with O_PATH, which has no effect on what it names, and only a file of
the kernel's own memory file system, by its device number, is opened further: through that very O_PATH descriptor, so
that nothing can be put in its place. At worst a hostile VMM offers another memory of its own, as it could write into
the right one. Source: proc(5), memfd_create(2), open(2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.host.names import MEMORY_NAMES
from plasmavmc.host.operations import ProcessId
from plasmavmc.host.processes import PROC

_LINKS = frozenset(f"/memfd:{name} (deleted)" for name in MEMORY_NAMES)


def open_guest_memory(process: ProcessId) -> int:
    """A read-only descriptor of the guest memory of a VMM that the caller knows to be this very process.

    Raises:
        HostError: `no-memory`, there is none, or more than one.
    """
    found: dict[int, int] = {}
    try:
        for path in _candidates(PROC / str(process.pid) / "fd"):
            with suppress(OSError):
                _note(path, found)
        if len(found) != 1:
            raise no_memory(process)
        (only,) = found.values()
        return os.open(f"/proc/self/fd/{only}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for descriptor in found.values():
            os.close(descriptor)


def no_memory(process: ProcessId) -> HostError:
    """This VMM has no guest memory that can be read."""
    return HostError(
        "no-memory",
        f"the VMM {process.pid} has no memory of its guest that can be shared",
        resolution="A copy of another VM has it once it was suspended and resumed.",
    )


def _candidates(directory: Path) -> Iterator[Path]:
    with suppress(OSError):
        for entry in directory.iterdir():
            with suppress(OSError):
                if str(entry.readlink()) in _LINKS:
                    yield entry


def _note(path: Path, found: dict[int, int]) -> None:
    """Keep a descriptor of what a candidate names, by its inode, if it is memory."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_dev == _memory_device() and status.st_ino not in found:
        found[status.st_ino] = descriptor
    else:
        os.close(descriptor)


def _memory_device() -> int:
    """The file system that all memfds are on."""
    descriptor = os.memfd_create("swg-which", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
