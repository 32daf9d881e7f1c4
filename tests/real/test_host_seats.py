"""Processes that wait to become a VMM: what they are while they wait, what becomes of them, and how each of them ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from plasmavmc.host.configuration import WASM_WORKER
from plasmavmc.host.helper.cgroups import NONE, find_cgroups
from plasmavmc.host.operations import Keep, Limits, ProcessId
from plasmavmc.host.processes import is_alive, read_process
from plasmavmc.types import MIB
from tests.contract.host_parts import DEADLINE_S, LIMITS, ONE, TWO, HostRig, end, has_ended, identity, let_go, refused
from tests.contract.host_rig import UIDS, RealHelper, eventually
from tests.real.test_host_vmm import cgroup_limits, descriptors_of, limit_of, link_of, status_of, text_of

pytestmark = pytest.mark.real
NAMESPACES = ("net", "mnt", "ipc", "uts")


def children_of(helper: RealHelper) -> set[int]:
    pid = helper.process.pid
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


async def seat(helper: RealHelper) -> ProcessId:
    """A new one, which waits for its orders."""
    before = children_of(helper)
    await helper.host.seat_make(kvm=False)
    if find_cgroups(helper.names.cgroup).confinement == NONE:
        pytest.skip("this host gives no cgroups, so there are no seats")
    (pid,) = children_of(helper) - before
    await eventually(lambda: waits(pid), "it waits")
    process = read_process(pid)
    assert process is not None
    return process.id


def waits(pid: int) -> bool:
    """It has dropped, and sleeps."""
    status = status_of(pid)
    return status["Uid"].split()[0] != "0" and status["State"].startswith("S")


def uid_of(process: ProcessId) -> int:
    return int(status_of(process.pid)["Uid"].split()[0])


def move(helper: RealHelper, pid: int, old: str, new: str) -> None:
    """Give a process another cgroup, in place of the one that it has."""
    for parent in Path("/sys/fs/cgroup").glob(f"**/{helper.names.cgroup}"):
        (parent / new).mkdir()
        (parent / new / "cgroup.procs").write_text(str(pid))
        (parent / old).rmdir()


def root_of(pid: int) -> set[str]:
    return {path.name for path in Path(f"/proc/{pid}/root").iterdir()}


async def taken(helper: RealHelper, key: str = ONE) -> ProcessId:
    """A seat whose uid VM `key` has."""
    waiting = await seat(helper)
    assert await helper.host.uid_take(key, seat=True) == uid_of(waiting)
    return waiting


async def test_who_waits_is_in_its_cage_and_has_nothing(helper: RealHelper) -> None:
    waiting = await seat(helper)
    status, uid = status_of(waiting.pid), uid_of(waiting)
    assert uid in UIDS
    assert status["Uid"].split() == status["Gid"].split() == [str(uid)] * 4
    assert status["Groups"] == ""
    assert status["NoNewPrivs"] == "1"
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    kinds = sorted(target.partition(":")[0] for target in descriptors_of(waiting.pid).values())
    assert kinds == ["/dev/null", "/dev/null", "/dev/null", "pipe", "socket"]
    assert all(link_of(waiting.pid, f"ns/{name}") != link_of(helper.process.pid, f"ns/{name}") for name in NAMESPACES)
    assert root_of(waiting.pid) - {"lib", "lib64"} == {"dev", "proc", "usr"}
    assert f"/{helper.names.cgroup}/{helper.names.vm_cgroup(uid)}" in text_of(f"/proc/{waiting.pid}/cgroup").decode()


async def test_it_becomes_a_vmm_like_any_other(rig: HostRig, helper: RealHelper) -> None:
    waiting = await taken(helper)
    uid = uid_of(waiting)
    with socket.create_server(("127.0.0.1", 0)) as server:
        mark = os.fstat(server.fileno()).st_ino
        argv = rig.argv(ONE, "-chardev", "socket,id=q0,fd=@qmp@,server=on,wait=off", "-mon", "chardev=q0,mode=control")
        spawned = await rig.host.vm_spawn(ONE, argv, Limits(192 * MIB, 1500, pids=33), {"qmp": server.fileno()})
    assert identity(spawned) == waiting
    await eventually(lambda: status_of(spawned.pid)["Seccomp"] == "2", "QEMU has put its sandbox on")
    held = descriptors_of(spawned.pid)
    assert {target for target in held.values() if target.startswith("socket:")} == {f"socket:[{mark}]"}
    assert (held["0"], held["1"]) == ("/dev/null", held["2"])
    assert text_of(f"/proc/{spawned.pid}/environ") == b""
    assert text_of(f"/proc/{spawned.pid}/cmdline").decode().split("\0")[:2] == [rig.vmm, "-name"]
    assert link_of(spawned.pid, "cwd") == "/"
    assert limit_of(spawned.pid, "Max core file size") == "0"
    assert {"33", str(192 * MIB)} <= cgroup_limits(f"/{helper.names.cgroup}/{helper.names.vm_cgroup(uid)}")
    assert await end(rig, spawned) == -signal.SIGKILL
    assert helper.cgroups() == set()


SAME = ("limits", "oom_score_adj", "timerslack_ns", "personality", "coredump_filter")
OWN = ("Tgid", "Pid", "Uid", "Gid", "NStgid", "NSpid", "NSpgid", "NSsid", "Vm", "Rss", "vol", "nonvol")
"""Of /proc/<pid>/status, by their beginnings: numbers of the process and what it uses."""


def state_of(pid: int) -> dict[str, object]:
    """What the kernel holds a process to."""
    status = {name: value for name, value in status_of(pid).items() if not name.startswith(OWN)}
    mounts = [line.split()[3:6] for line in text_of(f"/proc/{pid}/mountinfo").decode().splitlines()]
    return {"status": status, "mounts": mounts, **{name: text_of(f"/proc/{pid}/{name}") for name in SAME}}


async def test_the_kernel_holds_it_to_all_that_a_vmm_started_the_long_way_is_held_to(
    rig: HostRig, helper: RealHelper
) -> None:
    waiting = await taken(helper)
    seated = await rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {})
    await rig.host.uid_take(TWO)
    other = await rig.host.vm_spawn(TWO, rig.argv(TWO), LIMITS, {})
    assert seated.pid == waiting.pid != other.pid
    for spawned in (seated, other):
        await eventually(lambda pid=spawned.pid: status_of(pid)["Seccomp"] == "2", "QEMU has put its sandbox on")
    await eventually(lambda: state_of(seated.pid) == state_of(other.pid), "they are alike")
    await end(rig, seated)
    await end(rig, other, TWO)


async def test_what_it_complains_of_as_a_vmm_is_told(rig: HostRig, helper: RealHelper) -> None:
    waiting = await taken(helper)
    spawned = await rig.host.vm_spawn(ONE, rig.argv(ONE, "-cpu", "no-such-cpu", "-M", "microvm"), LIMITS, {})
    assert identity(spawned) == waiting
    assert await asyncio.to_thread(has_ended, spawned, 10)
    assert b"no-such-cpu" in os.read(spawned.stdout, 4096)
    let_go(spawned)
    assert await rig.host.vm_reap(ONE, identity(spawned)) == 1


async def test_who_became_a_vmm_outlives_a_killed_helper_and_who_waits_does_not(
    rig: HostRig, helper: RealHelper
) -> None:
    first = await taken(helper)
    spawned = await rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {})
    second, third = await taken(helper, TWO), await seat(helper)
    helper.restart()
    await eventually(lambda: not is_alive(second) and not is_alive(third), "they end with the helper")
    assert is_alive(first)
    assert await helper.host.sweep(Keep({ONE: identity(spawned)}))
    assert helper.cgroups() == {helper.names.vm_cgroup(uid_of(first))}
    assert [path.name for path in (helper.configuration.run_root / "uids").iterdir()] == [str(uid_of(first))]
    assert await helper.host.vm_signal(ONE, first, signal.SIGKILL)
    await eventually(lambda: not is_alive(first), "it is dead")
    let_go(spawned)


async def test_it_ends_with_the_connection_of_the_platform(helper: RealHelper) -> None:
    waiting = await seat(helper)
    helper.stop()
    assert read_process(waiting.pid) is None
    helper.start()


async def test_it_ends_with_the_lease_that_it_was_taken_for(helper: RealHelper) -> None:
    waiting = await taken(helper)
    await helper.host.uid_free(ONE)
    assert read_process(waiting.pid) is None
    assert helper.cgroups() == set()


async def test_a_sweep_ends_those_that_wait_and_speaks_of_vms_only(helper: RealHelper) -> None:
    waiting, free = await taken(helper), await seat(helper)
    uid = uid_of(waiting)
    swept = await helper.host.sweep(Keep())
    assert (swept.processes, swept.cgroups, swept.uids) == ((), (), (uid,))
    assert read_process(waiting.pid) is read_process(free.pid) is None
    assert helper.cgroups() == set()


async def test_it_does_not_keep_an_installation_from_being_dismantled(helper: RealHelper) -> None:
    waiting = await taken(helper)
    await seat(helper)
    await helper.host.dismantle()
    assert read_process(waiting.pid) is None
    assert helper.cgroups() == set()
    assert list((helper.configuration.run_root / "uids").iterdir()) == []


async def test_it_is_no_running_vm_and_nobodys_to_signal(rig: HostRig, helper: RealHelper) -> None:
    waiting = await taken(helper)
    await refused("helper-refused", rig.host.vm_limit(ONE, LIMITS))
    await refused("helper-refused", rig.host.vm_signal(ONE, waiting, signal.SIGSTOP))
    await refused("helper-refused", rig.host.vm_memory(ONE, waiting))
    assert await rig.host.vm_reap(ONE, waiting) is None
    assert is_alive(waiting)


async def test_a_second_one_is_made_when_the_first_is_taken(helper: RealHelper) -> None:
    waiting = await seat(helper)
    await helper.host.seat_make(kvm=False)
    assert children_of(helper) == {waiting.pid}
    await helper.host.uid_take(ONE, seat=True)
    other = await seat(helper)
    assert uid_of(other) != uid_of(waiting)


async def test_a_vm_that_asks_for_none_gets_none(helper: RealHelper) -> None:
    waiting = await seat(helper)
    assert await helper.host.uid_take(ONE) != uid_of(waiting)
    assert await helper.host.uid_take(ONE, seat=True) != uid_of(waiting), "it has a uid already"


async def test_without_one_a_uid_is_taken_and_a_vmm_started_as_ever(rig: HostRig) -> None:
    await rig.host.uid_take(ONE, seat=True)
    spawned = await rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {})
    await end(rig, spawned)


async def test_where_it_died_the_vmm_is_started_the_long_way(rig: HostRig, helper: RealHelper) -> None:
    waiting = await taken(helper)
    uid = uid_of(waiting)
    os.kill(waiting.pid, signal.SIGKILL)
    await eventually(lambda: not Path(f"/proc/{waiting.pid}").exists(), "no zombie is left")
    spawned = await rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {})
    assert status_of(spawned.pid)["Uid"].split() == [str(uid)] * 4
    await end(rig, spawned)


async def test_a_vmm_that_it_does_not_fit_is_started_the_long_way(rig: HostRig, helper: RealHelper) -> None:
    """Its cage is another one."""
    waiting = await taken(helper)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = (WASM_WORKER, "-name", rig.names.process(ONE), "-control", "@control@")
        spawned = await rig.host.vm_spawn(ONE, argv, LIMITS, {"control": theirs.fileno()})
        assert spawned.pid != waiting.pid
        assert read_process(waiting.pid) is None
        await end(rig, spawned)
    assert helper.cgroups() == set()


async def test_one_that_does_not_take_its_orders_is_ended(rig: HostRig, helper: RealHelper) -> None:
    waiting = await taken(helper)
    os.kill(waiting.pid, signal.SIGSTOP)
    await refused("vmm-spawn", rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {}))
    assert read_process(waiting.pid) is None
    spawned = await rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {})
    await end(rig, spawned)


async def test_a_vm_of_an_older_version_is_found_in_its_cgroup(rig: HostRig, helper: RealHelper) -> None:
    """Those were called by the key."""
    await rig.host.uid_take(ONE)
    spawned = await rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {})
    move(helper, spawned.pid, helper.names.vm_cgroup(await rig.host.uid_take(ONE)), helper.names.keyed_cgroup(ONE))
    helper.restart()
    host = helper.host
    swept = await host.sweep(Keep({ONE: identity(spawned)}))
    assert (swept.processes, swept.cgroups) == ((), ())
    await host.vm_limit(ONE, Limits(300 * MIB, 700))
    await refused("helper-refused", host.vm_spawn(ONE, rig.argv(), LIMITS, {}))
    assert await host.vm_signal(ONE, identity(spawned), signal.SIGKILL)
    assert await asyncio.to_thread(has_ended, spawned, DEADLINE_S)
    let_go(spawned)
    await host.vm_reap(ONE, identity(spawned))
    assert helper.cgroups() == set()
