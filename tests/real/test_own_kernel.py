"""The kernel of our own configuration, built from the distribution's source and booted beside the distribution's kernel."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo.images import base
from plasmavmc.guest.api import ExecExit
from plasmavmc.guest.boot import BootAssets, load_assets
from plasmavmc.guest.cache import CACHE_VARIABLE
from plasmavmc.guest.kernel import own_kernel
from plasmavmc.guest.ownkernel.build import OwnKernels, default_jobs
from plasmavmc.types import ExecSpec
from tests.host_cache import cache_directory
from tests.real.guest_vm import DEADLINE_S, Parts, clone_layer, running
from tests.real.suspend_world import app_image, world

NEVER_THERE = {"rdma", "misc"}
"""Controllers of hardware that no microVM has."""
pytestmark = [pytest.mark.real, pytest.mark.nightly]

LOOK = """
import ctypes, json, os, pathlib, socket

libc = ctypes.CDLL(None, use_errno=True)


def has(number):
    ctypes.set_errno(0)
    libc.syscall(number, -1, -1, -1, -1, -1, -1)  # nothing that any of them does
    return ctypes.get_errno() != 38


def opens(family, kind, protocol=0):
    try:
        socket.socket(family, kind, protocol).close()
    except OSError as error:
        return error.errno != 97 and error.errno != 93
    return True


calls = {"io_uring_setup": 425, "bpf": 321, "userfaultfd": 323, "memfd_create": 319, "mq_open": 240, "shmget": 29,
    "seccomp": 317, "landlock_create_ruleset": 444, "perf_event_open": 298, "membarrier": 324, "kcmp": 312,
    "fanotify_init": 300, "inotify_init1": 294, "process_vm_readv": 310, "name_to_handle_at": 303, "add_key": 248}
sockets = {"ipv6": (10, 1), "packet": (17, 3), "vsock": (40, 1), "nftables": (16, 3, 12), "mptcp": (2, 1, 262)}
words = {path.name: path.read_text().split()[0]
    for path in pathlib.Path("/sys/devices/system/cpu/vulnerabilities").iterdir()}
print(json.dumps({
    "calls": [name for name, number in calls.items() if has(number)],
    "sockets": [name for name, how in sockets.items() if opens(*how)],
    "files": [line.split()[-1] for line in open("/proc/filesystems")],
    "groups": [line.split()[0] for line in open("/proc/cgroups")],
    "spaces": os.listdir("/proc/self/ns"),
    "devices": os.listdir("/dev"),
    "vulnerable": sorted(name for name, word in words.items() if word.startswith("Vulnerable")),
    "modules": open("/proc/modules").read(),
}))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the test's with both kernels; our own is the host's where it has one, and built now where not."""
    made, present = tmp_path_factory.mktemp("cache"), cache_directory()
    shutil.copytree(present / "kernel", made / "kernel", symlinks=True)
    kernels = OwnKernels(made)
    if own_kernel(made) is None:
        if missing := kernels.missing():
            pytest.skip(f"no kernel can be built here: apt-get install {' '.join(missing)}")
        kernel, built = asyncio.run(kernels.build(default_jobs(), lambda stage, steps: None))
        assert built
        assert asyncio.run(kernels.build(1, lambda stage, steps: None)) == (kernel, False)
    return made


@dataclass(frozen=True)
class Both:
    own: BootAssets
    distribution: BootAssets


@pytest.fixture(scope="module")
def both(cache: Path) -> Both:
    """What guests of each boot from."""
    kernels = OwnKernels(cache)
    asyncio.run(kernels.use_distribution())
    distribution = load_assets(cache)
    asyncio.run(kernels.use_own())
    return Both(load_assets(cache), distribution)


def system_image(directory: Path) -> Path:
    directory.mkdir()
    image = directory / "image"
    subprocess.run(["tar2sqfs", "-q", "-f", image], input=base().read_bytes(), check=True, capture_output=True)
    return image


async def look(directory: Path, assets: BootAssets) -> dict[str, list[str]]:
    """What a program finds in a guest."""
    image = system_image(directory)
    async with running(Parts(directory, image, await clone_layer(directory / "layer"), 256, assets)) as vm:
        channel = await vm.start("/bin/sleep", "600")
        session = await channel.exec(ExecSpec(("/usr/bin/python3", "-c", LOOK)))
        written = b""
        async with asyncio.timeout(DEADLINE_S):
            async for item in session.output():
                if isinstance(item, ExecExit):
                    assert item.code == 0, (item, written)
                    break
                written += item.data
        found: dict[str, list[str]] = json.loads(written)
        return found


async def test_programs_find_what_they_need_and_no_less_than_under_the_distributions_kernel(
    both: Both, tmp_path: Path
) -> None:
    ours, theirs = await look(tmp_path / "own", both.own), await look(tmp_path / "distribution", both.distribution)
    assert {"overlay", "squashfs", "ext4", "fuse", "cgroup", "cgroup2", "hugetlbfs", "mqueue", "autofs"} <= set(
        ours["files"]
    )
    assert {"ipv6", "packet", "vsock", "nftables"} <= set(ours["sockets"])
    assert {"fuse", "loop-control", "net"} <= set(ours["devices"])
    for part in ("calls", "sockets", "groups", "spaces"):
        assert not set(theirs[part]) - set(ours[part]) - NEVER_THERE, part
    assert not set(ours["vulnerable"]) - set(theirs["vulnerable"])
    assert not ours["modules"]


def test_the_initramfs_has_our_init_and_nothing_else(both: Both) -> None:
    assert both.own.initrd.stat().st_size < both.distribution.initrd.stat().st_size / 4


async def test_a_vm_that_was_suspended_under_the_distributions_kernel_goes_on_beside_one_of_our_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    await OwnKernels(cache).use_distribution()
    async with world(tmp_path, app_image(tmp_path), tmp_path / "images") as host:
        vm_id = await host.started("one")
        assert await host.ask(vm_id, "/count") == "1"
        await host.manager.suspend(vm_id)
        await OwnKernels(cache).use_own()
        await host.crash()
        other = await host.started("two")
        await host.manager.resume(vm_id)
        assert await host.ask(vm_id, "/count") == "2"
        await host.manager.suspend(other)
        await host.manager.resume(other)
        await host.answers(other)
        kernels = {record.spec.id: record.kernel for record in host.parts.records.load()}
        assert kernels[other] == host.parts.assets.kernel_hash != kernels[vm_id]
