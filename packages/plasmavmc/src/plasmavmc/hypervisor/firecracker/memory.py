"""A guest's state and memory as files of its jail, which Firecracker writes and reads by path.

Theory. They lie in the directory for sockets, the one place where both the VMM and we may make files, and only for as long
as they are on their way: what the VMM wrote loses its name when we have opened it, and what it reads when it has loaded it.
Its memory it maps privately and never lets go, so it needs the file and not the name.

A VMM that its guest has taken over may have put anything there: only a regular file, opened without following links, of a
size that can be, is taken.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from plasmavmc.errors import HostError, disk_full, is_disk_full
from plasmavmc.storage.sparse import sparse_copy

STATE, MEMORY = "state", "memory"
LARGEST_STATE = 64 << 20


def take(directory: int, name: str, *, least: int, most: int) -> int:
    """A descriptor, for reading, of what the VMM wrote; its name is gone.

    Raises:
        HostError: `state-not-saved`, it is no file, or of another size.
    """
    try:
        taken = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise _not_saved(f"{name}: {error.strerror}") from error
    try:
        status = os.fstat(taken)
        if not stat.S_ISREG(status.st_mode) or not least <= status.st_size <= most:
            raise _not_saved(f"{name} has {status.st_size} bytes")
        os.unlink(name, dir_fd=directory)
    except BaseException:
        os.close(taken)
        raise
    return taken


def give(directory: int, name: str, source: int, size: int) -> None:
    """Make a file with the content of `source`, its holes left out, for the VMM to read. Blocking.

    Raises:
        CapacityError: `disk-full`.
        HostError: `state-refused`, the file system refused.
    """
    try:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            sparse_copy(source, made)
            os.ftruncate(made, size)
            os.fchmod(made, 0o444)  # none but we and the VMM get to it
        finally:
            os.close(made)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full("no space left for a guest's memory", resolution="Free space.") from error
        raise HostError("state-refused", f"the guest's {name} cannot be given: {error.strerror}") from error


def forget(directory: int) -> None:
    """Take the names away."""
    for name in (STATE, MEMORY):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _not_saved(details: str) -> HostError:
    return HostError("state-not-saved", "Firecracker left no state that can be used", details=details)
