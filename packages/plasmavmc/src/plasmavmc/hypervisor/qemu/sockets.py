"""The sockets of a VM: bound by us in its 0700 directory and handed to the VMM listening.

So a client never polls for a VMM that is still starting (its connection queues), and after a restart of ours the same
paths lead to the same VMM.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from plasmavmc.errors import HostError

_LONGEST_PATH = 107
"""Bytes in sockaddr_un.sun_path, less the terminating zero (unix(7))."""


@dataclass(frozen=True, slots=True)
class VmSockets:
    """Where the sockets of a VM lie."""

    directory: Path

    @property
    def channel(self) -> Path:
        return self.directory / "ctl.sock"

    @property
    def console(self) -> Path:
        return self.directory / "console.sock"

    @property
    def qmp(self) -> Path:
        return self.directory / "qmp.sock"

    @property
    def http(self) -> Path:
        """Of a VM that takes requests here, for want of a network."""
        return self.directory / "http.sock"

    def listen(self, stack: ExitStack) -> dict[str, int]:
        """Bind all, replacing stale ones; descriptors by their names on the command line. `stack` closes them.

        Raises:
            HostError: `socket-path`, a socket cannot be made there.
        """
        named = {"channel": self.channel, "console": self.console, "qmp": self.qmp}
        return {name: listening(path, stack) for name, path in named.items()}

    def remove(self) -> None:
        """Take their names away. Idempotent."""
        for path in (self.channel, self.console, self.qmp, self.http):
            path.unlink(missing_ok=True)


def listening(path: Path, stack: ExitStack, *, backlog: int = 4) -> int:
    """A listening socket at `path`, replacing a stale one. Raises `HostError`: `socket-path`."""
    if len(str(path).encode()) > _LONGEST_PATH:
        raise HostError(
            "socket-path",
            f"the socket path {path} is longer than {_LONGEST_PATH} bytes",
            resolution="choose a shorter run directory",
        )
    path.unlink(missing_ok=True)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    try:
        listener.bind(str(path))
        listener.listen(backlog)
    except OSError as error:
        raise HostError("socket-path", f"no socket can be made at {path}", details=error.strerror or "") from error
    return listener.fileno()
