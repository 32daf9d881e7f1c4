"""A microVM by a hand-written QEMU line, to test the guest's init and channel without the rest of the engine."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from plasmavmc.guest.api import GuestConfig, GuestEvent
from plasmavmc.guest.boot import DEFAULT_DISK_BYTES, BootAssets, disk_template, init_sources, load_assets
from plasmavmc.guest.channel import SocketGuestChannel
from plasmavmc.guest.kernel import Kernel
from plasmavmc.guest.opening import open_channel
from plasmavmc.guest.tsc import tsc_khz
from tests.host_cache import cache_directory

Event = TypeVar("Event", bound=GuestEvent)
DEADLINE_S = 90.0
"""Boots are emulated, and others may use the cores."""


def compile_app(into: Path) -> bytes:
    """The static program that is a whole image."""
    target = into / "app"
    subprocess.run(["make", "-s", "-C", init_sources(), f"OUT={into}", target], check=True)
    return target.read_bytes()


def squashfs(files: Mapping[str, tuple[bytes, int]], target: Path) -> None:
    """An image with these files (content and mode); directories end in a slash."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name.rstrip("/"))
            entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    subprocess.run(["tar2sqfs", "-q", "-f", target], input=archive.getvalue(), check=True, capture_output=True)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a VM is made of."""

    directory: Path
    image: Path | None
    layer: Path | None
    memory_mib: int = 128
    assets: BootAssets = field(default_factory=lambda: load_assets(cache_directory()))


def qemu_argv(parts: Parts) -> list[str]:
    directory = parts.directory
    disks = []
    for number, path in enumerate(path for path in (parts.image, parts.layer) if path is not None):
        access = "readonly=on,file.locking=off" if path == parts.image else "readonly=off"
        disks += ["-drive", f"if=none,id=d{number},file={path},format=raw,{access}"]
        disks += ["-device", f"virtio-blk-device,drive=d{number}"]
    kernel_parameters = (
        f"console=ttyS0 quiet reboot=t panic=-1 tsc=reliable tsc_early_khz={tsc_khz()} cryptomgr.notests "
        "8250.nr_uarts=1 audit=0 init_on_alloc=0 no_timer_check"
    )
    return [
        *(
            "qemu-system-x86_64",
            "-M",
            f"microvm,acpi={'off' if Kernel(parts.assets.kernel.parent).own else 'on'}",
            "-accel",
            "tcg,tb-size=32",
            "-cpu",
            "max",
        ),
        *("-m", str(parts.memory_mib), "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(parts.assets.kernel), "-initrd", str(parts.assets.initrd), "-append", kernel_parameters),
        *("-serial", f"file:{directory}/console", *disks),
        *("-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-device,netdev=n0"),
        *("-device", "virtio-serial-device", "-chardev", f"socket,id=c0,path={directory}/ctl,server=on,wait=off"),
        *("-device", "virtserialport,chardev=c0,name=ctl,nr=1"),
    ]


class Vm:
    """A running VM."""

    def __init__(self, parts: Parts, process: asyncio.subprocess.Process) -> None:
        self.parts = parts
        self.process = process
        self.channels: list[SocketGuestChannel] = []

    async def open(self, *, fresh: bool = False) -> SocketGuestChannel:
        channel = await open_channel(self.parts.directory / "ctl", fresh=fresh, deadline_s=DEADLINE_S)
        self.channels.append(channel)
        return channel

    async def start(self, *argv: str, **config: object) -> SocketGuestChannel:
        channel = await self.open(fresh=True)
        settled = {"entropy": os.urandom(64), "unix_time_ns": time.time_ns(), **config}
        await channel.configure(GuestConfig(argv=argv, **settled))  # type: ignore[arg-type]
        return channel

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), DEADLINE_S)

    def console(self) -> str:
        return (self.parts.directory / "console").read_text(errors="replace")

    def cpu_seconds(self) -> float:
        """What QEMU has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def clone_layer(target: Path) -> Path:
    template = await disk_template(cache_directory(), DEFAULT_DISK_BYTES)
    process = await asyncio.create_subprocess_exec("cp", "--sparse=always", str(template), str(target))
    assert await process.wait() == 0
    return target


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[Vm]:
    """Boot; whatever happens, QEMU ends with the block."""
    process = await asyncio.create_subprocess_exec(*qemu_argv(parts), stdin=asyncio.subprocess.DEVNULL)
    vm = Vm(parts, process)
    try:
        yield vm
    except BaseException as error:
        error.add_note(f"console: {vm.console()[-2000:]}")
        raise
    finally:
        for channel in vm.channels:
            await channel.aclose()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def next_of(channel: SocketGuestChannel, kind: type[Event]) -> Event:
    """The next event of this kind; others are passed over."""
    async with asyncio.timeout(DEADLINE_S):
        async for event in channel.events():
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the channel ended before a {kind.__name__}")
