"""What somebody reaches who has taken a VMM over: as its user, in its cage, without even the sandbox for system calls.

The same attempts are made by root outside, where each succeeds: so that one which fails in the cage fails because of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from plasmavmc.host.operations import Spawned
from tests.contract.host_parts import LIMITS, ONE, TWO, HostRig, end, start
from tests.contract.host_rig import RealHelper, rig_of
from tests.contract.hypervisor_rig import OpenKvm

pytestmark = pytest.mark.real

PROBE = """
import json, os, socket, sys
told = json.loads(sys.argv[1])
def of_kind(kind):
    return socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
def reached(kind, target):
    if kind == "read":
        with open(target, "rb", buffering=0) as file:
            return bool(file.read(1))
    if kind == "map":
        return os.open(target, os.O_RDWR) >= 0
    if kind == "list":
        return bool(os.listdir(target))
    if kind == "write":
        path = os.path.join(target, "planted")
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.unlink(path)
        return True
    if kind == "signal":
        os.kill(target, 0)
        return True
    with of_kind(kind) as connection:
        connection.settimeout(2)
        connection.connect(tuple(target) if isinstance(target, list) else target)
        return True
def tried(kind, target):
    try:
        return reached(kind, target)
    except OSError:
        return False
print(json.dumps({
    "reached": [attempt for attempt in told if tried(*attempt)],
    "devices": sorted(os.listdir("/dev")),
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()),
    "self": os.getpid(),
}))
"""
Attempt = list[object]


@pytest.fixture
def data() -> Iterator[Path]:
    """A data directory of the platform, with a VM's disk and socket, that nothing but its modes protects."""
    with tempfile.TemporaryDirectory(prefix="swgcage-") as name:
        directory = Path(name)
        (directory / "disk").write_bytes(b"of another tenant")
        (directory / "disk").chmod(0o666)
        directory.chmod(0o755)
        yield directory


def tell(command: Sequence[str], attempts: list[Attempt]) -> dict[str, list[object]]:
    """What the attempts came to where a command runs the probe."""
    probe = ["/usr/bin/python3", "-I", "-S", "-c", PROBE, json.dumps(attempts)]
    done = subprocess.run([*command, *probe], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, list[object]] = json.loads(done.stdout)
    return told


def in_cage(spawned: Spawned, uid: int) -> list[str]:
    """Run a command where a VMM lives, as its user."""
    spaces = ["nsenter", "--target", str(spawned.pid), "--mount", "--net", "--ipc", "--uts", "--"]
    user = ["--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
    return [*spaces, "/usr/bin/setpriv", *user]


def namespaces_of(pid: int) -> dict[str, str]:
    return {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in ("net", "mnt", "ipc", "uts")}


@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="this host has no /dev/kvm")
async def test_a_vmm_that_asks_for_kvm_finds_that_device_and_no_other(helper: RealHelper) -> None:
    helper.namespace.__class__ = OpenKvm
    helper.restart()
    rig = rig_of(helper)
    uid = await rig.host.uid_take(ONE)
    spawned = await rig.host.vm_spawn(ONE, rig.argv(ONE, "-accel", "kvm"), LIMITS, {})
    attempts: list[Attempt] = [["map", "/dev/kvm"], ["map", "/dev/net/tun"], ["list", "/dev/shm"]]
    found = await asyncio.to_thread(tell, in_cage(spawned, uid), attempts)
    assert found["devices"] == ["fd", "kvm", "null", "urandom"]
    assert found["reached"] == attempts[:1]
    await end(rig, spawned)


def mounts_of(pid: int) -> str:
    return Path(f"/proc/{pid}/mounts").read_text()


async def test_who_took_a_vmm_over_reaches_no_other_vm_and_nothing_of_the_host(
    rig: HostRig, helper: RealHelper, data: Path
) -> None:
    await rig.host.bridge_ensure(rig.bridge)
    api = socket.socket(fileno=await rig.host.listen(rig.listener.address, rig.listener.port))
    with api, socket.socket(socket.AF_UNIX) as control:
        control.bind(str(data / "ctl.sock"))
        (data / "ctl.sock").chmod(0o666)
        control.listen()
        taken, other = await start(rig), await start(rig, TWO)
        attempts: list[Attempt] = [
            ["read", str(data / "disk")],
            ["map", str(data / "disk")],
            ["unix", str(data / "ctl.sock")],
            ["tcp", [rig.listener.address, rig.listener.port]],
            ["read", f"/proc/{other.pid}/maps"],
            ["map", f"/proc/{other.pid}/mem"],
            ["list", f"/proc/{other.pid}/fd"],
            ["signal", other.pid],
            ["signal", os.getpid()],
            ["list", str(helper.configuration.run_root)],
            ["read", "/etc/passwd"],
            ["read", "/proc/kallsyms"],
            *(["list", place] for place in ("/sys", "/var", "/run", "/tmp", "/etc", "/sys/fs/cgroup", "/proc/sys")),
            *(["write", place] for place in ("/", "/usr", "/dev", "/tmp")),
        ]
        outside = await asyncio.to_thread(tell, helper.namespace.enter, attempts)
        assert outside["reached"] == attempts, "as root, outside, each succeeds"
        uid = await rig.host.uid_take(ONE)
        inside = await asyncio.to_thread(tell, in_cage(taken, uid), attempts)
        assert inside["reached"] == []
        assert inside["devices"] == ["fd", "null", "urandom"]
        assert set(inside["processes"]) == {taken.pid, inside["self"]}, "it sees itself alone"
    await end(rig, taken)
    await end(rig, other, TWO)


async def test_a_vmm_shares_no_namespace_with_the_host_or_another(rig: HostRig, helper: RealHelper) -> None:
    first, second = await start(rig), await start(rig, TWO)
    ours, theirs, others = (namespaces_of(pid) for pid in (helper.process.pid, first.pid, second.pid))
    assert all(len({ours[name], theirs[name], others[name]}) == 3 for name in ours)
    await end(rig, first)
    await end(rig, second, TWO)


async def test_nothing_of_a_cage_is_left_on_the_host(rig: HostRig, helper: RealHelper) -> None:
    pids = (os.getpid(), helper.process.pid)
    before = [mounts_of(pid) for pid in pids]
    spawned = await start(rig)
    assert [mounts_of(pid) for pid in pids] == before
    await end(rig, spawned)
