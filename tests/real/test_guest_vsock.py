"""A Linux guest whose channel is a vsock: the modules of its initramfs, its init, and our way in, on QEMU (emulated).

The device is `vsock_device`'s and not Firecracker's; the guest's side of it is what Firecracker's guests have.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.guest.api import ExecExit, GuestConfig, GuestExited, GuestHello, GuestOutput, GuestReady
from plasmavmc.guest.boot import load_assets
from plasmavmc.guest.channel import SocketGuestChannel
from plasmavmc.guest.opening import open_channel_over
from plasmavmc.hypervisor.firecracker.requests import CHANNEL_PORT
from plasmavmc.hypervisor.firecracker.vsock import connect_vsock
from plasmavmc.types import ExecSpec
from tests.bytes import first_difference
from tests.host_cache import cache_directory
from tests.real.guest_vm import DEADLINE_S, Parts, compile_app, next_of, qemu_argv, squashfs
from tests.real.vsock_device import VsockDevice, qemu_options, vsock_device

pytestmark = pytest.mark.real


def vsock_argv(parts: Parts, device: VsockDevice) -> list[str]:
    """The hand-written line, with a vsock in place of the serial port."""
    argv = qemu_argv(parts)
    argv[argv.index("-M") + 1] += ",memory-backend=ram"
    del argv[argv.index("virtio-serial-device") - 1 :]
    return [*argv, *qemu_options(device, parts.memory_mib)]


@asynccontextmanager
async def booted(parts: Parts) -> AsyncIterator[tuple[VsockDevice, asyncio.subprocess.Process]]:
    async with vsock_device(parts.directory) as device:
        process = await asyncio.create_subprocess_exec(*vsock_argv(parts, device), stdin=asyncio.subprocess.DEVNULL)
        try:
            yield device, process
        except BaseException as error:
            error.add_note(f"console: {(parts.directory / 'console').read_text(errors='replace')[-2000:]}")
            raise
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def opened(device: VsockDevice, *, fresh: bool) -> SocketGuestChannel:
    return await open_channel_over(
        lambda: connect_vsock(device.uds, CHANNEL_PORT, deadline_s=DEADLINE_S),
        "the vsock",
        fresh=fresh,
        deadline_s=DEADLINE_S,
    )


async def echoed(channel: SocketGuestChannel, sent: bytes) -> bytes:
    """What `cat` in the guest gives back."""
    session = await channel.exec(ExecSpec(("/app", "cat")))
    written = bytearray()

    async def send() -> None:
        await session.send(sent)
        await session.send_eof()

    async with asyncio.timeout(DEADLINE_S):
        sending = asyncio.create_task(send())
        async for item in session.output():
            if isinstance(item, ExecExit):
                break
            written += item.data
        await sending
    return bytes(written)


async def test_a_guest_with_a_vsock_is_reached_left_and_reached_again(tmp_path: Path) -> None:
    assets = load_assets(cache_directory())
    squashfs({"app": (compile_app(tmp_path), 0o755)}, tmp_path / "image")
    parts = Parts(tmp_path, tmp_path / "image", None, assets=replace(assets, initrd=assets.vsock_initrd))
    async with booted(parts) as (device, process):
        channel = await opened(device, fresh=True)
        assert not (await next_of(channel, GuestHello)).configured
        await channel.configure(
            GuestConfig(argv=("/app", "serve", "7"), entropy=os.urandom(64), unix_time_ns=time.time_ns())
        )
        await next_of(channel, GuestReady)
        assert (await next_of(channel, GuestOutput)).data == b"serving\n"
        sent = os.urandom(1 << 20)
        assert first_difference(await echoed(channel, sent), sent) is None
        await channel.aclose()

        again = await opened(device, fresh=False)
        assert (await next_of(again, GuestHello)).configured
        newer = await opened(device, fresh=False)  # the last to come is the host
        assert (await next_of(newer, GuestHello)).configured
        await newer.stop("SIGTERM", 30)
        assert (await next_of(newer, GuestExited)).exit_code == 7
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
        for each in (again, newer):
            await each.aclose()
