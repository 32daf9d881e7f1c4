"""What a worker was given for its one VM: descriptors, bounds, and the way to hand compiled code back.

The module is loaded as soon as it is given, beside what the platform still does for the VM. Whether that went well is told
when the VM is prepared.
"""

from __future__ import annotations

import os
import posixpath
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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

    def __init__(
        self,
        assign: Assign,
        fds: Mapping[str, int],
        control: socket.socket,
        sandbox: Sandbox,
        thread: ThreadPoolExecutor,
    ) -> None:
        self.assign = assign
        self.sandbox = sandbox
        self.thread = thread
        """Of which there is one: what is submitted comes after the module was loaded."""
        self._fds = fds
        self._control = control
        self._loading = thread.submit(self._load)

    @property
    def serves(self) -> bool:
        """Its module answers requests; else it is a command."""
        return LISTENER in self._fds

    def prepare(self, files: list[FileSpec]) -> None:
        """Return when the module is loaded and its files are written.

        Raises:
            BadModuleError, OSError, MemoryError
        """
        self._loading.result()
        for file in files:
            write_file(ROOT, file)

    def channel(self) -> socket.socket:
        """Where the guest channel is opened."""
        return socket.socket(fileno=self._fds[CHANNEL])

    def listener(self) -> socket.socket:
        """Where requests come in."""
        return socket.socket(fileno=self._fds[LISTENER])

    def _load(self) -> None:
        compiled = _content(self._fds[COMPILED]) if COMPILED in self._fds else None
        native = self.sandbox.load(_content(self._fds[MODULE]), compiled)
        if native is not None:
            self._hand_back(native)

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
