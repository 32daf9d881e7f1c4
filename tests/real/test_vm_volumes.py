"""Volumes in real VMs: what is written outlives them, grows under them, and lies sealed on the host."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from plasmavmc.errors import CapacityError
from plasmavmc.guest.api import ExecExit
from plasmavmc.states import VmState
from plasmavmc.storage.sparse import data_ranges
from plasmavmc.types import MIB, DiskSource, DiskSpec, ExecSpec
from tests.contract.images_samples import Sample
from tests.real.suspend_world import PATIENCE_S, World, world

pytestmark = pytest.mark.real

KEY = os.urandom(32)
DISK_BYTES = 128 * MIB
CANARY = "nobody on the host shall read this"


@pytest.fixture
async def host(tmp_path: Path, suspend_sample: Sample, suspend_images: Path) -> AsyncIterator[World]:
    """Its volumes lie on a disk that is soon full."""
    async with world(tmp_path, suspend_sample, suspend_images) as made:
        place = str(made.directory / "volumes")
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", place)
        try:
            yield made
        finally:
            run("umount", "--lazy", place)


def mounts(**volumes: str) -> tuple[DiskSpec, ...]:
    return tuple(
        DiskSpec(volume_id, DiskSource.VOLUME, reference=volume_id, destination=destination)
        for volume_id, destination in volumes.items()
    )


async def runs(host: World, name: str, volumes: tuple[DiskSpec, ...]) -> str:
    spec = host.spec(name, volumes=volumes, entrypoint=(), command=("/bin/sleep", "1000"), networks=())
    host.manager.create(spec)
    host.manager.start(spec.id)
    await host.reaches(spec.id, VmState.RUNNING)
    return spec.id


async def ended(host: World, vm_id: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        revision = host.manager.revision
        while host.manager.get(vm_id).status.state is not VmState.FAILED:
            revision = await host.manager.changed(revision)


async def sh(host: World, vm_id: str, script: str) -> str:
    """What a script writes in a VM, as the image's user."""
    session = await host.manager.exec(vm_id, ExecSpec(("/bin/sh", "-c", f"{script} 2>&1")))
    said = b""
    async for item in session.output():
        if isinstance(item, ExecExit):
            assert item.code == 0, said.decode()
            break
        said += item.data
    return said.decode().strip()


def told_to(pid: int) -> bytes:
    """Arguments and environment of a process."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.decode()


def replayed(volume: Path, path: str) -> str:
    """A file of a volume that was not unmounted, after its journal was replayed."""
    subprocess.run(["e2fsck", "-fy", "-E", "journal_only", volume], capture_output=True, check=False)
    return run("debugfs", "-R", f"cat {path}", str(volume)).strip()


def left_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def check_whole(volume: Path) -> None:
    """Its file system is sound, and has nothing to replay."""
    run("e2fsck", "-fn", str(volume))


def data(path: Path) -> bytes:
    """What a file has that is no hole."""
    with path.open("rb") as file:
        ranges = list(data_ranges(file.fileno()))
        return b"".join(os.pread(file.fileno(), end - start, start) for start, end in ranges)


async def test_what_is_written_outlives_its_vm_grows_under_it_and_lies_sealed(host: World) -> None:
    volumes, stored = host.manager.volumes, host.directory / "volumes"
    await volumes.create("vol_open", 32 * MIB)
    await volumes.create("vol_sealed", 160 * MIB, key=KEY)
    vm = await runs(host, "one", mounts(vol_open="/srv/made/here", vol_sealed="/sealed"))

    # New volumes are empty, the user's own, and as large as their disks.
    assert await sh(host, vm, "ls -A /srv/made/here /sealed | grep -v :; stat -c %U /sealed") == "nobody"
    size = "stat -f -c %b /srv/made/here; stat -f -c %b /sealed"
    before = [int(count) for count in (await sh(host, vm, size)).split()]
    assert before[1] * 4096 > 130 * MIB
    await sh(host, vm, f"echo {CANARY} > /srv/made/here/a; echo {CANARY} > /sealed/a; sync /sealed/a")

    # They grow under it, and a snapshot has what was written before it, and nothing later.
    await volumes.resize("vol_open", 160 * MIB)
    await volumes.resize("vol_sealed", 192 * MIB)
    after = [int(count) for count in (await sh(host, vm, size)).split()]
    assert after[0] * 4096 > 140 * MIB
    assert after[1] * 4096 > before[1] * 4096 + 25 * MIB
    await volumes.snapshot("vol_open", "snap_open", freeze=True)
    await volumes.snapshot("vol_sealed", "snap_sealed")
    await sh(host, vm, "echo later > /srv/made/here/b; echo later > /sealed/b")

    # No key in sight, and no word of what was sealed.
    handle = host.manager.get(vm).handle
    assert handle is not None
    assert KEY.hex().encode() not in told_to(handle.pid)
    await host.manager.stop(vm)
    assert host.manager.get(vm).status.reason_code == "stopped"
    assert CANARY.encode() in data(stored / "vol_open" / "volume.raw")
    for path in (stored / "vol_sealed").iterdir():
        assert len(data(path)) > MIB
        for secret in (CANARY.encode(), KEY, KEY.hex().encode()):
            assert secret not in data(path)

    # It was unmounted: nothing is to be replayed. One that was frozen is whole as well.
    for path in (stored / "vol_open" / "volume.raw", stored / "vol_open" / "snap_open.snapshot"):
        check_whole(path)

    # Clones go on from their snapshots; the volume itself from its last word.
    await volumes.clone("snap_open", "vol_two", 160 * MIB)
    await volumes.clone("snap_sealed", "vol_three", 224 * MIB)
    cloned = await runs(host, "two", mounts(vol_two="/open", vol_three="/sealed", vol_open="/first"))
    assert await sh(host, cloned, "cat /open/a /sealed/a; ls /open /sealed /first") == "\n".join(
        (CANARY, CANARY, "/first:\na\nb\n", "/open:\na\n", "/sealed:\na")
    )
    await host.manager.suspend(cloned)
    await host.manager.resume(cloned)
    await sh(host, cloned, "echo awake > /open/c; sync /open/c")

    # The host's disk is full: the guest is told, its VM goes on. Its VMM is killed: the journal has what was synced.
    assert "error" in await sh(host, cloned, "dd if=/dev/urandom of=/first/big bs=1M count=120 conv=fsync || true")
    assert await sh(host, cloned, "cat /sealed/a") == CANARY
    handle = host.manager.get(cloned).handle
    assert handle is not None
    os.kill(handle.pid, signal.SIGKILL)
    await ended(host, cloned)
    await host.manager.delete(cloned)
    assert replayed(stored / "vol_two" / "volume.raw", "/c") == "awake"

    # What nobody has can be what it was, once there is room for it, and goes when it is to.
    with pytest.raises(CapacityError):
        await volumes.restore("vol_open", "snap_open")
    for volume_id in ("vol_two", "vol_three"):
        await volumes.delete(volume_id)
    await volumes.restore("vol_open", "snap_open")
    check_whole(stored / "vol_open" / "volume.raw")
    for snapshot_id in ("snap_open", "snap_sealed"):
        await volumes.delete_snapshot(snapshot_id)
    for volume_id in ("vol_open", "vol_sealed"):
        await volumes.delete(volume_id)
    assert await volumes.list() == ()
    assert left_in(stored) == []
