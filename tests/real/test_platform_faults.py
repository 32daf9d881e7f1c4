"""What a running platform bears: killed VMMs, a killed platform, a killed HAProxy, debris under its names, a neighbour.

The tests share one platform and leave it as they found it: running, with every app healthy.
"""

from __future__ import annotations

import ctypes
import http.client
import itertools
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from examples.demo.images import hello
from examples.demo.leftovers import of_installation
from examples.demo.load import Load
from examples.demo.platform import Platform, qemu_processes
from examples.demo.registry import Registry
from plasmavmc.host.configuration import QEMU
from plasmavmc.types import vm_key
from tests.contract.host_rig import sleeper
from tests.real.platform_harness import (
    arguments_of,
    fetch,
    haproxy_master,
    healthy,
    instances,
    kill_platform,
    log_numbers,
    parent_of,
    scratch_platform,
    snapshot,
    told,
    until,
)

pytestmark = [pytest.mark.real, pytest.mark.alone]

IN_FLIGHT = 8
"""One request on each of the connections of a `Load`: as many may be lost with a VM."""
PAIR, CHATTY = "pair", "chatty"
APPS = (PAIR, CHATTY)
AWAY_S = 5
SERIALS = itertools.count(1, 1_000_000)
HELPER, CHILD = 0, 1
CGROUP_ROOTS = [Path("/sys/fs/cgroup", name) for name in ("", "memory", "cpu", "pids")]
PORT = ("--port", "8080", "--check-path", "/healthz")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def platform(registry: Registry) -> Iterator[Platform]:
    """Two instances of one app, one of another that writes 1 MB a second."""
    with scratch_platform() as made:
        image = registry.push(hello("v1"), "hello:v1")
        for app in APPS:
            made.swg("apps", "create", app)
        made.swg("deploy", "-a", PAIR, "-i", image, *PORT)
        made.swg("scale", "-a", PAIR, "web=2")
        made.swg("deploy", "-a", CHATTY, "-i", image, *PORT, "-e", "HELLO_CHATTER=1000000")
        yield made


@pytest.fixture(autouse=True)
def up(platform: Platform) -> None:
    """Each test finds the platform up and all healthy, whatever became of the one before."""
    platform.extra = ()
    if platform.process is None or platform.process.poll() is not None:
        platform.start()
    until(lambda: healthy(platform, PAIR, 2) and healthy(platform, CHATTY, 1), "all instances are healthy")


def load_on(platform: Platform, app: str) -> Load:
    """Requests to an app, with serial numbers that no other test has."""
    return Load(platform.http_port, f"{app}.localhost", first=next(SERIALS))


def executed(platform: Platform, load: Load) -> Counter[int]:
    """How often the app executed each POST of this load."""
    asked = {sample.serial for sample in load.journal.samples}
    return Counter(number for number in log_numbers(platform, PAIR, "journal") if number in asked)


def test_a_killed_vmm_is_noticed_within_3_s_and_replaced_by_itself(platform: Platform) -> None:
    """Its sibling serves on. What fails is in flight on the killed VM, or sent to it before its death is known."""
    before = {each["id"]: each for each in instances(platform, PAIR)}
    victim = next(iter(before.values()))
    with load_on(platform, PAIR) as load:
        time.sleep(1)
        pid = vmm_of(platform, victim["vm_id"])
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        until(lambda: noticed(platform, victim["id"]), "the killed VMM is noticed", within_s=3)
        seen = time.monotonic() - killed
        until(lambda: healthy(platform, PAIR, 2), "two healthy instances")
        took = time.monotonic() - killed
    after = {each["id"]: each for each in instances(platform, PAIR)}
    waited = max((sample.seconds for sample in load.journal.failed), default=0.0)
    print(
        f"noticed after {seen:.2f} s, replaced after {took:.1f} s, clients told within {waited:.2f} s; "
        f"{load.journal.summary()}\n{told(load.journal.failed)}"
    )
    assert after.keys() == before.keys()
    assert after[victim["id"]]["attempt"] == victim["attempt"] + 1
    assert len(load.journal.failed) <= IN_FLIGHT, told(load.journal.failed)
    assert waited < seen + 1, "a client waits for the dead VM longer than the platform knows of its death"
    assert set(executed(platform, load).values()) == {1}, "a request was executed twice"


def noticed(platform: Platform, instance_id: str) -> bool:
    return any(each["id"] == instance_id and each["phase"] != "healthy" for each in instances(platform, PAIR))


def test_a_zombie_is_not_adopted(platform: Platform) -> None:
    """A VMM that died while the platform was away, and whose new parent did not reap it.

    Only a VMM that this run of the platform started has a helper to lose; so this comes before any other restart.
    """
    before = {each["id"]: each for each in instances(platform, PAIR)}
    victim = next(each for each in before.values() if is_child(platform, vmm_of(platform, each["vm_id"])))
    pid = vmm_of(platform, victim["vm_id"])
    with subreaper():
        kill_platform(platform)
        until(lambda: parent_of(pid) == os.getpid(), "the VMM has become our child", within_s=5)
        os.kill(pid, signal.SIGKILL)
        until(lambda: is_zombie(pid), "it is a zombie", within_s=5)
        platform.start()
        until(lambda: noticed(platform, victim["id"]), "the dead VM is noticed", within_s=10)
        until(lambda: healthy(platform, PAIR, 2), "two healthy instances")
        assert is_zombie(pid)
        after = {each["id"]: each["attempt"] for each in instances(platform, PAIR)}
        assert after == {key: each["attempt"] + (key == victim["id"]) for key, each in before.items()}
        os.waitpid(pid, 0)


def test_a_killed_platform_interrupts_nobody_and_its_next_start_adopts_everything(platform: Platform) -> None:
    before = snapshot(platform, APPS)
    with load_on(platform, PAIR) as load:
        time.sleep(1)
        written = log_numbers(platform, CHATTY, "chatter")[-1]
        kill_platform(platform)
        back = time.monotonic() + AWAY_S
        while time.monotonic() < back:
            assert fetch(platform, CHATTY)[0] == 200
            time.sleep(0.2)
        assert qemu_processes(platform.key) == before.vmms
        started = platform.start()
        until(lambda: healthy(platform, PAIR, 2) and healthy(platform, CHATTY, 1), "all instances healthy", within_s=10)
        adopted = snapshot(platform, APPS)
        time.sleep(1)
    print(f"ready again after {started:.1f} s; {load.journal.summary()}")
    assert not load.journal.failed, told(load.journal.failed)
    assert adopted == before
    assert "inside" in platform.swg("exec", "-a", PAIR, "--", "/bin/sh", "-c", "echo inside")
    once = Counter(load.journal.acknowledged)
    until(lambda: executed(platform, load) == once, "each request is in the log once", within_s=10)
    until(lambda: log_numbers(platform, CHATTY, "chatter")[-1] > written, "the log goes on")
    numbers = log_numbers(platform, CHATTY, "chatter")
    assert len(numbers) == len(set(numbers))
    assert numbers == sorted(numbers)


@dataclass(frozen=True, slots=True)
class Debris:
    """What was put on the host, under whose names, and whether it is still there."""

    vmm: int
    tap: str
    cgroups: tuple[Path, ...]

    def living(self) -> list[str]:
        found = [f"vmm {self.vmm}"] if arguments_of(self.vmm) else []
        found += [f"tap {self.tap}"] if Path("/sys/class/net", self.tap).exists() else []
        return found + [f"cgroup {path}" for path in self.cgroups if path.exists()]


def qemu(name: str) -> tuple[str, ...]:
    """A VMM with this name that runs nothing."""
    return (QEMU, "-name", name, "-M", "none", "-nodefaults", "-display", "none", "-S")


@contextmanager
def planted(vmm_name: str, tap: str, cgroup: str) -> Iterator[Debris]:
    """A VMM, a tap and a cgroup in every hierarchy, with these names."""
    with ExitStack() as undo:
        vmm = undo.enter_context(
            sleeper(QEMU, "-name", vmm_name, "-M", "none", "-nodefaults", "-display", "none", "-S")
        )
        subprocess.run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], check=True)
        undo.callback(subprocess.run, ["ip", "link", "del", tap], check=False, capture_output=True)
        roots = [root for root in CGROUP_ROOTS if (root / "cgroup.procs").exists()]
        groups = tuple(root / cgroup for root in roots if (root / cgroup).parent.is_dir())
        for group in groups:
            group.mkdir()
            undo.callback(remove_directory, group)
        yield Debris(vmm, tap, groups)


def remove_directory(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.rmdir()


def haproxy_says(platform: Platform, command: str) -> str:
    """Ask the platform's HAProxy over its runtime API."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"/run/shellwego/{platform.key}/edge/admin.sock")
        connection.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def backend_of(platform: Platform, instance_id: str) -> str:
    """The backend that holds an instance's server."""
    return next(
        line.split()[1] for line in haproxy_says(platform, "show servers state").splitlines() if instance_id in line
    )


def test_debris_under_our_names_is_gone_10_s_after_a_start_and_foreign_things_stay(platform: Platform) -> None:
    before = snapshot(platform, APPS)
    backend = backend_of(platform, instances(platform, PAIR)[0]["id"])
    code = platform.key[:4]
    name_of_living = next(iter(before.vmms.values()))
    kill_platform(platform, only=HELPER)
    assert "New server registered" in haproxy_says(platform, f"add server {backend}/planted 127.0.0.1:1")
    haproxy_says(platform, f"set server {backend}/planted state ready")
    with (
        planted(
            f"swg-{platform.key}-aaaabbbbcccc", f"swg{code}aaaabbbb", f"swg-{platform.key}/vm-aaaabbbbcccc"
        ) as ours,
        planted("database", "tap-of-another", "database") as foreign,
        sleeper(*qemu(name_of_living)) as double,
    ):
        everything_foreign = foreign.living()
        began = time.monotonic()
        platform.start()
        until(lambda: not ours.living() and not arguments_of(double), "debris under our names is gone", within_s=10)
        until(lambda: "planted" not in haproxy_says(platform, "show servers state"), "the server is gone", within_s=10)
        assert time.monotonic() - began <= 10
        assert foreign.living() == everything_foreign
    assert snapshot(platform, APPS) == before
    until(lambda: healthy(platform, PAIR, 2), "the app is healthy")


@contextmanager
def subreaper() -> Iterator[None]:
    """Be the parent of the platform's orphans in place of init (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(36, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(36, 0, 0, 0, 0)


def is_child(platform: Platform, pid: int) -> bool:
    return platform.process is not None and parent_of(pid) == platform.process.pid


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def vmm_of(platform: Platform, vm_id: str) -> int:
    """The pid of a VM's VMM."""
    wanted = f"swg-{platform.key}-{vm_key(vm_id)}"
    return next(pid for pid, name in qemu_processes(platform.key).items() if name == wanted)


def test_vms_kept_at_a_graceful_end_are_adopted(platform: Platform) -> None:
    before = snapshot(platform, APPS)
    with load_on(platform, PAIR) as load:
        platform.extra = ("--keep-vms",)
        kill_platform(platform, only=CHILD)
        platform.start()
        assert platform.stop() == 0
        assert qemu_processes(platform.key) == before.vmms
        assert fetch(platform, PAIR)[0] == 200
        platform.extra = ()
        platform.start()
        until(lambda: healthy(platform, PAIR, 2), "two healthy instances", within_s=10)
        assert snapshot(platform, APPS) == before
    assert not load.journal.failed, told(load.journal.failed)


def answers(platform: Platform, app: str) -> bool:
    """Whether a request is answered; one that the dying HAProxy had accepted is reset."""
    try:
        return fetch(platform, app)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_killed_haproxy_is_rebuilt_at_once_from_the_last_routes(platform: Platform) -> None:
    master = haproxy_master(platform)
    assert master is not None
    killed = time.monotonic()
    os.kill(master, signal.SIGKILL)
    until(lambda: not arguments_of(master), "it is dead", within_s=1)
    until(lambda: answers(platform, PAIR), "the edge answers again", within_s=3)
    print(f"requests were answered again {time.monotonic() - killed:.2f} s after the kill")
    assert haproxy_master(platform) not in (None, master)
    assert fetch(platform, CHATTY)[0] == 200


def test_a_second_installation_comes_and_goes_and_the_first_does_not_notice(
    platform: Platform, registry: Registry
) -> None:
    before = snapshot(platform, APPS)
    with load_on(platform, PAIR) as load:
        with scratch_platform() as other:
            other.swg("apps", "create", PAIR)
            other.swg("deploy", "-a", PAIR, "-i", registry.push(hello("v2"), "hello:v2"), *PORT)
            assert "v2" in fetch(other, PAIR)[1]
            assert "v1" in fetch(platform, PAIR)[1]
            assert (other.data_dir / "subnet").read_text() != (platform.data_dir / "subnet").read_text()
        status, body = fetch(platform, PAIR)
    assert (status, "v1" in body) == (200, True)
    assert not load.journal.failed, told(load.journal.failed)
    assert snapshot(platform, APPS) == before
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert f"swg_{platform.key}" in tables


def test_a_platform_killed_in_the_middle_of_a_deploy_finishes_it_after_its_next_start(
    platform: Platform, registry: Registry
) -> None:
    """The VM that was booting is ended and begun anew: its configuration was gone with the platform."""
    old = {each["id"] for each in instances(platform, PAIR)}
    image = registry.push(hello("v2"), "hello:v2")
    with load_on(platform, PAIR) as load:
        platform.swg("deploy", "-a", PAIR, "-i", image, "--detach")
        until(lambda: any(each["phase"] == "starting" for each in instances(platform, PAIR)), "a new VM boots")
        kill_platform(platform)
        assert fetch(platform, PAIR)[0] == 200
        platform.start()
        until(lambda: deployment(platform)["finished"], "the deployment has ended")
        assert deployment(platform)["state"] == "succeeded", deployment(platform)
        until(lambda: healthy(platform, PAIR, 2), "two healthy instances")
    assert not load.journal.failed, told(load.journal.failed)
    assert not old & {each["id"] for each in instances(platform, PAIR)}
    assert "v2" in fetch(platform, PAIR)[1]
    assert len(qemu_processes(platform.key)) == 3, "two of this app, one of the other, and no more"


def deployment(platform: Platform) -> Any:
    """The last deployment of the pair."""
    return platform.json("status", "-a", PAIR)["deployment"]


def test_a_graceful_end_without_keeping_leaves_nothing(platform: Platform) -> None:
    """The last test of this platform: it stays down."""
    assert platform.stop() == 0
    assert of_installation(platform.data_dir) == frozenset()
