"""What zfs says when it refuses, in the words of volumes; by a stand-in, as zfs-fuse does not survive a full disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plasmavmc.errors import CapacityError, HostError
from plasmavmc.host.zfs import ZfsCreate, ZfsDestroy, ZfsOrder
from plasmavmc.storage.volumes.zfs import driver as zfs_driver
from plasmavmc.storage.volumes.zfs.driver import open_zfs_volumes
from plasmavmc.types import MIB

EMPTY = "tank/swg-x\tavailable\t1000\n"


class RefusingZfs:
    """`Zfs` that makes nothing, and says why."""

    def __init__(self, root: Path, words: str) -> None:
        self.root = root
        self.words = words
        self.asked: list[ZfsOrder] = []
        self.looks = 0

    async def zfs_open(self) -> Path:
        return self.root

    async def zfs_look(self) -> str:
        self.looks += 1
        begun = any(isinstance(order, ZfsCreate) for order in self.asked)
        gone = any(isinstance(order, ZfsDestroy) for order in self.asked)
        return EMPTY + ("tank/swg-x/vol_1\treferenced\t7\n" if begun and not gone else "")

    async def zfs_do(self, order: ZfsOrder) -> None:
        self.asked.append(order)
        if not isinstance(order, ZfsDestroy):
            raise HostError("zfs-failed", "zfs create failed", details=self.words)


@pytest.mark.parametrize(
    ("words", "error", "code"),
    [
        ("cannot create 'tank/swg-x/vol_1': out of space", CapacityError, "disk-full"),
        ("cannot create 'tank/swg-x/vol_1': quota exceeded", CapacityError, "disk-full"),
        ("cannot create 'tank/swg-x/vol_1': I/O error", HostError, "storage-error"),
    ],
)
async def test_what_zfs_refuses_is_told_and_nothing_is_left(
    tmp_path: Path, words: str, error: type[HostError], code: str
) -> None:
    host = RefusingZfs(tmp_path, words)
    driver = await open_zfs_volumes(host)
    with pytest.raises(error) as caught:
        await driver.create("vol_1", MIB, lambda _file: None)
    assert caught.value.code == code
    assert isinstance(host.asked[-1], ZfsDestroy)
    assert await driver.volumes() == ()
    assert await driver.free_bytes() == 1000


async def test_it_is_looked_again_only_where_something_may_have_changed(tmp_path: Path) -> None:
    host = RefusingZfs(tmp_path, "cannot create 'tank/swg-x/vol_1': I/O error")
    driver = await open_zfs_volumes(host)
    looks = host.looks
    assert await driver.find("vol_1") is None
    assert await driver.origin("snap_1") is None
    assert host.looks == looks
    with pytest.raises(HostError):
        await driver.create("vol_1", MIB, lambda _file: None)
    looks = host.looks
    assert await driver.find("vol_1") is None
    assert host.looks == looks + 1
    await driver.free_bytes()
    assert host.looks == looks + 2, "what is used and what is free changes by itself"


def test_a_volume_that_goes_back_to_an_older_snapshot_is_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the disk takes less at once than it is given."""
    older, whole = os.urandom(2 * MIB), os.pwrite
    (tmp_path / "older").write_bytes(older)
    (tmp_path / "volume").write_bytes(b"newer")
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: whole(file, data[:100_000], at))
    with (tmp_path / "older").open("rb") as content:
        zfs_driver._replace(tmp_path, content.fileno(), 3 * MIB)
    assert (tmp_path / "volume").read_bytes() == older + bytes(MIB)
