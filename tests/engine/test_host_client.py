"""The client of the root helper, where what was asked for comes for nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from plasmavmc.host import protocol
from plasmavmc.host.client import HelperHost
from plasmavmc.host.operations import Limits, ProcessId, UnendedError
from plasmavmc.host.processes import read_process

LIMITS = Limits(1 << 20, 1000)


class DeafHelper(Thread):
    """A helper whose VMM is this process, to which no signal comes: it waits for a disk."""

    def __init__(self, connection: socket.socket, vmm: ProcessId, host: HelperHost) -> None:
        """`host` is at the other end of its connection."""
        super().__init__(daemon=True)
        self.host = host
        self._connection = connection
        self._vmm = vmm
        self.asked: list[protocol.Request] = []

    def run(self) -> None:
        with self._connection as connection:
            while data := protocol.receive_packet(connection)[0]:
                request = protocol.decode_request(data[1:])
                self.asked.append(request)
                fds = self._fds() if isinstance(request, protocol.VmSpawn) else ()
                reply = protocol.Reply(value=msgspec.Raw(protocol.encode(self._value(request))))
                [packet] = protocol.packets_of(protocol.encode(reply))
                with suppress(BrokenPipeError):
                    socket.send_fds(connection, [packet], fds)
                protocol.close_all(fds)

    def _fds(self) -> tuple[int, int]:
        output, end = os.pipe()
        os.close(end)
        return os.pidfd_open(self._vmm.pid), output

    def _value(self, request: protocol.Request) -> object:
        if isinstance(request, protocol.VmSpawn):
            return protocol.SpawnedProcess(self._vmm.pid, self._vmm.start_time, "rlimits")
        return None if isinstance(request, protocol.VmReap) else True


@pytest.fixture
def vmm() -> Iterator[ProcessId]:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            found = read_process(child.pid)
            assert found is not None
            yield found.id
        finally:
            child.kill()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def helper(vmm: ProcessId) -> AsyncIterator[DeafHelper]:
    before = open_descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    helper = DeafHelper(theirs, vmm, HelperHost(ours.detach()))
    helper.start()
    yield helper
    helper.host.close()
    helper.join(5)
    assert open_descriptors() == before


async def given_up(host: HelperHost) -> None:
    """A spawn whose caller is cancelled while it is under way."""
    spawning = asyncio.create_task(host.vm_spawn("k1", ("/vmm",), LIMITS, {}))
    await asyncio.sleep(0)
    spawning.cancel()
    async with asyncio.timeout(5):
        await spawning


async def test_a_vmm_that_nobody_waits_for_and_that_does_not_end_is_named(
    helper: DeafHelper, vmm: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plasmavmc.host.client.KILL_DEADLINE_S", 0.05)
    with pytest.raises(UnendedError, match="still there") as caught:
        await given_up(helper.host)
    assert (caught.value.code, caught.value.process) == ("vmm-unkillable", vmm)
    assert await helper.host.vm_signal("k1", vmm, signal.SIGKILL), "it goes on with what it is asked next"


async def test_a_vmm_that_nobody_waits_for_is_reaped_when_it_ends(helper: DeafHelper, vmm: ProcessId) -> None:
    os.kill(vmm.pid, signal.SIGKILL)
    with pytest.raises(asyncio.CancelledError):
        await given_up(helper.host)
    assert helper.asked[-1] == protocol.VmReap("k1", vmm)
