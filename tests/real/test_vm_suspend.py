"""Suspend, resume and fork on real VMs: a program's memory goes on, and nothing of another life comes with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from itertools import pairwise
from pathlib import Path

import pytest

from plasmavmc.errors import GuestError, HostError, PlasmaError
from plasmavmc.states import VmState
from plasmavmc.types import ExecSpec, ForkIdentity
from tests.contract.images_samples import Sample
from tests.real.suspend_world import NOTHING, World, flip, world

pytestmark = pytest.mark.real
LONGER = pytest.mark.nightly


@pytest.fixture
async def host(tmp_path: Path, suspend_sample: Sample, suspend_images: Path) -> AsyncIterator[World]:
    async with world(tmp_path, suspend_sample, suspend_images) as made:
        yield made


async def run(*command: str) -> None:
    assert await (await asyncio.create_subprocess_exec(*command)).wait() == 0


def near(seen: str) -> bool:
    return abs(float(seen) - time.time()) < 2.0


async def test_memory_and_disk_go_on_through_suspends_and_a_crash_of_the_platform(host: World) -> None:
    vm = await host.started("one")
    assert [await host.ask(vm, "/count") for _ in range(3)] == ["1", "2", "3"]
    assert await host.ask(vm, "/disk?a") == "a"
    before = await host.identity(vm)
    await host.manager.suspend(vm)
    assert await host.leftovers() == {**NOTHING, "snapshots": {host.snapshot(vm)}}
    assert for_nobody_else(host.snapshots)
    await host.crash()
    assert host.manager.get(vm).status.state is VmState.SUSPENDED
    await asyncio.sleep(2.5)  # time passes, which the memory knows nothing of
    await host.manager.resume(vm)
    assert near(await host.ask(vm, "/time"))
    assert await host.ask(vm, "/count") == "4"
    assert await host.identity(vm) == {**before, "generation": "1"}
    await host.manager.suspend(vm)
    await host.manager.resume(vm)
    assert await host.ask(vm, "/count") == "5"
    assert (await host.identity(vm))["generation"] == "2"
    assert await host.ask(vm, "/disk?b") == "ab"
    await host.manager.suspend(vm)
    await host.manager.stop(vm)
    assert host.manager.get(vm).status.state is VmState.STOPPED
    await host.manager.delete(vm)
    assert await host.leftovers() == NOTHING
    assert await host.parts.storage.disks() == ()


def for_nobody_else(directory: Path) -> bool:
    """Whether root and the platform's user alone can open a directory, and what is below it."""
    return not any(path.stat().st_mode & 0o077 for path in (directory, *directory.rglob("*")))


async def test_memory_goes_on_in_another_engine_at_a_new_address(
    host: World, tmp_path: Path, suspend_sample: Sample, suspend_images: Path
) -> None:
    vm = await host.started("one")
    assert [await host.ask(vm, "/count") for _ in range(3)] == ["1", "2", "3"]
    assert await host.ask(vm, "/disk?a") == "a"
    before = await host.identity(vm)
    await host.manager.suspend(vm)
    (tmp_path / "elsewhere").mkdir()
    subnet = IPv4Network("10.64.32.0/20")
    async with world(tmp_path / "elsewhere", suspend_sample, suspend_images, subnet) as elsewhere:
        assert await host.manager.snapshot_hosts() == await elsewhere.manager.snapshot_hosts()
        await elsewhere.manager.import_snapshot(elsewhere.spec("two"), host.manager.export_snapshot(vm))
        await host.manager.delete(vm)
        assert await host.leftovers() == NOTHING
        await elsewhere.crash()
        await elsewhere.manager.resume("vm_two")
        assert await elsewhere.ask("vm_two", "/count") == "4"
        assert await elsewhere.ask("vm_two", "/disk?b") == "ab"
        assert near(await elsewhere.ask("vm_two", "/time"))
        after = await elsewhere.identity("vm_two")
        assert (after["hostname"], after["generation"]) == ("two", "1")
        assert all(after[name] != before[name] for name in ("ipv4", "ipv6", "mac", "machine_id", "hosts"))
        assert elsewhere.manager.get("vm_two").status.endpoints == (f"tcp:{after['ipv4']}",)


async def test_copies_share_nothing_that_tells_who_they_are(host: World) -> None:
    vm = await host.started("one", snapshot_safe=True)
    for _ in range(2):
        await host.ask(vm, "/count")
    await host.ask(vm, "/disk?origin")
    await host.manager.fork(vm, [ForkIdentity(f"vm_copy{number}", f"copy{number}") for number in range(3)])
    copies = [f"vm_copy{number}" for number in range(3)]
    for copy in copies:
        await host.reaches(copy, VmState.RUNNING)
        await host.answers(copy)
    everyone = [vm, *copies]
    assert [await host.ask(each, "/count") for each in everyone] == ["3"] * 4
    assert all([near(await host.ask(each, "/time")) for each in everyone])
    for path in ("/uuid", "/openssl", "/tls"):
        assert len({await host.ask(each, path) for each in everyone}) == 4, path
    identities = [await host.identity(each) for each in everyone]
    for name in ("hostname", "file", "ipv4", "ipv6", "mac", "hosts", "machine_id"):
        assert len({identity[name] for identity in identities}) == 4, name
    private = [host.manager.get(each).status.private_address for each in everyone]
    assert [identity["ipv6"] for identity in identities] == private
    assert [await host.ask(vm, f"/name?{address}") for address in private[1:]] == ["copy0", "copy1", "copy2"]
    assert await host.ask(copies[0], f"/name?{private[0]}") == "one"
    assert [identity["generation"] for identity in identities] == ["", "1", "1", "1"]
    assert [identity["hostname"] for identity in identities] == ["one", "copy0", "copy1", "copy2"]
    for number, each in enumerate(everyone):
        assert await host.ask(each, f"/disk?{number}") == f"origin{number}"


async def test_no_code_of_a_copy_runs_before_it_knows_who_and_when_it_is(host: World) -> None:
    vm = await host.started("one", snapshot_safe=True)
    await host.manager.suspend(vm)
    await asyncio.sleep(3.0)
    woken_at = time.time()
    await host.manager.resume(vm)
    seen = json.loads(await host.ask(vm, "/watch"))
    jumps = [(before, after) for (before, _), (after, _) in pairwise(seen) if after - before > 2.0]
    assert jumps
    assert abs(jumps[-1][1] - woken_at) < 2.0, "the first time it saw is the right one"
    await host.manager.fork(vm, [ForkIdentity("vm_copy", "copy")])
    forked_at = time.time()
    await host.reaches("vm_copy", VmState.RUNNING)
    await host.answers("vm_copy")
    seen = json.loads(await host.ask("vm_copy", "/watch"))
    [(first_as_copy, _)] = [(when, name) for when, name in seen if name == "copy"][:1]
    last_as_origin = max(when for when, name in seen if name == "one")
    assert last_as_origin < forked_at, "it never ran as the origin after the fork"
    assert last_as_origin < first_as_copy


async def test_a_copy_is_a_vm_like_any_other(host: World) -> None:
    vm = await host.started("one", snapshot_safe=True)
    await host.manager.fork(vm, [ForkIdentity("vm_copy", "copy")])
    await host.reaches("vm_copy", VmState.RUNNING)
    await host.manager.delete(vm)
    await host.answers("vm_copy")
    await host.crash()
    assert await host.ask("vm_copy", "/count") == "1"
    session = await host.manager.exec("vm_copy", ExecSpec(("/bin/sh", "-c", "exit 7")))
    assert [item async for item in session.output()][-1].code == 7  # type: ignore[union-attr]
    await host.manager.suspend("vm_copy")
    await host.manager.resume("vm_copy")
    assert await host.ask("vm_copy", "/count") == "2"
    assert (await host.identity("vm_copy"))["hostname"] == "copy"
    await host.manager.fork("vm_copy", [ForkIdentity("vm_grandchild", "grandchild")])
    await host.reaches("vm_grandchild", VmState.RUNNING)
    await host.answers("vm_grandchild")
    assert await host.ask("vm_grandchild", "/count") == "3"
    for each in ("vm_copy", "vm_grandchild"):
        await host.manager.delete(each)
    assert await host.leftovers() == NOTHING
    assert await host.parts.storage.disks() == ()


async def test_a_damaged_snapshot_is_never_loaded(host: World) -> None:
    vm = await host.started("one")
    await host.ask(vm, "/count")
    await host.manager.suspend(vm)
    place = host.snapshot(vm)
    manifest = json.loads((place / "manifest").read_bytes().split(b"\n", 1)[1])
    damages = {
        "memory": manifest["memory"][len(manifest["memory"]) // 2][0] + 100,
        "state": 4000,
        "manifest": 200,
    }
    for name, at in damages.items():
        flip(place / name, at)
        with pytest.raises(HostError) as refused:
            await host.manager.resume(vm)
        assert refused.value.code == "snapshot-damaged", name
        assert await host.leftovers() == {**NOTHING, "snapshots": {place}}
        flip(place / name, at)
    for name in damages:
        (place / name).rename(place / "away")
        with pytest.raises(HostError) as refused:
            await host.manager.resume(vm)
        assert refused.value.code == "snapshot-damaged", name
        (place / "away").rename(place / name)
    await host.manager.resume(vm)
    assert await host.ask(vm, "/count") == "2"


async def test_a_suspend_that_is_cancelled_at_any_moment_lets_the_program_go_on(host: World) -> None:
    vm = await host.started("one")
    for count, patience_s in enumerate((0.0, 0.02, 0.05, 0.1, 0.2, 0.4), start=1):
        suspending = asyncio.create_task(host.manager.suspend(vm))
        await asyncio.sleep(patience_s)
        suspending.cancel()
        await asyncio.wait({suspending})
        if host.manager.get(vm).status.state is VmState.SUSPENDED:
            await host.manager.resume(vm)
        assert await host.ask(vm, "/count") == str(count)
        assert near(await host.ask(vm, "/time"))
        assert (await host.leftovers())["snapshots"] == set()
    await host.manager.delete(vm)
    assert await host.leftovers() == NOTHING


async def test_a_full_disk_while_suspending_lets_the_program_go_on(host: World) -> None:
    vm = await host.started("one")
    await run("mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(host.snapshots))
    try:
        with pytest.raises(PlasmaError) as failed:
            await host.manager.suspend(vm)
        assert failed.value.code == "disk-full"
        assert await host.ask(vm, "/count") == "1"
        assert (await host.leftovers())["snapshots"] == set()
    finally:
        await run("umount", str(host.snapshots))
    await host.manager.suspend(vm)
    await host.manager.resume(vm)
    assert await host.ask(vm, "/count") == "2"


@pytest.mark.parametrize("moment_s", [0.05, 0.3, *(pytest.param(each, marks=LONGER) for each in (0.0, 0.15, 1.0))])
async def test_a_platform_that_dies_while_suspending_finds_the_vm_running_or_suspended(
    host: World, moment_s: float
) -> None:
    vm = await host.started("one")
    assert await host.ask(vm, "/count") == "1"
    await host.crash_while_suspending(vm, moment_s)
    state = host.manager.get(vm).status.state
    assert state in (VmState.RUNNING, VmState.SUSPENDED)
    if state is VmState.SUSPENDED:
        await host.manager.resume(vm)
    await host.answers(vm)
    assert await host.ask(vm, "/count") == "2"
    assert near(await host.ask(vm, "/time"))


async def test_a_vmm_that_is_killed_while_suspending_leaves_nothing(host: World) -> None:
    vm = await host.started("one")
    handle = host.manager.get(vm).handle
    assert handle is not None
    suspending = asyncio.create_task(host.manager.suspend(vm))
    await host.reaches(vm, VmState.SUSPENDING)
    os.kill(handle.pid, signal.SIGKILL)
    await asyncio.wait({suspending})
    state = host.manager.get(vm).status.state
    if suspending.exception() is None:
        assert state is VmState.SUSPENDED
    else:
        await host.reaches(vm, VmState.FAILED)
    await host.manager.delete(vm)
    assert await host.leftovers() == NOTHING


async def test_an_image_whose_hook_fails_does_not_run_on_as_another(host: World) -> None:
    vm = await host.started("one", env={"HOOK_FAILS": "yes"})
    await host.manager.suspend(vm)
    with pytest.raises(GuestError) as refused:
        await host.manager.resume(vm)
    assert refused.value.code == "thaw-bad-hook"
    assert host.manager.get(vm).status.state is VmState.FAILED
    await host.manager.delete(vm)
    assert await host.leftovers() == NOTHING
