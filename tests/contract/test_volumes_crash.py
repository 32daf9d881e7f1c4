"""The process is killed at every step of every order for a volume: what the next one finds is whole, and nothing else."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from plasmavmc.storage.volumes.backend import SendReceive, VolumeDriver
from plasmavmc.storage.volumes.choose import file_volumes
from plasmavmc.types import MIB
from tests.contract.volumes_contract import marked, read, write
from tests.forks import in_child

SIZE = 16 * MIB
MOST_STEPS = 200
KILLED = 9
CHANGES = ("open", "os.", "shutil.", "tempfile.")

Order = Callable[[VolumeDriver], Coroutine[None, None, None]]
State = dict[str, tuple[bytes, list[str]]]
"""Volumes with what was written to them, and their snapshots."""
Opening = Callable[[], Coroutine[None, None, VolumeDriver]]
"""The next process, which finds what the one before left."""


def killed_at(step: int, opening: Opening, order: Order, changes: tuple[str, ...]) -> bool:
    """Give an order in a process that ends before its `step`th change; False where it was done before."""
    left = step

    def count(event: str, _arguments: object) -> None:
        nonlocal left
        if event.startswith(changes):
            left -= 1
            if left == 0:
                os._exit(KILLED)

    async def give() -> int:
        driver = await opening()
        sys.addaudithook(count)
        await order(driver)
        return 0

    code = in_child(lambda: asyncio.run(give()))
    assert code in (0, KILLED)
    return code == KILLED


def at_every_step(tmp_path: Path, order: Order) -> Iterator[VolumeDriver]:
    """Of a directory with one volume and its snapshot: what is left after each kill, opened again."""
    for step in range(1, MOST_STEPS):
        directory = tmp_path / f"step{step}"

        async def opening(directory: Path = directory) -> VolumeDriver:
            return file_volumes(directory)

        asyncio.run(prepared(file_volumes(directory)))
        killed = killed_at(step, opening, order, CHANGES)
        again = file_volumes(directory)
        assert not [path for path in directory.rglob("*.part*")]
        yield again
        if not killed:
            assert step > 2
            return
    raise AssertionError("it never came to its end")


async def prepared(driver: VolumeDriver) -> None:
    await driver.create("vol_1", SIZE, marked)
    await write(driver, "vol_1", b"before")
    await driver.snapshot("vol_1", "snap_1")
    await write(driver, "vol_1", b"after!")


async def received(driver: VolumeDriver) -> None:
    """A volume of another node, with a snapshot."""
    assert isinstance(driver, SendReceive)
    await driver.receive("vol_2", "snap_2", SIZE, marked, sealed=False, since="")


async def received_since(driver: VolumeDriver) -> None:
    """What follows a snapshot that is there."""
    assert isinstance(driver, SendReceive)
    await driver.receive("vol_1", "snap_2", SIZE, marked, sealed=False, since="snap_1")


async def found(driver: VolumeDriver) -> State:
    return {
        volume.volume_id: (
            await read(driver, volume.volume_id, 6),
            [snapshot.snapshot_id for snapshot in volume.snapshots],
        )
        for volume in await driver.volumes()
    }


BEFORE: State = {"vol_1": (b"after!", ["snap_1"])}


ORDERS = pytest.mark.parametrize(
    ("order", "done"),
    [
        (lambda driver: driver.create("vol_2", SIZE, marked), {**BEFORE, "vol_2": (bytes(6), [])}),
        (lambda driver: driver.snapshot("vol_1", "snap_2"), {"vol_1": (b"after!", ["snap_1", "snap_2"])}),
        (lambda driver: driver.clone("snap_1", "vol_2", 2 * SIZE), {**BEFORE, "vol_2": (b"before", [])}),
        (lambda driver: driver.restore("vol_1", "snap_1"), {"vol_1": (b"before", ["snap_1"])}),
        (received, {**BEFORE, "vol_2": (bytes(6), ["snap_2"])}),
        (received_since, {"vol_1": (b"after!", ["snap_1", "snap_2"])}),
        (lambda driver: driver.delete_snapshot("snap_1"), {"vol_1": (b"after!", [])}),
        (lambda driver: driver.delete("vol_1", with_snapshots=True), {}),
    ],
    ids=["create", "snapshot", "clone", "restore", "receive", "receive_since", "delete_snapshot", "delete_all"],
)


@ORDERS
def test_a_killed_order_was_done_or_was_not_and_can_be_given_again(tmp_path: Path, order: Order, done: State) -> None:
    seen = [asyncio.run(found(driver)) for driver in at_every_step(tmp_path, order)]
    assert all(state in (BEFORE, done) for state in seen)
    assert seen[0] == BEFORE
    assert seen[-1] == done


def test_a_volume_that_was_being_deleted_is_there_or_gone(tmp_path: Path) -> None:
    async def delete(driver: VolumeDriver) -> None:
        await driver.delete_snapshot("snap_1")
        await driver.delete("vol_1")

    states = [{}, BEFORE, {"vol_1": (b"after!", [])}]
    seen = [asyncio.run(found(driver)) for driver in at_every_step(tmp_path, delete)]
    assert all(state in states for state in seen)
    assert seen[-1] == {}
