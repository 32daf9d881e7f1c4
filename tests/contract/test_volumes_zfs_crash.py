"""The engine is killed before each command for ZFS and each change of a file, in every order for a volume: what the next
one finds is whole, and nothing else is in the pool. As `test_volumes_crash` for files."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.storage.volumes.zfs.driver import open_zfs_volumes
from plasmavmc.types import GIB
from tests.contract.test_volumes_crash import (
    BEFORE,
    MOST_STEPS,
    SIZE,
    Opening,
    Order,
    State,
    found,
    killed_at,
    prepared,
    received,
    received_since,
)
from tests.contract.volumes_contract import marked, write
from tests.contract.zfs_pool import RootZfs, command, pool

pytestmark = [pytest.mark.real, pytest.mark.nightly]

_CHANGES = (
    "subprocess.Popen",
    *(f"os.{call}" for call in ("rename", "truncate", "remove", "rmdir", "mkdir", "chown", "chmod")),
)
YOUNGER: State = {"vol_1": (b"latest", ["snap_1", "snap_2"])}
CLONED: State = {"vol_1": (b"after!", []), "vol_2": (b"before", [])}
GIVEN_UP: State = {"vol_1": (b"before", ["snap_1"])}


@pytest.fixture(scope="module")
def datasets() -> Iterator[Iterator[str]]:
    """Names for new ones, in a pool of their own."""
    with pool(GIB) as tank:
        yield (f"{tank}/{number}" for number in itertools.count())


def filesystems(dataset: str) -> set[str]:
    """Of an installation, by their last names."""
    names = command("zfs", "list", "-H", "-o", "name", "-r", "-t", "filesystem", f"{dataset}/swg-test").split()
    return {name.rpartition("/")[2] for name in names[1:]}


async def younger(driver: VolumeDriver) -> None:
    """With a second snapshot, so that the way back to the first one is a copy."""
    await prepared(driver)
    await driver.snapshot("vol_1", "snap_2")
    await write(driver, "vol_1", b"latest")


async def watched(driver: VolumeDriver) -> None:
    """As `younger`; and what is in the first one was looked at."""
    await younger(driver)
    await look_at(driver)


async def cloned(driver: VolumeDriver) -> None:
    """With a clone, and the snapshot between them removed: it lives on unseen."""
    await prepared(driver)
    await driver.clone("snap_1", "vol_2", SIZE)
    await driver.delete_snapshot("snap_1")


async def look_at(driver: VolumeDriver) -> None:
    os.close(await driver.open_snapshot("snap_1"))


def at_every_step(datasets: Iterator[str], scratch: Path, before: Order, order: Order) -> Iterator[State]:
    """What the next engine finds after each kill, the last time after none."""
    for step in range(1, MOST_STEPS):
        dataset, mounts = next(datasets), scratch / str(step)
        command("zfs", "create", dataset)

        async def opening(dataset: str = dataset, mounts: Path = mounts) -> VolumeDriver:
            return await open_zfs_volumes(RootZfs(dataset, mounts))

        asyncio.run(_given(opening, before))
        killed = killed_at(step, opening, order, _CHANGES)
        with closing(RootZfs(dataset, mounts)) as host:
            state = asyncio.run(_found(host))
            assert filesystems(dataset) == set(state), "nothing is left that is no volume"
            yield state
        if not killed:
            assert step > 2
            return
    raise AssertionError("it never came to its end")


async def _given(opening: Opening, order: Order) -> None:
    await order(await opening())


async def _found(host: RootZfs) -> State:
    return await found(await open_zfs_volumes(host))


@pytest.mark.parametrize(
    ("before", "order", "states"),
    [
        (
            prepared,
            lambda driver: driver.create("vol_2", SIZE, marked),
            (BEFORE, {**BEFORE, "vol_2": (bytes(6), [])}),
        ),
        (
            prepared,
            lambda driver: driver.snapshot("vol_1", "snap_2"),
            (BEFORE, {"vol_1": (b"after!", ["snap_1", "snap_2"])}),
        ),
        (
            prepared,
            lambda driver: driver.clone("snap_1", "vol_2", 2 * SIZE),
            (BEFORE, {**BEFORE, "vol_2": (b"before", [])}),
        ),
        (prepared, lambda driver: driver.resize("vol_1", 2 * SIZE), (BEFORE, BEFORE)),
        (prepared, lambda driver: driver.restore("vol_1", "snap_1"), (BEFORE, {"vol_1": (b"before", ["snap_1"])})),
        (
            younger,
            lambda driver: driver.restore("vol_1", "snap_1"),
            (YOUNGER, {"vol_1": (b"before", ["snap_1", "snap_2"])}),
        ),
        (prepared, look_at, (BEFORE, BEFORE)),
        (prepared, received, (BEFORE, {**BEFORE, "vol_2": (bytes(6), ["snap_2"])})),
        (prepared, received_since, (BEFORE, GIVEN_UP, {"vol_1": (b"before", ["snap_1", "snap_2"])})),
        (prepared, lambda driver: driver.delete_snapshot("snap_1"), (BEFORE, {"vol_1": (b"after!", [])})),
        (cloned, lambda driver: driver.delete("vol_1"), (CLONED, {"vol_2": (b"before", [])})),
        (watched, lambda driver: driver.delete("vol_1", with_snapshots=True), (YOUNGER, {})),
    ],
    ids=(
        *("create", "snapshot", "clone", "resize", "restore", "restore_older", "look"),
        *("receive", "receive_since", "delete_snapshot", "delete", "delete_all"),
    ),
)
def test_a_killed_order_was_done_or_was_not_and_nothing_is_left_of_it(
    datasets: Iterator[str], tmp_path: Path, before: Order, order: Order, states: tuple[State, ...]
) -> None:
    seen = list(at_every_step(datasets, tmp_path, before, order))
    assert all(state in states for state in seen)
    assert (seen[0], seen[-1]) == (states[0], states[-1])
