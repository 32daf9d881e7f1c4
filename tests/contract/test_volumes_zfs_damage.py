"""A disk that lost what was written to it: ZFS finds that by its sums and answers EIO, for real. Who reads what is lost is
told so, nothing is made of a part, and what is not lost stays of use."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from plasmavmc.errors import HostError
from plasmavmc.storage.volumes.zfs.driver import ZfsVolumes, open_zfs_volumes
from plasmavmc.types import MIB
from plasmavmc.volumes import Volumes
from tests.contract.volumes_contract import SIZE, blank, read, write
from tests.contract.zfs_pool import RootZfs, command, pool_and_disk, taken_out

pytestmark = [pytest.mark.real, pytest.mark.nightly]

LOST = os.urandom(128 * 1024)
"""What was at 1 MiB of the volume. The beginning of it, so long, is not lost: what reads all of it gets that part first."""
HEALTHY = 64 * 1024
WHOLE = b"what came later"


async def no_template(_size_bytes: int) -> Path:
    raise AssertionError("nothing is laid into a volume here")


async def prepared(driver: ZfsVolumes) -> None:
    """Two snapshots, of which the older one cannot be gone back to but by a copy."""
    await driver.create("vol_1", SIZE, blank)
    await write(driver, "vol_1", LOST)
    await driver.snapshot("vol_1", "snap_1")
    await write(driver, "vol_1", WHOLE, at=8 * MIB)
    await driver.snapshot("vol_1", "snap_2")


def damage(disk: Path) -> None:
    """Everywhere where it lies."""
    content, part = disk.read_bytes(), LOST[HEALTHY : HEALTHY + 4096]
    assert part in content
    with disk.open("r+b") as file:
        at = content.find(part)
        while at >= 0:
            os.pwrite(file.fileno(), bytes(4096), at)
            at = content.find(part, at + 1)


async def sent(volumes: Volumes, snapshot_id: str) -> bytes:
    """To another node."""
    return b"".join([part async for part in volumes.content.send(snapshot_id)])


def refused(caught: pytest.ExceptionInfo[HostError]) -> bool:
    return caught.value.code == "storage-error" and "rror" in caught.value.brief


async def test_what_a_disk_lost_is_told_and_the_rest_stays_of_use(tmp_path: Path) -> None:
    with pool_and_disk(256 * MIB) as (tank, disk):
        command("zfs", "create", f"{tank}/volumes")
        with closing(RootZfs(f"{tank}/volumes", tmp_path / "before")) as host:
            await prepared(await open_zfs_volumes(host))
        with taken_out(tank, disk):
            damage(disk)
        with closing(RootZfs(f"{tank}/volumes", tmp_path / "after")) as host:
            await looked_at(await open_zfs_volumes(host), host)


async def looked_at(driver: ZfsVolumes, host: RootZfs) -> None:
    volumes = Volumes(driver, no_template)
    with pytest.raises(OSError, match="rror"):  # as the VMM meets it
        await read(driver, "vol_1", 4096, MIB + HEALTHY)
    async with volumes.content.reading("snap_1") as reader:  # as a backup does
        with pytest.raises(HostError) as caught:
            await reader.read(MIB, len(LOST))
    assert refused(caught)
    with pytest.raises(HostError) as caught:
        await sent(volumes, "snap_1")
    assert refused(caught)
    with pytest.raises(HostError) as caught:
        await driver.restore("vol_1", "snap_1")
    assert refused(caught)

    # Nothing was begun, and nothing changed.
    assert [path.name for path in (host.root / "vol_1").iterdir()] == ["volume"]
    assert await read(driver, "vol_1", len(WHOLE), at=8 * MIB) == WHOLE

    # What shares the damage can be made and used, and be written over.
    await driver.clone("snap_2", "vol_2", SIZE)
    assert await read(driver, "vol_2", len(WHOLE), at=8 * MIB) == WHOLE
    await write(driver, "vol_2", LOST)
    assert await read(driver, "vol_2", len(LOST)) == LOST
    for volume_id, snapshot_id in (("vol_2", ""), ("vol_1", "snap_1"), ("vol_1", "snap_2")):
        await (driver.delete_snapshot(snapshot_id) if snapshot_id else driver.delete(volume_id))
    await driver.delete("vol_1")
    assert await driver.volumes() == ()
