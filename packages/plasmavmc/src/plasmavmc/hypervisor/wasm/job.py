"""What a worker was given for its one VM: descriptors, bounds, and the way to hand compiled code back."""

from __future__ import annotations

import os
import posixpath
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from plasmavmc.hypervisor.wasm.control import CHANNEL, COMPILED, LISTENER, MODULE, Assign, Compiled, send
from plasmavmc.hypervisor.wasm.engine import Sandbox
from plasmavmc.types import FileSpec

ROOT = Path()
"""The directory that the helper put us in: the module's `/`."""
NOT_TEXT = "an argument or a variable is not UTF-8, and a WebAssembly module can have no other"


class Job:
    """See the module's head."""

    def __init__(self, assign: Assign, fds: Mapping[str, int], control: socket.socket) -> None:
        self.assign = assign
        self._fds = fds
        self._control = control

    @property
    def serves(self) -> bool:
        """Its module answers requests; else it is a command."""
        return LISTENER in self._fds

    def prepare(self, sandbox: Sandbox, files: list[FileSpec]) -> None:
        """Load the module and write its files.

        Raises:
            BadModuleError, OSError
        """
        compiled = _content(self._fds[COMPILED]) if COMPILED in self._fds else None
        native = sandbox.load(_content(self._fds[MODULE]), compiled)
        if native is not None:
            self._hand_back(native)
        for file in files:
            write_file(ROOT, file)

    def channel(self) -> socket.socket:
        """Where the guest channel is opened."""
        return socket.socket(fileno=self._fds[CHANNEL])

    def listener(self) -> socket.socket:
        """Where requests come in."""
        return socket.socket(fileno=self._fds[LISTENER])

    def _hand_back(self, native: bytes) -> None:
        """Let the next worker of this tenant have what we compiled; nobody may be there to take it."""
        fd = os.memfd_create("compiled", os.MFD_CLOEXEC)
        with os.fdopen(fd, "wb") as file, suppress(OSError):
            file.write(native)
            file.flush()
            send(self._control, Compiled(), (fd,))


def write_file(root: Path, file: FileSpec) -> None:
    """Put a file of the configuration below `root`, wherever its path points. Raises `OSError`."""
    inside = posixpath.normpath("/" + file.path).lstrip("/")
    path = root / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.content)
    path.chmod(file.mode & 0o777)


def _content(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read()
