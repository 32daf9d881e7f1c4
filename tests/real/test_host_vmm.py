"""What a VMM started by the root helper is allowed, and how it lives and dies beside the helper."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plasmavmc.errors import HostError, UnavailableError
from plasmavmc.host.operations import Keep, Limits, ProcessId
from plasmavmc.host.pressure import unified_root
from plasmavmc.host.processes import is_alive, read_process
from plasmavmc.hypervisor.process import usage_of
from plasmavmc.types import MIB
from tests.contract.host_parts import DEADLINE_S, LIMITS, ONE, TWO, HostRig, end, has_ended, identity, let_go, start
from tests.contract.host_rig import UIDS, RealHelper, eventually, real_helper, rig_of, sleeper

pytestmark = pytest.mark.real


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def limit_of(pid: int, name: str) -> str:
    """A soft limit by its name in /proc/<pid>/limits."""
    line = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith(name))
    return line.removeprefix(name).split()[0]


def cgroup_limits(group: str) -> set[str]:
    """What is set in the files of a group, in whatever hierarchies there are."""
    files = (*Path("/sys/fs/cgroup").glob(f"**{group}/*.max"), *Path("/sys/fs/cgroup").glob(f"**{group}/*_in_bytes"))
    return {path.read_text().strip() for path in files}


def measures_pressure() -> bool:
    return unified_root() is not None and Path("/proc/pressure/cpu").exists()


def text_of(path: str) -> bytes:
    return Path(path).read_bytes()


def link_of(pid: int, name: str) -> str:
    return str(Path(f"/proc/{pid}/{name}").readlink())


def descriptors_of(pid: int) -> dict[str, str]:
    return {path.name: str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}


async def test_a_vmm_owns_nothing_and_can_gain_nothing(rig: HostRig) -> None:
    spawned = await start(rig)
    uid = await rig.host.uid_take(ONE)
    await eventually(lambda: status_of(spawned.pid)["Seccomp"] == "2", "QEMU has put its sandbox on")
    status = status_of(spawned.pid)
    assert status["Uid"].split() == [str(uid)] * 4
    assert status["Gid"].split() == [str(uid)] * 4
    assert status["Groups"] == ""
    assert status["NoNewPrivs"] == "1"
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert text_of(f"/proc/{spawned.pid}/environ") == b""
    assert link_of(spawned.pid, "cwd") == "/"
    assert limit_of(spawned.pid, "Max core file size") == "0"
    process = read_process(spawned.pid)
    assert process is not None
    assert process.session == spawned.pid
    await end(rig, spawned)


async def test_a_vmm_has_the_descriptors_given_and_no_others(rig: HostRig, helper: RealHelper) -> None:
    """Not the helper's sockets, not what the helper's starter left open."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        mark = os.fstat(server.fileno()).st_ino
        await rig.host.uid_take(ONE)
        argv = rig.argv(ONE, "-chardev", "socket,id=q0,fd=@qmp@,server=on,wait=off", "-mon", "chardev=q0,mode=control")
        spawned = await rig.host.vm_spawn(ONE, argv, LIMITS, {"qmp": server.fileno()})
    await eventually(lambda: status_of(spawned.pid)["Seccomp"] == "2", "QEMU runs")
    held = descriptors_of(spawned.pid)
    sockets = {target for target in held.values() if target.startswith("socket:")}
    assert sockets == {f"socket:[{mark}]"}
    assert held["0"] == "/dev/null"
    assert held["1"] == held["2"]
    assert held["1"].startswith("pipe:")
    await end(rig, spawned)


async def test_a_vmm_is_in_a_cgroup_with_its_limits(rig: HostRig, helper: RealHelper) -> None:
    await rig.host.uid_take(ONE)
    spawned = await rig.host.vm_spawn(ONE, rig.argv(), Limits(192 * MIB, 1500, pids=33), {})
    if spawned.confinement == "rlimits":
        assert limit_of(spawned.pid, "Max processes") == "33"
    else:
        group = f"/{helper.names.cgroup}/{helper.names.vm_cgroup(await rig.host.uid_take(ONE))}"
        assert text_of(f"/proc/{spawned.pid}/cgroup").decode().count(group) >= 1
        assert {"33", str(192 * MIB)} <= cgroup_limits(group)
    await end(rig, spawned)
    assert helper.cgroups() == set()


async def test_the_pressure_on_a_vmm_is_told_where_the_kernel_measures_it(rig: HostRig) -> None:
    spawned = await start(rig)
    measured = spawned.confinement != "rlimits" and measures_pressure()
    assert (usage_of(identity(spawned)).pressure is not None) == measured
    await end(rig, spawned)


async def test_the_limit_bites_on_a_guests_shared_memory_too(rig: HostRig) -> None:
    await rig.host.uid_take(ONE)
    memory = ("-object", "memory-backend-memfd,id=mem,size=512M,share=on,prealloc=on")
    spawned = await rig.host.vm_spawn(ONE, rig.argv(ONE, *memory), Limits(128 * MIB, 1000), {})
    if spawned.confinement == "rlimits":
        await end(rig, spawned)
        return
    assert await asyncio.to_thread(has_ended, spawned, 20)
    let_go(spawned)
    assert await rig.host.vm_reap(ONE, identity(spawned)) != 0


async def test_what_a_vmm_complains_of_is_told(rig: HostRig) -> None:
    await rig.host.uid_take(ONE)
    spawned = await rig.host.vm_spawn(ONE, rig.argv(ONE, "-cpu", "no-such-cpu", "-M", "microvm"), LIMITS, {})
    assert await asyncio.to_thread(has_ended, spawned, 10)
    assert b"no-such-cpu" in os.read(spawned.stdout, 4096)
    let_go(spawned)
    assert await rig.host.vm_reap(ONE, identity(spawned)) == 1


async def test_an_ended_vmm_is_reaped_without_being_asked(rig: HostRig) -> None:
    spawned = await start(rig)
    os.kill(spawned.pid, signal.SIGKILL)
    await eventually(lambda: not Path(f"/proc/{spawned.pid}").exists(), "no zombie is left")
    assert await rig.host.vm_reap(ONE, identity(spawned)) == -signal.SIGKILL
    let_go(spawned)


@pytest.mark.parametrize("cgroups", [True, False], ids=["cgroups", "without cgroups"])
@pytest.mark.parametrize("restarted", [False, True], ids=["its own", "an adopted one"])
async def test_what_a_vmm_leaves_running_ends_when_it_is_reaped(tmp_path: Path, cgroups: bool, restarted: bool) -> None:
    """As what it forked may have its disks open. Nobody else's process is touched."""
    async with real_helper(tmp_path, cgroups=cgroups) as helper:
        rig = rig_of(helper)
        spawned, other = await start(rig), await start(rig, TWO)
        uid = await rig.host.uid_take(ONE)
        with sleeper(uid=uid) as left, sleeper() as stranger:
            for place in groups_of(rig, uid):
                (place / "cgroup.procs").write_text(str(left))
            if restarted:
                helper.restart()
            host = helper.host
            assert await host.vm_signal(ONE, identity(spawned), signal.SIGKILL)
            assert await asyncio.to_thread(has_ended, spawned, DEADLINE_S)
            assert read_process(left)
            code = await host.vm_reap(ONE, identity(spawned))
            assert code == (None if restarted else -signal.SIGKILL)
            assert read_process(left) is None
            assert not [place for place in groups_of(rig, uid) if place.exists()]
            assert read_process(stranger)
            assert not has_ended(other)
        let_go(spawned)
        assert await host.vm_signal(TWO, identity(other), signal.SIGKILL)
        let_go(other)


def groups_of(rig: HostRig, uid: int) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"**/{rig.names.cgroup}/{rig.names.vm_cgroup(uid)}"))


async def test_a_vmm_outlives_a_killed_helper_and_the_next_one_commands_it(rig: HostRig, helper: RealHelper) -> None:
    spawned = await start(rig)
    uid = await rig.host.uid_take(ONE)
    helper.restart()
    assert is_alive(identity(spawned))
    assert await helper.host.uid_take(ONE) == uid
    swept = await helper.host.sweep(Keep({ONE: identity(spawned)}))
    assert swept.processes == ()
    assert is_alive(identity(spawned))
    assert await helper.host.vm_signal(ONE, identity(spawned), signal.SIGKILL)
    await eventually(lambda: not is_alive(identity(spawned)), "it is dead")
    assert await helper.host.vm_reap(ONE, identity(spawned)) is None
    assert helper.cgroups() == set()
    let_go(spawned)


async def test_calls_to_a_dead_helper_say_that_it_is_gone(rig: HostRig, helper: RealHelper) -> None:
    helper.process.kill()
    with pytest.raises(UnavailableError) as caught:
        await rig.host.uid_take(ONE)
    assert caught.value.code == "helper-gone"
    await asyncio.wait_for(helper.host.wait_gone(), 5)


async def test_a_cancelled_spawn_leaves_no_vmm(rig: HostRig, helper: RealHelper) -> None:
    await rig.host.uid_take(ONE)
    os.kill(helper.process.pid, signal.SIGSTOP)
    spawning = asyncio.create_task(rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {}))
    await asyncio.sleep(0)
    spawning.cancel()
    os.kill(helper.process.pid, signal.SIGCONT)
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert helper.cgroups() == set()


async def test_a_cancelled_tap_leaves_no_interface(rig: HostRig, helper: RealHelper) -> None:
    await rig.host.bridge_ensure(rig.bridge)
    os.kill(helper.process.pid, signal.SIGSTOP)
    opening = asyncio.create_task(rig.host.tap_open(rig.tap()))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    os.kill(helper.process.pid, signal.SIGCONT)
    await rig.host.networks_in_use()
    await eventually(lambda: rig.tap().name not in helper.namespace.links(), "the tap is gone")


async def test_nonsense_on_the_socket_ends_the_helper_and_no_vm(rig: HostRig, helper: RealHelper) -> None:
    spawned = await start(rig)
    helper.host._socket.send(b"\x00\xff\xff")
    assert await asyncio.to_thread(helper.process.wait, 10) != 0
    assert is_alive(identity(spawned))
    let_go(spawned)


async def test_a_uid_is_not_given_again_while_something_of_it_is_left(rig: HostRig) -> None:
    """A process, one that ended and was not waited for, and a file in /tmp hold their uids, though their leases ended."""
    with sleeper(uid=UIDS[0]), file_of(UIDS[1]), sleeper(uid=UIDS[2]) as zombie:
        os.kill(zombie, signal.SIGKILL)
        taken = {await rig.host.uid_take(f"{'a' * 10}{first}{second}") for first in "abcdefgh" for second in "abcdefg"}
    assert len(taken) == 56
    assert not taken & set(UIDS[:3])


async def test_a_process_of_the_platform_is_placed_with_what_it_started(rig: HostRig, helper: RealHelper) -> None:
    with sleeper("sh", "-c", "sleep 600 & wait", uid=65534) as pid:
        await eventually(lambda: len(session_of(pid)) == 2, "it has a child")
        confinement = await rig.host.cgroup_place("haproxy", id_of(pid))
        if confinement != "rlimits":
            for member in session_of(pid):
                assert f"/{helper.names.cgroup}/haproxy" in text_of(f"/proc/{member}/cgroup").decode()
        swept = await rig.host.sweep(Keep(processes=tuple(map(id_of, session_of(pid)))))
        assert swept.processes == ()
        members = set(session_of(pid))
        swept = await rig.host.sweep(Keep())
        assert set(swept.processes) == members or confinement == "rlimits"


async def test_a_process_of_another_user_is_not_placed(rig: HostRig) -> None:
    with sleeper() as pid, pytest.raises(HostError, match="refused a process"):
        await rig.host.cgroup_place("haproxy", id_of(pid))


def id_of(pid: int) -> ProcessId:
    process = read_process(pid)
    assert process is not None
    return process.id


@contextmanager
def file_of(uid: int) -> Iterator[None]:
    """A file of this uid in /tmp."""
    trace = Path(f"/tmp/swg-test-{os.getpid()}")
    trace.touch()
    os.chown(trace, uid, uid)
    try:
        yield
    finally:
        trace.unlink()


def session_of(leader: int) -> list[int]:
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [pid for pid in numbers if (process := read_process(pid)) is not None and process.session == leader]


async def test_without_cgroups_rlimits_bound_a_vmm_and_that_is_told(tmp_path: Path) -> None:
    async with real_helper(tmp_path, cgroups=False) as bare:
        rig = rig_of(bare)
        spawned = await start(rig)
        assert spawned.confinement == "rlimits"
        assert int(limit_of(spawned.pid, "Max address space")) > LIMITS.memory_bytes
        assert limit_of(spawned.pid, "Max processes") == str(LIMITS.pids)
        with pytest.raises(HostError, match="runs already"):
            await rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {})
        with sleeper() as pid, pytest.raises(HostError, match="is not of VM"):
            await rig.host.vm_signal(ONE, id_of(pid), signal.SIGKILL)
        swept = await rig.host.sweep(Keep())
        assert swept.processes == (spawned.pid,)
        let_go(spawned)
