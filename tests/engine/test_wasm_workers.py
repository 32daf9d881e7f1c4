"""What a worker hands over, on the engine's side."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import cast

from plasmavmc.hypervisor.process import VmmProcess
from plasmavmc.hypervisor.wasm import control
from plasmavmc.hypervisor.wasm.cache import CodeCache
from plasmavmc.hypervisor.wasm.workers import Worker
from plasmavmc.types import MIB, Scope


def worker(link: socket.socket) -> Worker:
    link.setblocking(False)
    return Worker("key", cast(VmmProcess, None), "", link)


def memory_file(content: bytes) -> int:
    fd = os.memfd_create("code")
    os.write(fd, content)
    return fd


async def test_code_is_kept_while_others_are_served() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served, taken = threading.Event(), asyncio.get_running_loop().create_future()

    def slowly(fd: int) -> None:
        loop.call_soon_threadsafe(taken.set_result, (served.wait(5.0), os.pread(fd, 10, 0)))

    loop = asyncio.get_running_loop()
    with ours, theirs:
        waiting = worker(ours)
        waiting.on_code(slowly)
        fd = memory_file(b"code")
        control.send(theirs, control.Compiled(), (fd,))
        os.close(fd)
        loop.call_later(0.05, served.set)
        assert await taken == (True, b"code"), "the loop went on meanwhile"
        await waiting.handed_over()
        waiting.close()


def test_all_of_the_code_is_kept(tmp_path: Path) -> None:
    cache, scope, code = CodeCache(tmp_path), Scope("acme", "web"), os.urandom(2 * MIB + 1)
    fd = memory_file(code)
    cache.store(scope, "sha256:1", fd)
    os.close(fd)
    kept = cache.open(scope, "sha256:1")
    assert kept is not None
    with os.fdopen(kept, "rb") as file:
        assert file.read() == code
    assert cache.open(Scope("other", "shop"), "sha256:1") is None
