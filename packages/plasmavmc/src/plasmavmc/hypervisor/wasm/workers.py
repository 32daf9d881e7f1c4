"""Workers: how one is started, and those that wait for a VM.

A worker gets its uid, cgroup and cage before anybody knows its VM, so the host knows it by a key of its own (`VmHandle`
carries it). One that has said `Ready` needs nothing but a message to take a VM. After the first VM a few are kept waiting;
a node that never runs a module has none.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import msgspec

from plasmavmc.deadlines import within
from plasmavmc.errors import HostError, PlasmaError
from plasmavmc.host.configuration import WASM_WORKER
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Host
from plasmavmc.host.protocol import close_all
from plasmavmc.host.threads import in_thread
from plasmavmc.hypervisor.process import VmmProcess
from plasmavmc.hypervisor.wasm import control
from plasmavmc.hypervisor.wasm.limits import SPARE
from plasmavmc.types import vm_key

READY_DEADLINE_S = 30.0
"""From the spawn to the worker's first word: 0.3 s on an idle host."""
REFILL_AFTER_S = 0.1
"""A worker that comes up keeps a core busy: first the VM that took one shall run."""
_CONTROL = "control"


@dataclass(slots=True)
class Worker:
    """A worker that has no VM yet, or has just got one."""

    key: str
    process: VmmProcess
    confinement: str
    link: socket.socket
    _handing_over: asyncio.Task[None] | None = None

    def send(self, order: control.Assign | control.Start, fds: tuple[int, ...] = ()) -> None:
        """Raises `HostError`: `vmm-spawn`, it is gone."""
        try:
            control.send(self.link, order, fds)
        except OSError as error:
            raise HostError("vmm-spawn", f"the worker ended before its VM was started: {error.strerror}") from error

    def on_code(self, take: Callable[[int], None]) -> None:
        """Call `take` in a thread with a descriptor of the native code, once, if the worker hands one over; it is closed
        after. It may come before the VM is started."""
        loop = asyncio.get_running_loop()

        def hear() -> None:
            data: bytes = b""
            fds: tuple[int, ...] = ()
            with suppress(OSError):
                data, fds = control.receive(self.link)
            if data:
                loop.remove_reader(self.link)
            else:
                self.close()
            if len(fds) == 1 and _is_code(data):
                self._handing_over = loop.create_task(_hand_over(take, fds[0]), name="native code")
            else:
                close_all(fds)

        loop.add_reader(self.link, hear)

    async def handed_over(self) -> None:
        """Return when code that came was taken."""
        if self._handing_over is not None:
            await asyncio.wait([self._handing_over])

    def close(self) -> None:
        """Let go of the control socket: a worker without a VM then ends. Idempotent."""
        if self.link.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.link)
            self.link.close()


def _is_code(data: bytes) -> bool:
    try:
        return isinstance(control.decode_word(data), control.Compiled)
    except msgspec.MsgspecError:
        return False


async def _hand_over(take: Callable[[int], None], fd: int) -> None:
    try:
        await in_thread(take, fd)
    finally:
        os.close(fd)


class Workers:
    """Starts workers, and keeps `spares` of them ready."""

    def __init__(self, host: Host, names: HostNames, spares: int) -> None:
        self._host = host
        self._names = names
        self._count = spares
        self._waiting: deque[Worker] = deque()
        self._refilling: asyncio.Task[None] | None = None
        self._closed = False

    async def take(self) -> Worker:
        """A worker that is ready. Its uid, cgroup and process are the caller's from now on.

        Raises:
            HostError, UnavailableError: none could be started.
        """
        worker: Worker | None = None
        while self._waiting and worker is None:
            worker = await self._living(self._waiting.popleft())
        if worker is None:
            worker = await self._start()
        self.refill()
        return worker

    def refill(self) -> None:
        """Have spares started, beside."""
        if (
            not self._closed
            and self._count > len(self._waiting)
            and (self._refilling is None or self._refilling.done())
        ):
            self._refilling = asyncio.create_task(self._refill(), name="wasm workers")

    async def settled(self) -> None:
        """Return when the spares are ready, or could not be started."""
        if self._refilling is not None:
            await asyncio.wait([self._refilling])

    async def discard(self, worker: Worker) -> None:
        """End a worker, and give back what the host lent to it."""
        worker.close()
        await worker.process.kill()
        await self._host.uid_free(worker.key)

    async def dismiss(self) -> None:
        """End the spares, and start no more."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.wait([self._refilling])
        while self._waiting:
            await self.discard(self._waiting.popleft())

    def close(self) -> None:
        """Let the spares end: they see that we are gone."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
        for worker in self._waiting:
            worker.close()
            worker.process.close()
        self._waiting.clear()

    async def _living(self, worker: Worker) -> Worker | None:
        if worker.process.alive:
            return worker
        await self.discard(worker)
        return None

    async def _refill(self) -> None:
        await asyncio.sleep(REFILL_AFTER_S)
        with suppress(PlasmaError):  # the next VM starts its own, and tells what is wrong
            while len(self._waiting) < self._count:
                self._waiting.append(await self._start())

    async def _start(self) -> Worker:
        key = vm_key(f"wasm {secrets.token_hex(16)}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        async with AsyncExitStack() as undo:
            undo.callback(ours.close)
            with theirs:
                await self._host.uid_take(key)
                undo.push_async_callback(self._host.uid_free, key)
                argv = (WASM_WORKER, "-name", self._names.process(key), "-control", f"@{_CONTROL}@")
                spawned = await self._host.vm_spawn(key, argv, SPARE, {_CONTROL: theirs.fileno()})
            process = VmmProcess.spawned(self._host, key, spawned)
            undo.push_async_callback(process.kill)
            ours.setblocking(False)
            await self._ready(ours, process)
            undo.pop_all()
        return Worker(key, process, spawned.confinement, ours)

    @staticmethod
    async def _ready(connection: socket.socket, process: VmmProcess) -> None:
        try:
            async with within(READY_DEADLINE_S):
                data = await asyncio.get_running_loop().sock_recv(connection, control.PACKET_BYTES)
        except (TimeoutError, OSError):
            data = b""
        if not data:
            await process.ended(1.0)
            raise HostError(
                "vmm-refused",
                "the WebAssembly worker did not come up",
                details=process.complaint(),
                resolution="every user must be able to read the interpreter and its packages; `doctor` tells more",
            )
