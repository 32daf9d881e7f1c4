"""The host's power is cut, on a real ext4: the file system as its disk has it is mounted anew. What an order had done when
it returned is there, and so is what the next process found of one that was killed: by then others rely on it.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.storage.volumes.choose import file_volumes
from plasmavmc.types import MIB
from tests.contract.test_volumes_crash import CHANGES, MOST_STEPS, ORDERS, Order, State, found, killed_at, prepared

pytestmark = [pytest.mark.real, pytest.mark.nightly]

_SELDOM = "loop,commit=300"
"""By itself the file system brings nothing to the disk for as long as a test runs."""


@contextmanager
def mounted(image: Path, place: Path, options: str) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-o", options, str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


class Disk:
    """An ext4 whose power can be cut."""

    def __init__(self, image: Path, place: Path, scratch: Path) -> None:
        self.place = place
        self._image = image
        self._scratch = scratch

    def after_a_cut(self, name: str) -> State:
        """What the volumes in this directory are to whoever starts then."""
        image = self._scratch / "cut"
        shutil.copyfile(self._image, image)
        try:
            with mounted(image, self._scratch / f"after-{name}", "loop") as place:
                return asyncio.run(found(file_volumes(place / name)))
        finally:
            image.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    image = tmp_path / "ext4"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with ExitStack() as stack:
        yield Disk(image, stack.enter_context(mounted(image, tmp_path / "mnt", _SELDOM)), tmp_path)


@ORDERS
def test_what_was_told_before_the_power_was_cut_is_there(disk: Disk, order: Order, done: State) -> None:
    for step in range(1, MOST_STEPS):
        directory = disk.place / str(step)

        async def opening(directory: Path = directory) -> VolumeDriver:
            return file_volumes(directory)

        asyncio.run(prepared(file_volumes(directory)))
        if not killed_at(step, opening, order, CHANGES):
            assert disk.after_a_cut(directory.name) == done
            return
        told = asyncio.run(found(file_volumes(directory)))
        assert disk.after_a_cut(directory.name) == told, f"after a kill at step {step}"
        shutil.rmtree(directory)
    raise AssertionError("it never came to its end")
