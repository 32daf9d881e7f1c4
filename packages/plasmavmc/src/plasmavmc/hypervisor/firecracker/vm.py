"""One VM's Firecracker, as the backend holds it: its process, its sockets in the jail, and the phase that it is in.

Theory. What may be asked of Firecracker depends on its phase, which only the client of its API learns; so each client begins
with the phase that the last one left. The guest is reached through a socket of the VMM's, which is there as long as it is:
every wait for either ends with the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from plasmavmc.errors import GuestError, HostError, PlasmaError
from plasmavmc.guest.channel import Connect
from plasmavmc.hypervisor.backend import MemoryPlan
from plasmavmc.hypervisor.firecracker.client import FirecrackerClient, Phase, firecracker_client
from plasmavmc.hypervisor.firecracker.requests import API_SOCKET, CHANNEL_PORT, VSOCK_SOCKET, resume_request
from plasmavmc.hypervisor.firecracker.sockets import JailSockets
from plasmavmc.hypervisor.firecracker.vsock import connect_vsock
from plasmavmc.hypervisor.process import VmmProcess

START_DEADLINE_S = 20.0
"""For the API of a VMM that was just spawned. It takes 7 ms on an idle host."""


@dataclass(slots=True)
class JailedVm:
    """See the module's head."""

    process: VmmProcess
    sockets: JailSockets
    phase: Phase
    memory: MemoryPlan | None = None
    """It waits for a state."""
    asleep: bool = False
    """It has its state, and was not let run yet."""

    def ended(self) -> bool:
        return not self.process.alive

    def close(self) -> None:
        """Let go of it; it runs on."""
        self.process.close()
        self.sockets.close()

    @asynccontextmanager
    async def client(self, deadline_s: float = START_DEADLINE_S) -> AsyncIterator[FirecrackerClient]:
        """A client that knows the VM's phase, and leaves what it learnt of it.

        Raises:
            UnavailableError: the VMM does not answer, or has ended.
        """
        async with (
            self.sockets.reach(API_SOCKET, deadline_s=deadline_s, ended=self.ended) as path,
            firecracker_client(path, phase=self.phase, deadline_s=deadline_s, ended=self.ended) as client,
        ):
            try:
                yield client
            finally:
                self.phase = client.phase

    async def go_on(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Let its guest run where it is paused; raises as `client`."""
        async with self.client(deadline_s) as client:
            await client.info()
            if client.phase is Phase.PAUSED:
                await client.perform(resume_request())

    def connect(self, deadline_s: float) -> Connect:
        """How its guest is reached."""

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            async with self.sockets.reach(VSOCK_SOCKET, deadline_s=deadline_s, ended=self.ended) as path:
                return await connect_vsock(path, CHANNEL_PORT, deadline_s=deadline_s, ended=self.ended)

        return connect

    async def start_error(self) -> HostError:
        """Why a VMM that has ended did not come up."""
        ended = await self.process.wait()
        words = f"Firecracker ended at its start with code {ended.code}"
        return HostError("vmm-refused", words, details=ended.complaint)

    async def boot_error(self, cause: PlasmaError) -> GuestError:
        """What is known of a guest that did not come up. Its console is what the VMM prints."""
        if await self.process.ended(1.0):
            ended = await self.process.wait()
            return GuestError("boot-failed", "the VMM ended while the guest was starting", details=ended.complaint)
        details = "\n".join((cause.brief, cause.details, self.process.complaint()))
        return GuestError("boot-timeout", "the guest did not start", details=details, resolution=cause.resolution)
