"""Our own client led through a VM's life on a VMM: the same steps for the stand-in and for the real program."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from plasmavmc.errors import ConflictError, HostError, UnavailableError
from plasmavmc.hypervisor.backend import DiskPlan
from plasmavmc.hypervisor.firecracker.client import FirecrackerClient, Phase, firecracker_client
from plasmavmc.hypervisor.firecracker.models import BootSource, MachineConfig, Vsock
from plasmavmc.hypervisor.firecracker.requests import (
    Request,
    drive_request,
    load_request,
    pause_request,
    resume_request,
    start_request,
)
from plasmavmc.hypervisor.firecracker.snapshots import keep, load
from plasmavmc.hypervisor.firecracker.vsock import connect_vsock
from plasmavmc.types import MIB, RateLimit
from tests.contract.tiny_kernel import idle

API, VSOCK = "api.sock", "v.sock"
LIMIT = RateLimit(bytes_per_second=MIB, operations_per_second=100)


class Driven:
    """A VMM with its process, in a directory."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.directory_fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)

    def socket(self, name: str) -> Path:
        """A path that is not too long for a socket."""
        return Path(f"/proc/self/fd/{self.directory_fd}/{name}")

    @asynccontextmanager
    async def client(self, phase: Phase = Phase.UNKNOWN) -> AsyncIterator[FirecrackerClient]:
        async with firecracker_client(self.socket(API), phase=phase, ended=self._has_ended) as client:
            yield client

    def _has_ended(self) -> bool:
        return self.process.returncode is not None

    async def ended(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def driven(program: Sequence[str], directory: Path, environment: dict[str, str]) -> AsyncIterator[Driven]:
    """A fresh VMM; killed at the end, and its sockets removed."""
    with (directory / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *program, "--api-sock", API, "--id", "one", cwd=directory, env=environment, stdout=log, stderr=log
        )
    vmm = Driven(process, directory)
    try:
        yield vmm
    finally:
        os.close(vmm.directory_fd)
        if process.returncode is None:
            process.kill()
        await process.wait()
        for name in (API, VSOCK):
            (directory / name).unlink(missing_ok=True)


def prepare(directory: Path) -> None:
    """The files that `boot` names."""
    (directory / "idle").write_bytes(idle())
    (directory / "disk").write_bytes(bytes(MIB))


async def boot(client: FirecrackerClient) -> None:
    """A VM of a few instructions, with a limited disk."""
    await client.perform(Request("PUT", "/machine-config", MachineConfig(vcpu_count=1, mem_size_mib=32)))
    await client.perform(Request("PUT", "/boot-source", BootSource(kernel_image_path="idle")))
    asked = drive_request(0, DiskPlan("disk", 3, read_only=False), LIMIT)
    disk = msgspec.structs.replace(asked.body, path_on_host="disk")
    await client.perform(Request(asked.method, asked.path, disk))
    await client.perform(Request("PUT", "/vsock", Vsock(guest_cid=3, uds_path=VSOCK)))
    await client.perform(start_request())


async def a_driven_life(program: Sequence[str], directory: Path, environment: dict[str, str]) -> None:
    """Start, pause, keep, go on; then load what was kept, and meet each way in which that fails."""
    prepare(directory)
    async with driven(program, directory, environment) as vmm:
        async with vmm.client() as client:
            assert str(await client.version()) == "1.12.1"
            await client.info()
            assert client.phase == Phase.NOT_STARTED
            await _refused(ConflictError, "firecracker-phase", client.perform(pause_request()))
            missing = drive_request(7, DiskPlan("none", 3, True), RateLimit())
            await _refused(HostError, "firecracker-refused", client.perform(missing))
            await boot(client)
            assert client.phase == Phase.RUNNING
            await _refused(ConflictError, "firecracker-phase", client.perform(start_request()))
        await _refused(
            UnavailableError, "vsock-silent", connect_vsock(vmm.socket(VSOCK), 1024, deadline_s=0.4, attempt_s=0.1)
        )
        async with vmm.client(Phase.RUNNING) as client:
            await _refused(HostError, "firecracker-refused", keep(client, "no/such/place", "memory"))
            assert client.phase == Phase.RUNNING
            await keep(client, "state", "memory")
            await client.info()
            assert client.phase == Phase.PAUSED
            await client.perform(resume_request())
    assert (directory / "memory").stat().st_size == 32 * MIB
    await _loaded(program, directory, environment)


async def _loaded(program: Sequence[str], directory: Path, environment: dict[str, str]) -> None:
    async with driven(program, directory, environment) as vmm, vmm.client() as client:
        await load(client, "state", "memory", ended=vmm.ended)
        assert client.phase == Phase.PAUSED
        await client.perform(resume_request())
        await client.info()
        assert client.phase == Phase.RUNNING
        await _refused(ConflictError, "firecracker-phase", client.perform(load_request("state", "memory")))
    async with driven(program, directory, environment) as vmm, vmm.client() as client:
        (directory / VSOCK).touch()
        await _refused(HostError, "snapshot-unusable", load(client, "state", "memory", ended=vmm.ended))
        assert await vmm.ended(5.0)
        assert vmm.process.returncode == 1


async def _refused(kind: type[Exception], code: str, attempt: object) -> None:
    with pytest.raises(kind) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.code == code  # type: ignore[attr-defined]
