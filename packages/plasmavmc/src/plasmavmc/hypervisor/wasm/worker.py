"""The process of a VM of backend `wasm`: started by the root helper in a cage (`host.helper.worker`), ahead of its VM.

Theory. Importing the library and making its engine takes a worker most of a second on a busy host; so the backend has
one started ahead, which says `Ready` and waits. When a VM is made for it, it is told which module, and loads it; when it is
started, it opens the guest channel, and from there it is a guest like any other: it hears its configuration, runs, and tells
its end. Everything that can be there before is: the event loop, the thread, and one run of a module in it.

The module runs in that thread, and the event loop beside it, which the library's calls do not hold up. A module knows no
signals: to stop one is to leave it where it is, and to end the process. A worker whose platform goes away before its VM
was started has nothing to do and ends; one whose VM runs goes on, and is found again by its socket.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import msgspec

from plasmavmc.hypervisor.wasm.control import Assign, Ready, Start, decode_order, receive, send
from plasmavmc.hypervisor.wasm.engine import INTERRUPTED, BadModuleError, Ended, Run, Sandbox
from plasmavmc.hypervisor.wasm.guest import Guest, Told, Workload
from plasmavmc.hypervisor.wasm.job import NOT_TEXT, ROOT, Job
from plasmavmc.hypervisor.wasm.limits import WORKER_BYTES
from plasmavmc.hypervisor.wasm.service import Service
from plasmavmc.types import LogStream


class Command:
    """A module as a WASI command: it runs once."""

    def __init__(self, guest: Guest, job: Job) -> None:
        self._guest = guest
        self._job = job
        self._loop = asyncio.get_running_loop()

    def configure(self, told: Told) -> None:
        self._job.thread.submit(self._live, told)

    def stop(self, grace_s: float) -> None:
        """A module hears no signal, so there is nothing to wait for: it ends as a process that SIGTERM ended."""
        self._guest.exited(INTERRUPTED)

    def _live(self, told: Told) -> None:
        try:
            self._job.prepare(told.files)
            ended = self._job.sandbox.run(self._run(told))
        except BadModuleError as error:
            self._fail(error.code, str(error))
        except (OSError, MemoryError) as error:
            self._fail("bad-file", f"{type(error).__name__}: {error}")
        except UnicodeEncodeError:
            self._fail("bad-config", NOT_TEXT)
        else:
            self._conclude(ended)

    def _run(self, told: Told) -> Run:
        return Run(
            argv=told.argv,
            env=told.env,
            directory=ROOT,
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


def bound(memory_bytes: int) -> None:
    """Bound what this process may write to, whether or not a cgroup does: the module's memory, and what we need."""
    most = memory_bytes + WORKER_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


async def be_worker(control: socket.socket, sandbox: Sandbox, thread: ThreadPoolExecutor) -> None:
    """Wait for a VM and live its life; returns when that is over, or when nobody will give one.

    Raises:
        OSError, msgspec.MsgspecError: the platform said something else.
    """
    send(control, Ready())
    job: Job | None = None
    while True:
        await _readable(control)
        data, fds = receive(control)
        if not data:
            return
        match decode_order(data):
            case Assign() as assign:
                bound(assign.memory_bytes)
                job = Job(assign, dict(zip(assign.fds, fds, strict=True)), control, sandbox, thread)
            case Start():
                break
    if job is not None:
        await be_guest(job)


async def _readable(control: socket.socket) -> None:
    loop, said = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(control, said.set)
    await said.wait()
    loop.remove_reader(control)


async def be_guest(job: Job) -> None:
    """Live the VM's life."""

    def workload(guest: Guest) -> Workload:
        return Service(guest, job) if job.serves else Command(guest, job)

    await Guest(workload).serve(job.channel())


def main() -> NoReturn:
    """See the module's head."""
    control = socket.socket(fileno=int(sys.argv[sys.argv.index("-control") + 1]))
    code = 0
    try:
        sandbox, thread = Sandbox(), ThreadPoolExecutor(1, "module")
        thread.submit(sandbox.warm_up, ROOT).result()
        asyncio.run(be_worker(control, sandbox, thread))
    except (OSError, msgspec.MsgspecError) as error:
        sys.stderr.write(f"wasm worker: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        code = 1
    os._exit(code)  # the module's thread, where one still runs, ends with us


if __name__ == "__main__":
    main()
