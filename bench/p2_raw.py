"""P2, without the edge: a suspended VM's way back to its first answer, beside its cold start and beside a bare QEMU that
is given the very same files; and what copies of one VM cost in memory.

The bare restore maps the memory's file privately and verifies nothing, so it is a floor and no more: what it reads may
be damaged, and its next suspend would have to write all of its memory.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from bench.floor.hand import until_200
from bench.measure import Result, difference, median, ratio
from plasmavmc.backends import Acceleration
from plasmavmc.guest.api import GuestCard
from plasmavmc.guest.framing import NONCE_BYTES, FrameType, encode, sync_between_frames
from plasmavmc.guest.kernel import Kernel
from plasmavmc.guest.messages import encode_card
from plasmavmc.guest.tsc import tsc_khz
from plasmavmc.host.configuration import QEMU
from plasmavmc.hypervisor.backend import DiskPlan, MemoryPlan, NicPlan
from plasmavmc.hypervisor.qemu.argv import QemuMachine, command_line
from plasmavmc.states import VmState
from plasmavmc.types import ForkIdentity, VmResources, mac_of, vm_key
from tests.contract.host_rig import Namespace
from tests.real.suspend_world import World, app_image, world

ROUNDS = 15
COLD_ROUNDS = 5
COPIES = 8
SETTLE_S = 3.0
GATEWAY, BRIDGE, TAP = "10.64.16.1/20", "rawbr0", "rawtap0"
_CLONE_NEWNET = 0x40000000
_MEMORY_SIDES = ("Rss", "Pss", "Private_Clean", "Private_Dirty")
MIB = 1024


class Inside:
    """A stopwatch in a network namespace: one thread that has entered it (setns(2))."""

    def __init__(self, namespace: Namespace) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=_enter, initargs=(namespace.pid,))

    async def until_200(self, address: str, began: float) -> float:
        return await asyncio.get_running_loop().run_in_executor(self._thread, until_200, address, 8080, "app", began)

    def close(self) -> None:
        self._thread.shutdown()


def _enter(pid: int) -> None:
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


class Bare:
    """A QEMU by hand for a suspended VM, in a namespace of its own with the bridge that the guest knows."""

    def __init__(self, host: World, vm_id: str, directory: Path) -> None:
        self.namespace = Namespace()
        self.inside = Inside(self.namespace)
        self._host, self._vm_id, self._directory = host, vm_id, directory
        self._address = host.parts.records.load()[0].ipv4
        mac = mac_of(host.spec("one").networks[0].id)
        link = json.loads(host.helper.namespace.run("ip", "-json", "link", "show", host.helper.names.bridge))
        for command in (
            ("link", "add", BRIDGE, "address", link[0]["address"], "type", "bridge"),  # as the guest remembers it
            ("addr", "add", GATEWAY, "dev", BRIDGE),
            ("link", "set", BRIDGE, "up"),
            ("tuntap", "add", TAP, "mode", "tap"),
            ("link", "set", TAP, "master", BRIDGE, "up"),
            ("neigh", "add", str(self._address), "lladdr", mac, "dev", BRIDGE, "nud", "permanent"),
        ):
            self.namespace.run("ip", *command)
        self._argv = self._line(mac)

    def _line(self, mac: str) -> list[str]:
        """The platform's own line, with paths where it has descriptors, and the memory's file mapped privately."""
        parts, directory = self._host.parts, self._directory
        machine = QemuMachine(QEMU, "raw", Acceleration.TCG, tsc_khz())
        disks = (DiskPlan("image", -1, read_only=True), DiskPlan("layer", -1, read_only=False))
        nics = (NicPlan("n0", -1, mac),)
        own = Kernel(parts.assets.kernel.parent).own
        argv = command_line(
            machine, "raw", VmResources(), disks, nics, memory=MemoryPlan(-1, own=False), own_kernel=own
        ).argv
        root = next(self._host.images.rglob("rootfs.squashfs"))
        words = " ".join(word.replace(" ", "\0") for word in argv)
        for pattern, text in (
            (r"-add-fd \S+ ", ""),
            (r"/dev/fdset/0", str(root)),
            (r"/dev/fdset/1", str(directory / "layer")),
            (r"/dev/fd/@kernel@", str(parts.assets.kernel)),
            (r"/dev/fd/@initrd@", str(parts.assets.initrd)),
            (r"/dev/fd/@memory@", str(directory / "memory")),
            (r"tap,id=n0,fd=@tap0@", f"tap,id=n0,ifname={TAP},script=no,downscript=no"),
            (r"fd=@(\w+)@", rf"path={directory}/\1.sock"),
        ):
            words = re.sub(pattern, text, words)
        return [word.replace("\0", " ") for word in words.split(" ")]

    async def first_answer(self) -> float:
        """From the fork of QEMU to the first 200; the files are copied beforehand."""
        place = self._host.snapshot(self._vm_id)
        for name in ("memory", "state"):
            await asyncio.to_thread(_copy, place / name, self._directory / name)
        layer = self._host.directory / "disks" / f"{vm_key(self._vm_id)}.disk"
        await asyncio.to_thread(_copy, layer, self._directory / "layer")
        for name in ("channel", "console", "qmp"):
            (self._directory / f"{name}.sock").unlink(missing_ok=True)
        began = time.monotonic()
        await asyncio.to_thread(self._restore)
        try:
            return await self.inside.until_200(str(self._address), began)
        finally:
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._channel.close()

    def _restore(self) -> None:
        self._process = subprocess.Popen([*self.namespace.enter, *self._argv], start_new_session=True)
        monitor = _connected(self._directory / "qmp.sock")
        channel = _connected(self._directory / "channel.sock")
        card = GuestCard(time.time_ns(), os.urandom(64), 1)
        self._channel = channel  # a guest whose host hangs up is not disturbed, but it would ask again each second
        channel.sendall(sync_between_frames(os.urandom(NONCE_BYTES)) + encode(FrameType.THAW, encode_card(card)))
        with monitor, monitor.makefile("r") as answers, (self._directory / "state").open("rb") as state:
            answers.readline()
            ask = _asker(monitor, answers)
            ask("qmp_capabilities")
            ask("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
            ask("getfd", descriptor=state.fileno(), fdname="state")
            ask("migrate-incoming", uri="fd:state")
            while ask("query-status")["status"] == "inmigrate":
                time.sleep(0.001)
            ask("cont")

    def close(self) -> None:
        self.inside.close()
        self.namespace.close()


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
    target.chmod(0o600)


def _connected(path: Path) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            time.sleep(0.001)
        else:
            return connection


def _asker(monitor: socket.socket, answers: object) -> Callable[..., dict[str, object]]:
    def ask(command: str, descriptor: int = -1, **arguments: object) -> dict[str, object]:
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        socket.send_fds(monitor, [line], [descriptor] if descriptor >= 0 else [])
        while True:
            answer = json.loads(answers.readline())  # type: ignore[attr-defined]
            if "return" in answer:
                found: dict[str, object] = answer["return"]
                return found
            assert "event" in answer, answer

    return ask


def memory_of(pid: int) -> dict[str, float]:
    """Of a process, in MiB (proc(5), smaps_rollup)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {
        side: sum(float(kib) for kib in re.findall(rf"^{side}:\s+(\d+) kB", text, re.MULTILINE)) / MIB
        for side in _MEMORY_SIDES
    }


async def _cold(host: World, inside: Inside, number: int) -> float:
    name = f"cold{number}"
    spec = host.spec(name)
    began = time.monotonic()
    host.manager.create(spec)
    host.manager.start(spec.id)
    await host.reaches(spec.id, VmState.RUNNING)
    (endpoint,) = host.manager.get(spec.id).status.endpoints
    took = await inside.until_200(endpoint.removeprefix("tcp:"), began)
    await host.manager.delete(spec.id)
    return took


async def _warm(host: World, inside: Inside, vm_id: str) -> tuple[float, float]:
    """Seconds to suspend, and from the order to resume to the first answer."""
    began = time.monotonic()
    (endpoint,) = host.manager.get(vm_id).status.endpoints
    await host.manager.suspend(vm_id)
    suspended = time.monotonic() - began
    began = time.monotonic()
    await host.manager.resume(vm_id)
    return suspended, await inside.until_200(endpoint.removeprefix("tcp:"), began)


async def _measure() -> list[Result]:
    async with _bench_world() as (host, directory):
        vm_id = await host.started("one", snapshot_safe=True)
        inside = Inside(host.helper.namespace)
        suspends, resumes, bares, colds = [], [], [], []
        await host.manager.suspend(vm_id)
        bare = Bare(host, vm_id, directory)
        try:
            await host.manager.resume(vm_id)
            for number in range(ROUNDS):
                suspended, resumed = await _warm(host, inside, vm_id)
                suspends.append(suspended)
                resumes.append(resumed)
                await host.manager.suspend(vm_id)
                bares.append(await bare.first_answer())
                await host.manager.resume(vm_id)
                if number < COLD_ROUNDS:
                    colds.append(await _cold(host, inside, number))
            size = await _snapshot_size(host, vm_id)
            density = await _density(host, vm_id)
        finally:
            bare.close()
            inside.close()
    against_cold, against_bare, tax = ratio(resumes, colds), ratio(resumes, bares), difference(resumes, bares)
    return [
        Result(
            "P2",
            "resume of a Python web app, order → first 200, without the edge: against its cold start",
            against_cold.text("×", 3),
            "≤ 0.15×",
            against_cold.value <= 0.15,
            (
                f"resume {_ms(resumes)}, cold start {_ms(colds)}, suspend {_ms(suspends)}",
                f"snapshot {size}",
            ),
        ),
        Result(
            "P2",
            "the same against a bare QEMU with the same files, mapped and not verified",
            f"{against_bare.text('×')}, tax {1000 * tax.value:.0f} ms [{1000 * tax.low:.0f}–{1000 * tax.high:.0f}]",
            "≤ 1.15×, tax ≤ 15 ms",
            against_bare.value <= 1.15 and tax.value <= 0.015,
            (f"bare {_ms(bares)}, {ROUNDS} rounds",),
        ),
        density,
    ]


def _ms(samples: list[float]) -> str:
    found = median(samples)
    return f"{1000 * found.value:.0f} ms [{1000 * found.low:.0f}–{1000 * found.high:.0f}]"


async def _snapshot_size(host: World, vm_id: str) -> str:
    await host.manager.suspend(vm_id)
    sizes = {path.name: path.stat().st_blocks / 2 / MIB for path in host.snapshot(vm_id).iterdir()}
    await host.manager.resume(vm_id)
    return ", ".join(f"{name} {size:.1f} MiB" for name, size in sorted(sizes.items()))


async def _density(host: World, vm_id: str) -> Result:
    origin = host.manager.get(vm_id).handle
    assert origin is not None
    began = time.monotonic()
    await host.manager.fork(vm_id, [ForkIdentity(f"vm_copy{number}", f"copy{number}") for number in range(COPIES)])
    returned = time.monotonic() - began
    for number in range(COPIES):
        await host.reaches(f"vm_copy{number}", VmState.RUNNING)
        await host.answers(f"vm_copy{number}")
    answered = time.monotonic() - began
    await asyncio.sleep(SETTLE_S)
    handles = [vm.handle for vm in host.manager.list_vms() if vm.spec.id != vm_id]
    used = [memory_of(handle.pid) for handle in handles if handle is not None]
    own = statistics.median(each["Private_Clean"] + each["Private_Dirty"] for each in used)
    share = statistics.median(each["Pss"] for each in used)
    alone = memory_of(origin.pid)["Pss"]
    return Result(
        "P2",
        f"memory of each of {COPIES} copies of one VM, against the origin's",
        f"USS {own:.0f} MiB, PSS {share:.0f} MiB, origin {alone:.0f} MiB",
        "told",
        True,
        (f"the origin goes on after {1000 * returned:.0f} ms; all {COPIES} answered after {answered:.2f} s",),
    )


@asynccontextmanager
async def _bench_world() -> AsyncIterator[tuple[World, Path]]:
    directory = Path(tempfile.mkdtemp(prefix="swg-p2-"))
    try:
        async with world(directory, app_image(directory, hook=""), directory / "images") as host:
            yield host, directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run() -> list[Result]:
    """Measure; about three minutes."""
    return asyncio.run(_measure())
