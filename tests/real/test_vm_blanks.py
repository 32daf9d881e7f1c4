"""Real VMs that begin as copies of a guest booted ahead: with disks, address and secrets of their own, and no one else's."""

from __future__ import annotations

import mmap
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from plasmavmc.blanks import Blank, Blanks
from plasmavmc.guest.api import ExecOutput
from plasmavmc.states import VmState
from plasmavmc.types import GIB, MIB, ExecSpec, NetworkSpec, VmResources
from tests.contract.images_samples import Sample
from tests.real.suspend_world import NOTHING, World, world

pytestmark = pytest.mark.real
CANARY = "canary-5f1b7e"


@pytest.fixture
async def host(tmp_path: Path, suspend_sample: Sample, suspend_images: Path) -> AsyncIterator[World]:
    async with world(tmp_path, suspend_sample, suspend_images) as made:
        made.parts.blanks = Blanks(1)
        yield made


async def said(host: World, vm_id: str, command: str) -> str:
    """What a command in the guest prints."""
    session = await host.manager.exec(vm_id, ExecSpec(("/bin/sh", "-c", command), user="root"))
    heard = [each.data async for each in session.output() if isinstance(each, ExecOutput)]
    return b"".join(heard).decode().strip()


def only_blank(blanks: Blanks) -> Blank:
    (shape,) = blanks.shapes
    blank = blanks.find(shape)
    assert blank is not None
    return blank


def holds(memory: int, text: bytes) -> bool:
    with mmap.mmap(memory, os.fstat(memory).st_size, prot=mmap.PROT_READ) as content:
        return content.find(text) >= 0


def was_restored(host: World, vm_id: str) -> bool:
    handle = host.manager.get(vm_id).handle
    assert handle is not None
    return b"\0-incoming\0" in Path(f"/proc/{handle.pid}/cmdline").read_bytes()


async def test_a_vm_that_begins_as_a_copy_has_everything_of_its_own(host: World) -> None:
    first = await host.started("first", env={"SECRET": CANARY})
    await host.parts.blanks.settled()
    blank = only_blank(host.parts.blanks)
    assert holds(blank.memory, b"Linux version"), "it is a guest that was booted"
    assert not holds(blank.memory, CANARY.encode()), "and knows nobody's secrets"

    larger = VmResources(memory_bytes=256 * MIB, disk_bytes=8 * GIB)
    second = await host.started("second", env={"SECRET": "its own"}, resources=larger)
    third = await host.started("third")
    assert [was_restored(host, vm) for vm in (first, second, third)] == [False, True, True]
    assert await said(host, second, "echo $SECRET") == "its own"
    size_kib = await said(host, second, "df -P / | tail -1 | tr -s ' ' | cut -d' ' -f2")
    assert int(size_kib) << 10 > 7 * GIB
    identities = [await host.identity(vm) for vm in (first, second, third)]
    for part in ("hostname", "ipv4", "mac"):
        assert len({identity[part] for identity in identities}) == 3, part
    drawn = [await said(host, vm, "cat /proc/sys/kernel/random/boot_id") for vm in (first, second, third)]
    assert len(set(drawn)) == 3
    clock = float(await said(host, second, "date +%s"))
    assert abs(clock - host.parts.clock()) < 5

    assert [await host.ask(second, "/count") for _ in range(2)] == ["1", "2"]
    await host.manager.suspend(second)
    await host.crash()
    await host.manager.resume(second)
    assert await host.ask(second, "/count") == "3"
    assert await host.ask(third, "/count") == "1", "adopted by the next life of the engine"
    for vm in (first, second, third):
        await host.manager.stop(vm)
        await host.manager.delete(vm)
    assert await host.leftovers() == NOTHING


async def test_a_vm_without_a_network_begins_as_a_copy_of_one_without(host: World) -> None:
    ids = []
    for name, networks in (("first", ()), ("second", ()), ("third", (NetworkSpec("nic_third", "net_1"),))):
        spec = host.spec(name, networks=networks, command=("sleep", "600"), entrypoint=())
        host.manager.create(spec)
        host.manager.start(spec.id)
        ids.append(spec.id)
        await host.reaches(spec.id, VmState.RUNNING)
        await host.parts.blanks.settled()
    assert [was_restored(host, vm) for vm in ids] == [False, True, False]
    assert await said(host, "vm_second", "ls /sys/class/net") == "lo"
