"""Fake tier: the hypervisor contract on the Firecracker backend over the stand-in, whose guest is the real init's loop as a
plain process. Nothing here shows that a Linux guest boots on Firecracker."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import GuestError, HostError, UnavailableError
from plasmavmc.guest.api import ExecExit, ExecSession, GuestCard, GuestChannel, GuestConfig, GuestEvent
from plasmavmc.guest.channel import Connect
from plasmavmc.guest.opening import open_channel_over
from plasmavmc.host.operations import Host, Limits, ProcessId, Spawned, TapRequest
from plasmavmc.host.processes import argv_of, is_alive, kill, processes
from plasmavmc.hypervisor.backend import DiskPlan, MemoryPlan, NicPlan, VmPlan
from plasmavmc.hypervisor.firecracker import backend as backend_module
from plasmavmc.hypervisor.firecracker.backend import FirecrackerBackend
from plasmavmc.hypervisor.firecracker.client import Phase
from plasmavmc.hypervisor.firecracker.memory import MEMORY, give, take
from plasmavmc.hypervisor.firecracker.requests import API_SOCKET, SOCKET_DIRECTORY
from plasmavmc.hypervisor.firecracker.sockets import JailSockets
from plasmavmc.types import MIB, ExecSpec, NetworkSpec, RateLimit, VmHandle, VmSpec, vm_key
from tests.contract.fake_firecracker import VARIABLE
from tests.contract.hypervisor_contract import (
    CHECKS,
    Check,
    a_paused_vm_says_nothing_until_it_runs_again,
    a_spec,
    booted,
    ended,
    gone,
)
from tests.contract.hypervisor_fork_contract import FORK_CHECKS, ON, ForkCheck, state_file
from tests.contract.tiny_kernel import idle
from tests.engine.guest_loopback import build

ROOT = Path(__file__).resolve().parents[2]


class RewrittenChannel:
    """The suite's workload is `/app`, which lies elsewhere here: there is no root directory of a guest's."""

    def __init__(self, channel: GuestChannel, app: Path) -> None:
        self._channel = channel
        self._app = app

    async def configure(self, config: GuestConfig) -> None:
        await self._channel.configure(replace(config, argv=(str(self._app), *config.argv[1:])))

    def events(self) -> AsyncIterator[GuestEvent]:
        return self._channel.events()

    async def acknowledge(self, offset: int) -> None:
        await self._channel.acknowledge(offset)

    async def exec(self, spec: ExecSpec) -> ExecSession:
        return await self._channel.exec(spec)

    async def stop(self, signal: str, grace_s: float) -> None:
        await self._channel.stop(signal, grace_s)

    async def freeze(self) -> None:
        await self._channel.freeze()

    async def thaw(self, card: GuestCard) -> None:
        await self._channel.thaw(card)

    async def aclose(self) -> None:
        await self._channel.aclose()


class JailingHost:
    """What the root helper does for this backend, without root: jails are directories, the VMM is the stand-in."""

    def __init__(self, directory: Path, behaviour: Mapping[str, object]) -> None:
        self.directory = directory
        self.behaviour = dict(behaviour)
        self.uids: set[str] = set()
        self.taps: list[TapRequest | None] = []
        self.children: dict[int, subprocess.Popen[bytes]] = {}

    async def uid_take(self, key: str, *, seat: bool = False) -> int:
        self.uids.add(key)
        return 1

    async def uid_free(self, key: str) -> None:
        self.uids.discard(key)

    async def jail_prepare(self, key: str, files: Mapping[str, int]) -> int:
        root = self.directory / "jails" / key
        (root / SOCKET_DIRECTORY.strip("/")).mkdir(parents=True)
        for name, fd in files.items():
            shutil.copyfile(f"/proc/self/fd/{fd}", root / name)
        return await self.jail_open(key)

    async def jail_open(self, key: str) -> int:
        return os.open(self.directory / "jails" / key / "s", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    async def jail_spawn(self, key: str, _limits: Limits, tap: TapRequest | None = None) -> Spawned:
        self.taps.append(tap)
        behaviour = self.behaviour | {"root": str(self.directory / "jails" / key)}
        arguments = ("--api-sock", f"{SOCKET_DIRECTORY}/{API_SOCKET}", "--id", key)
        child = subprocess.Popen(  # noqa: ASYNC220 - a fork is quick
            [sys.executable, "-m", "tests.contract.fake_firecracker", *arguments],
            env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], VARIABLE: json.dumps(behaviour)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        self.children[child.pid] = child
        assert child.stdout is not None
        with child.stdout:
            stdout = os.dup(child.stdout.fileno())
        return Spawned(child.pid, _start_time(child.pid), os.pidfd_open(child.pid), "none", stdout)

    async def jail_remove(self, key: str) -> None:
        shutil.rmtree(self.directory / "jails" / key, ignore_errors=True)

    async def vm_signal(self, _key: str, process: ProcessId, signal: int) -> bool:
        os.kill(process.pid, signal)
        return True

    async def vm_reap(self, _key: str, process: ProcessId) -> int | None:
        child = self.children.pop(process.pid, None)
        return None if child is None else child.wait()


def _start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


class FirecrackerRig:
    """Implements `PausableRig` and `ForkableRig`."""

    def __init__(self, directory: Path, init: Path, app: Path) -> None:
        gc.collect()  # what earlier tests left to be closed some time would be missed in the middle of this one
        self.directory = directory
        self.app = app
        self._fds: list[int] = []
        self.host = JailingHost(directory, {"guest": [str(init)]})
        for name, content in (("kernel", idle()), ("initrd", b""), ("nonsense", b"no kernel"), ("disk", bytes(4096))):
            (directory / name).write_bytes(content)
        self.backend = self._new_backend()

    def as_host(self) -> Host:
        return self.host  # type: ignore[return-value]  # the part of the port that this backend uses

    def _new_backend(self) -> FirecrackerBackend:
        return FirecrackerBackend(
            self.as_host(), self.host, program=self.directory / "kernel", channel=self._open, recover_deadline_s=60.0
        )

    async def _open(
        self, connect: Connect, where: str, *, fresh: bool, deadline_s: float, renewable: bool
    ) -> GuestChannel:
        channel = await open_channel_over(connect, where, fresh=fresh, deadline_s=deadline_s, renewable=renewable)
        return RewrittenChannel(channel, self.app)

    def plan(self, spec: VmSpec) -> VmPlan:
        self._fds.append(os.open(self.directory / "disk", os.O_RDWR | os.O_CLOEXEC))
        disks = (DiskPlan("layer", self._fds[-1], read_only=False),)
        return VmPlan(vm_key(spec.id), self.directory, self.directory / "kernel", self.directory / "initrd", disks)

    def restored_plan(self, spec: VmSpec, _origin: VmSpec, memory: MemoryPlan) -> VmPlan:
        return replace(self.plan(spec), memory=memory)

    async def guest_runs(self, handle: VmHandle) -> bool:
        async with self.backend._vms.of(handle).client() as client:
            await client.info()
            return client.phase is Phase.RUNNING

    def broken_plan(self, spec: VmSpec) -> VmPlan:
        return replace(self.plan(spec), kernel=self.directory / "nonsense")

    def restart(self) -> None:
        self.backend.close()
        self.backend = self._new_backend()

    def kill(self, handle: VmHandle) -> None:
        os.kill(handle.pid, 9)

    def make_zombie(self, handle: VmHandle) -> None:
        self.kill(handle)
        os.waitid(os.P_PID, handle.pid, os.WEXITED | os.WNOWAIT)

    def lives(self, handle: VmHandle) -> bool:
        return is_alive(ProcessId(handle.pid, handle.start_time))

    def traces(self) -> frozenset[str]:
        open_now = [int(link.name) for link in Path("/proc/self/fd").iterdir()]
        ours = [fd for fd in open_now if _is_open(fd) and fd not in self._fds]
        jails = {f"jail {path.name}" for path in self.directory.glob("jails/*")}
        uids = {f"uid {key}" for key in self.host.uids}
        return frozenset({f"{len(ours)} descriptors"} | jails | uids | {f"child {pid}" for pid in self.host.children})

    def close(self) -> None:
        self.backend.close()
        for child in self.host.children.values():
            child.kill()
            child.wait()
        self._end_workloads()
        for fd in self._fds:
            os.close(fd)

    def _end_workloads(self) -> None:
        """A pretended VM that is killed leaves its workload behind, which a real one takes with it."""
        for process in processes():
            if argv_of(process.id.pid)[:1] == (str(self.app),):
                kill(process.id, timeout_s=1.0)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("init")
    return asyncio.run(build("loopback", out)), asyncio.run(build("app", out))


@pytest.fixture
def rig(programs: tuple[Path, Path]) -> Iterator[FirecrackerRig]:
    with tempfile.TemporaryDirectory(prefix="swgfc-") as directory:
        rig = FirecrackerRig(Path(directory), *programs)
        yield rig
        rig.close()


@pytest.mark.parametrize(
    "check", [*CHECKS, a_paused_vm_says_nothing_until_it_runs_again], ids=lambda check: check.__name__
)
async def test_the_firecracker_backend_keeps_the_contract(check: Check, rig: FirecrackerRig) -> None:
    await check(rig)


@pytest.mark.parametrize("check", FORK_CHECKS, ids=lambda check: check.__name__)
async def test_the_firecracker_backend_keeps_the_contract_of_those_that_can_suspend(
    check: ForkCheck, rig: FirecrackerRig
) -> None:
    await check(rig)


async def test_a_command_that_was_begun_meanwhile_is_gone_with_its_connection_and_the_next_one_is_not(
    rig: FirecrackerRig,
) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    command = ExecSpec((str(rig.app), "exit", "3"))
    with state_file() as state:
        await channel.freeze()
        memory = await rig.backend.save_state(handle, state)
        assert memory is not None
        os.close(memory)
        begun = asyncio.create_task(channel.exec(command))
        await asyncio.sleep(0)
        await rig.backend.go_on(handle)
        await channel.thaw(ON)
    with pytest.raises(GuestError):
        await begun
    session = await channel.exec(command)
    assert [item async for item in session.output()][-1] == ExecExit(3)
    await gone(rig, handle, channel)


async def test_a_vm_that_was_paused_runs_on_when_it_is_adopted(rig: FirecrackerRig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    await rig.backend.pause_vm(handle)
    await channel.aclose()
    rig.restart()
    adopted = await rig.backend.recover(handle)
    assert adopted is not None
    await adopted.stop("SIGTERM", 5.0)
    assert (await ended(rig, handle)).code == 0
    await gone(rig, handle, adopted)


async def test_a_guest_without_a_driver_is_a_boot_that_failed(
    rig: FirecrackerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "HELLO_DEADLINE_S", 0.3)
    rig.host.behaviour["guest"] = []
    handle = await rig.backend.create_vm(a_spec(), rig.plan(a_spec()))
    with pytest.raises(GuestError) as failed:
        await rig.backend.start_vm(handle)
    assert failed.value.code == "boot-timeout"
    await gone(rig, handle)


async def test_a_release_that_is_too_old_is_refused_and_leaves_nothing(rig: FirecrackerRig) -> None:
    before = rig.traces()
    rig.host.behaviour["version"] = "1.7.0"
    with pytest.raises(HostError) as refused:
        await rig.backend.create_vm(a_spec(), rig.plan(a_spec()))
    assert refused.value.code == "firecracker-version"
    assert rig.traces() == before


async def test_a_vmm_that_ends_at_once_is_told_with_its_words_and_leaves_nothing(rig: FirecrackerRig) -> None:
    before = rig.traces()
    rig.host.behaviour["nonsense"] = True
    with pytest.raises(HostError) as refused:
        await rig.backend.create_vm(a_spec(), rig.plan(a_spec()))
    assert refused.value.code == "vmm-refused"
    assert "nonsense" in refused.value.details
    assert rig.traces() == before


async def test_the_tap_of_an_interface_is_made_where_the_vmm_opens_it(rig: FirecrackerRig) -> None:
    mac = "02:00:00:00:00:01"
    spec = replace(a_spec(), networks=(NetworkSpec("nic", "net_a", receive=RateLimit(bytes_per_second=MIB)),))
    handle = await rig.backend.create_vm(
        spec, replace(rig.plan(spec), nics=(NicPlan("n0", -1, mac, "swgaaaabbbbbbbb"),))
    )
    assert rig.host.taps == [TapRequest("swgaaaabbbbbbbb", mac)]
    await rig.backend.delete_vm(handle)


# What a VMM that its guest has taken over may leave in its directory


async def test_a_link_to_another_socket_is_not_followed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / API_SOCKET).symlink_to(tmp_path / "other")
        sockets = JailSockets(os.open(tmp_path / "s", os.O_PATH | os.O_CLOEXEC))
        with pytest.raises(UnavailableError) as refused:
            async with sockets.reach(API_SOCKET, deadline_s=0.1):
                pass
        assert refused.value.code == "no-socket"
        sockets.close()


async def test_the_socket_that_was_looked_at_is_the_one_that_is_reached(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as api:
        api.bind(str(tmp_path / API_SOCKET))
        sockets = JailSockets(os.open(tmp_path, os.O_PATH | os.O_CLOEXEC))
        async with sockets.reach(API_SOCKET, deadline_s=0.1) as path:
            (tmp_path / API_SOCKET).rename(tmp_path / "elsewhere")
            (tmp_path / API_SOCKET).symlink_to("/dev/null")
            assert stat.S_ISSOCK(path.stat().st_mode)
        sockets.close()


@pytest.mark.parametrize("left", ["link", "pipe", "directory", "short", "nothing"])
def test_what_is_no_memory_is_not_taken_for_it_and_waited_for_by_nobody(left: str, tmp_path: Path) -> None:
    place = tmp_path / MEMORY
    match left:
        case "link":
            place.symlink_to("/etc/passwd")
        case "pipe":
            os.mkfifo(place)
        case "directory":
            place.mkdir()
        case "short":
            place.write_bytes(b"short")
    directory = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    with pytest.raises(HostError) as refused:
        take(directory, MEMORY, least=4096, most=1 << 20)
    assert refused.value.code == "state-not-saved"
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == before
    os.close(directory)


def test_a_memory_is_given_whole_with_its_holes_and_in_place_of_what_was_there(tmp_path: Path) -> None:
    (tmp_path / MEMORY).symlink_to(tmp_path / "elsewhere")
    directory = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
    source = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.ftruncate(source, 64 * MIB)
    os.pwrite(source, b"one", 0)
    os.pwrite(source, b"other", 48 * MIB)
    give(directory, MEMORY, source, 65 * MIB)
    given = (tmp_path / MEMORY).stat()
    assert (given.st_size, given.st_mode & 0o777) == (65 * MIB, 0o444)
    assert given.st_blocks * 512 < MIB
    with (tmp_path / MEMORY).open("rb") as file:
        assert file.read(3) == b"one"
        file.seek(48 * MIB)
        assert file.read(6) == b"other\0"
    assert not (tmp_path / "elsewhere").exists()
    for fd in (source, directory):
        os.close(fd)
