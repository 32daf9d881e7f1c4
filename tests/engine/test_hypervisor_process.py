"""A VMM seen from outside: identity, end, last words. Real processes, no VM."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from plasmavmc.backends import Acceleration
from plasmavmc.errors import HostError
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Host, ProcessId, Spawned, UnendedError
from plasmavmc.host.processes import held
from plasmavmc.hypervisor.backend import DiskPlan, HypervisorBackend, VmmLeftError, VmPlan
from plasmavmc.hypervisor.console import RING_BYTES, Ring, Tail, connect_console
from plasmavmc.hypervisor.firecracker.backend import FirecrackerBackend
from plasmavmc.hypervisor.process import VmmProcess, usage_of
from plasmavmc.hypervisor.qemu.argv import QemuMachine
from plasmavmc.hypervisor.qemu.backend import KvmBackend
from plasmavmc.hypervisor.wasm.backend import WasmBackend
from plasmavmc.hypervisor.wasm.cache import CodeCache
from plasmavmc.types import Scope, VmHandle, VmSpec, VmUsage


class ReapingHost:
    """Knows exit codes of the processes that a test started, as the root helper does."""

    def __init__(self) -> None:
        self.children: dict[int, subprocess.Popen[bytes]] = {}

    def spawn(self, script: str) -> Spawned:
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.children[child.pid] = child
        assert child.stdout is not None
        with child.stdout:
            stdout = os.dup(child.stdout.fileno())
        return Spawned(child.pid, start_time(child.pid), os.pidfd_open(child.pid), "none", stdout)

    async def vm_signal(self, _key: str, process: ProcessId, signal: int) -> bool:
        os.kill(process.pid, signal)
        return True

    async def vm_reap(self, _key: str, process: ProcessId) -> int | None:
        return self.children[process.pid].wait()


def watch(host: ReapingHost, script: str) -> VmmProcess:
    return VmmProcess.spawned(as_port(host), "k1", host.spawn(script))


def as_port(host: ReapingHost) -> Host:
    return host  # type: ignore[return-value]  # the part of the port that a watched process uses


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def zombie() -> Iterator[ProcessId]:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield ProcessId(child.pid, start_time(child.pid))
    child.wait()


async def test_usage_is_that_of_the_process_and_nothing_after_its_end() -> None:
    process = watch(ReapingHost(), "import time; time.sleep(60)")
    async with asyncio.timeout(10):
        while usage_of(process.id).memory_rss_bytes < 100_000:  # noqa: ASYNC110 - amid its exec it has no memory at all
            await asyncio.sleep(0.01)
    await process.kill()
    assert usage_of(process.id) == VmUsage()


async def test_the_end_brings_the_exit_code_and_the_last_words() -> None:
    process = watch(ReapingHost(), "print('cannot do it'); raise SystemExit(3)")
    ended = await process.wait()
    assert (ended.code, ended.complaint) == (3, "cannot do it")
    assert not process.alive


async def test_several_may_wait_and_one_that_gives_up_disturbs_nobody() -> None:
    process = watch(ReapingHost(), "import time; time.sleep(60)")
    first, second = asyncio.create_task(process.wait()), asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    first.cancel()
    await process.kill()
    assert (await second).code == -9
    assert (await process.wait()).code == -9


async def test_a_helper_that_is_busy_does_not_hide_the_end() -> None:
    class BusyHost(ReapingHost):
        free = asyncio.Event()

        async def vm_reap(self, key: str, process: ProcessId) -> int | None:
            await self.free.wait()
            return await super().vm_reap(key, process)

    host = BusyHost()
    async with asyncio.timeout(3.0):
        ended = await watch(host, "raise SystemExit(3)").wait()
    assert ended.code is None
    host.free.set()


async def test_a_watched_process_leaves_no_descriptor_behind() -> None:
    before = open_descriptors()
    await watch(ReapingHost(), "").wait()
    assert open_descriptors() == before


async def test_a_zombie_is_not_adopted() -> None:
    with zombie() as process:
        assert VmmProcess.adopted(as_port(ReapingHost()), "k1", process) is None


async def test_a_later_process_of_the_same_number_is_not_adopted() -> None:
    host = ReapingHost()
    process = watch(host, "import time; time.sleep(60)")
    stranger = ProcessId(process.id.pid, process.id.start_time - 1)
    assert VmmProcess.adopted(as_port(host), "k1", stranger) is None
    await process.kill()


@contextmanager
def thread() -> Iterator[ProcessId]:
    """What has the number of a thread that leads no others."""
    over = threading.Event()
    running = threading.Thread(target=over.wait)
    running.start()
    assert running.native_id is not None
    yield ProcessId(running.native_id, start_time(running.native_id))
    over.set()
    running.join()


@pytest.mark.parametrize("earlier", [0, 1])
async def test_a_thread_that_has_the_number_of_an_earlier_process_is_not_taken_for_it(earlier: int) -> None:
    """As after a reboot of the host; also where it began at the very same tick."""
    with thread() as found:
        process = ProcessId(found.pid, found.start_time - earlier)
        assert VmmProcess.adopted(as_port(ReapingHost()), "k1", process) is None
        with held(process) as pidfd:
            assert pidfd is None


async def test_an_adopted_process_is_seen_to_end() -> None:
    host = ReapingHost()
    first = watch(host, "import time; time.sleep(60)")
    first.close()
    second = VmmProcess.adopted(as_port(host), "k1", first.id)
    assert second is not None
    await second.kill()
    assert (await second.wait()).code == -9


def test_a_ring_keeps_the_last_lines_and_makes_them_fit_for_a_terminal() -> None:
    ring = Ring()
    ring.write(b"one\r\n\r\n\x1b[31mred\x07\xff\n  \nlast")
    assert ring.lines() == ("one", "\ufffd[31mred\ufffd\ufffd", "last")
    assert ring.lines(1) == ("last",)


def test_what_every_kernel_says_of_a_machine_without_pci_is_no_last_word() -> None:
    ring = Ring()
    ring.write(b"[    0.338731] PCI: Fatal: No config space access function found\r\nKernel panic\r\n")
    assert ring.lines() == ("Kernel panic",)


def test_a_ring_does_not_grow() -> None:
    ring = Ring()
    for _ in range(100):
        ring.write(b"x" * 10_000)
    assert len(ring.lines()[0]) == RING_BYTES


async def test_a_flood_on_a_pipe_is_read_to_its_end_and_the_last_part_kept() -> None:
    reading, writing = os.pipe()
    tail = Tail(reading)

    def flood() -> None:
        with os.fdopen(writing, "wb") as pipe:
            for number in range(20_000):
                pipe.write(b"line %d\n" % number)

    await asyncio.to_thread(flood)
    await tail.ended(5.0)
    assert tail.ring.lines(2) == ("line 19998", "line 19999")


async def test_a_console_is_connected_before_anybody_accepts(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console.sock"))
        listener.listen(1)
        tail = connect_console(tmp_path / "console.sock")
        guest, _ = listener.accept()
        with guest:
            guest.sendall(b"Kernel panic\n")
        await tail.ended(5.0)
    assert tail.ring.lines() == ("Kernel panic",)


class DeafHost(ReapingHost):
    """Its signals reach nobody: the process waits for a disk."""

    async def vm_signal(self, _key: str, process: ProcessId, signal: int) -> bool:
        return True


class ClingingHost(ReapingHost):
    """Its VMMs are given up as they start, and do not end."""

    def __init__(self) -> None:
        super().__init__()
        self.uids: set[str] = set()
        self.jails: set[str] = set()

    async def uid_take(self, key: str, *, seat: bool = False) -> int:
        self.uids.add(key)
        return 1

    async def uid_free(self, key: str) -> None:
        self.uids.discard(key)

    async def jail_prepare(self, key: str, _files: object) -> int:
        self.jails.add(key)
        return os.open("/", os.O_PATH)

    async def jail_remove(self, key: str) -> None:
        self.jails.discard(key)

    async def vm_spawn(self, *_: object) -> Spawned:
        raise UnendedError(ProcessId(7, 77))

    jail_spawn = vm_spawn


@pytest.mark.parametrize("backend", ["kvm", "firecracker"])
async def test_a_vmm_that_outlives_its_start_is_named_and_keeps_what_the_host_lent_it(
    backend: str, tmp_path: Path
) -> None:
    host = ClingingHost()
    with ExitStack() as files:
        paths = [tmp_path / name for name in ("image", "layer", "kernel", "initrd")]
        image, layer, *_ = [open_file(path, files) for path in paths]
        disks = (DiskPlan("image", image, True), DiskPlan("layer", layer, False))
        plan = VmPlan("k1", tmp_path / "run", paths[2], paths[3], disks, ())
        plan.runtime_dir.mkdir()
        backends: dict[str, HypervisorBackend] = {
            "kvm": KvmBackend(as_port(host), QemuMachine("/qemu", "k1", Acceleration.TCG, 0)),
            "firecracker": FirecrackerBackend(as_port(host), host),  # type: ignore[arg-type]  # the part that is used
        }
        before = open_descriptors()
        with pytest.raises(VmmLeftError, match="still there") as caught:
            await backends[backend].create_vm(VmSpec("vm_one", Scope("org", "project"), "one", "image"), plan)
        assert open_descriptors() == before
    assert caught.value.code == "vmm-unkillable"
    assert caught.value.handle == VmHandle("vm_one", backend, str(plan.runtime_dir), 7, 77)
    assert host.uids == {"k1"}
    assert host.jails == ({"k1"} if backend == "firecracker" else set())


def open_file(path: Path, files: ExitStack) -> int:
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDWR)
    files.callback(os.close, fd)
    return fd


@pytest.mark.parametrize("backend", ["kvm", "firecracker", "wasm"])
async def test_a_vmm_of_an_earlier_life_that_does_not_end_can_be_tried_again_and_again(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("plasmavmc.hypervisor.process.KILL_DEADLINE_S", 0.01)
    monkeypatch.setattr("plasmavmc.hypervisor.qemu.vm.QUIT_DEADLINE_S", 0.01)
    host = DeafHost()
    spawned = host.spawn("import time; time.sleep(60)")
    os.close(spawned.pidfd)
    os.close(spawned.stdout)
    handle = VmHandle("vm_one", backend, str(tmp_path), spawned.pid, spawned.start_time, {})
    backends: dict[str, HypervisorBackend] = {
        "kvm": KvmBackend(as_port(host), QemuMachine("/qemu", "k1", Acceleration.TCG, 0)),
        "firecracker": FirecrackerBackend(as_port(host), host),  # type: ignore[arg-type]  # no jail is asked for
        "wasm": WasmBackend(as_port(host), HostNames.of("ins_a"), CodeCache(tmp_path / "code")),
    }
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(HostError, match="still there"):
            await backends[backend].stop_vm(handle)
    assert open_descriptors() == before
    host.children[spawned.pid].kill()
    host.children[spawned.pid].wait()
