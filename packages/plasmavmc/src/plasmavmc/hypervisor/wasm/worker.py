"""The process of a VM of backend `wasm`: started by the root helper in a cage (`host.helper.worker`), ahead of its VM.

Theory. Importing the library and making its engine takes a worker most of a second on a busy host; so the backend has
one started ahead, which says `Ready` and waits. When a VM is made for it, it is told which module; when it is started, it
opens the guest channel, and from there it is a guest like any other: it hears its configuration, runs, and tells its end.

The module runs in a thread, and the event loop beside it, which the library's calls do not hold up. A module knows no
signals: to stop one is to leave it where it is, and to end the process. A worker whose platform goes away before its VM
was started has nothing to do and ends; one whose VM runs goes on, and is found again by its socket.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import resource
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from plasmavmc.hypervisor.wasm.control import (
    CHANNEL,
    COMPILED,
    MODULE,
    Assign,
    Compiled,
    Ready,
    Start,
    decode_order,
    receive,
    send,
)
from plasmavmc.hypervisor.wasm.engine import INTERRUPTED, BadModuleError, Ended, Run, Sandbox
from plasmavmc.hypervisor.wasm.guest import Guest, Told
from plasmavmc.hypervisor.wasm.limits import WORKER_BYTES
from plasmavmc.types import FileSpec, LogStream

_ROOT = Path()
"""The directory that the helper put us in: the module's `/`."""


class Command:
    """A module as a WASI command: it runs once."""

    def __init__(self, guest: Guest, sandbox: Sandbox, job: Job) -> None:
        self._guest = guest
        self._sandbox = sandbox
        self._job = job
        self._loop = asyncio.get_running_loop()

    def configure(self, told: Told) -> None:
        threading.Thread(target=self._live, args=(told,), name="module", daemon=True).start()

    def stop(self, grace_s: float) -> None:
        """A module hears no signal, so there is nothing to wait for: it ends as a process that SIGTERM ended."""
        self._guest.exited(INTERRUPTED)

    def _live(self, told: Told) -> None:
        try:
            self._job.prepare(self._sandbox, told.files)
            ended = self._sandbox.run(self._run(told))
        except BadModuleError as error:
            self._fail(error.code, str(error))
        except (OSError, MemoryError) as error:
            self._fail("bad-file", f"{type(error).__name__}: {error}")
        else:
            self._conclude(ended)

    def _run(self, told: Told) -> Run:
        return Run(
            argv=told.argv,
            env=told.env,
            directory=_ROOT,
            stdout=lambda data: self._guest.write(LogStream.STDOUT, data),
            stderr=lambda data: self._guest.write(LogStream.STDERR, data),
            memory_bytes=self._job.assign.memory_bytes,
            deadline_s=self._job.assign.deadline_s,
            began=lambda: self._tell(self._guest.ready),
        )

    def _conclude(self, ended: Ended) -> None:
        if ended.trap:
            self._guest.write(LogStream.STDERR, (ended.trap.rstrip() + "\n").encode())
        self._tell(lambda: self._guest.exited(ended.exit_code, oom=ended.oom))

    def _fail(self, code: str, message: str) -> None:
        self._tell(lambda: self._guest.failed(code, message))

    def _tell(self, word: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(word)


class Job:
    """What this worker was given."""

    def __init__(self, assign: Assign, fds: Mapping[str, int], control: socket.socket) -> None:
        self.assign = assign
        self._fds = fds
        self._control = control

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
            write_file(_ROOT, file)

    def channel(self) -> socket.socket:
        return socket.socket(fileno=self._fds[CHANNEL])

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


def bound(memory_bytes: int) -> None:
    """Bound what this process may write to, whether or not a cgroup does: the module's memory, and what we need."""
    most = memory_bytes + WORKER_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


async def be_guest(sandbox: Sandbox, job: Job) -> None:
    """Live the VM's life."""
    guest = Guest(lambda guest: Command(guest, sandbox, job))
    await guest.serve(job.channel())


def wait_for_job(control: socket.socket) -> Job | None:
    """Wait until a VM is made and started; None where nobody will."""
    job: Job | None = None
    while True:
        data, fds = receive(control)
        if not data:
            return None
        match decode_order(data):
            case Assign() as assign:
                job = Job(assign, dict(zip(assign.fds, fds, strict=True)), control)
            case Start():
                return job


def main() -> NoReturn:
    """See the module's head."""
    control = socket.socket(fileno=int(sys.argv[sys.argv.index("-control") + 1]))
    code = 0
    try:
        sandbox = Sandbox()
        send(control, Ready())
        job = wait_for_job(control)
        if job is not None:
            bound(job.assign.memory_bytes)
            asyncio.run(be_guest(sandbox, job))
    except (OSError, msgspec.MsgspecError) as error:
        sys.stderr.write(f"wasm worker: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        code = 1
    os._exit(code)  # the module's thread, where one still runs, ends with us


if __name__ == "__main__":
    main()
