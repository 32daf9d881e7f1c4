"""P16: a snapshot and a clone of a volume, as the engine makes them, against the raw command for the same copy: on xfs
(shared blocks), made in a file for the occasion. Ours is on the disk when it returns; the raw command's need not be."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Result, difference, interleaved, median
from plasmavmc.storage.volumes.choose import choose_volumes
from plasmavmc.types import GIB, MIB
from plasmavmc.volumes import Volumes

ROUNDS = 40
SIZE, WRITTEN = GIB, 128 * MIB
MOST_S = 0.010


@contextmanager
def disk() -> Iterator[Path]:
    """An xfs of its own."""
    with tempfile.TemporaryDirectory(prefix="swg-bench-", dir="/var/tmp") as name:
        image, place = Path(name) / "xfs", Path(name) / "disk"
        with image.open("wb") as file:
            file.truncate(2 * GIB)
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
        place.mkdir()
        subprocess.run(["mount", "-o", "loop", image, place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


async def prepared(volumes: Volumes, place: Path) -> Path:
    """A volume with something in it, and a snapshot; the volume's file."""
    await volumes.create("vol_1", SIZE)
    path = place / "volumes" / "vol_1" / "volume.raw"
    with path.open("r+b") as file:
        for at in range(0, WRITTEN, MIB):
            os.pwrite(file.fileno(), os.urandom(MIB), 256 * MIB + at)
        os.fsync(file.fileno())
    await volumes.snapshot("vol_1", "snap_origin")
    return path


def run() -> list[Result]:
    """Both orders in turn with the raw command."""
    with disk() as place, asyncio.Runner() as runner:
        template = place / "template"
        template.write_bytes(b"a file system")

        async def laid(_size_bytes: int) -> Path:
            return template

        driver = choose_volumes(place / "volumes")
        volumes = Volumes(driver, laid)
        source = runner.run(prepared(volumes, place))
        numbers = itertools.count()

        def snapshot() -> float:
            return timed(lambda: runner.run(volumes.snapshot("vol_1", f"snap_{next(numbers)}")))

        def clone() -> float:
            return timed(lambda: runner.run(volumes.clone("snap_origin", f"vol_{next(numbers)}x", SIZE)))

        def raw() -> float:
            command = ["cp", "--reflink=always", source, place / f"copy{next(numbers)}"]
            return timed(lambda: subprocess.run(command, check=True))

        sides = interleaved(ROUNDS, snapshot, clone, raw)
    about = f"driver {driver.name}, a volume of 1 GiB with 128 MiB written, {ROUNDS} rounds in turn"
    return [
        compared(what, ours, sides[2], "cp --reflink=always", about)
        for what, ours in zip(("snapshot", "clone"), sides, strict=False)
    ]


def compared(what: str, ours: Sequence[float], theirs: Sequence[float], raw: str, about: str) -> Result:
    """What is added to the raw command."""
    added = difference(ours, theirs)
    measured = f"+{added.value * 1000:.1f} ms [{added.low * 1000:.1f}–{added.high * 1000:.1f}]"
    details = (f"{what}: {median(ours).value * 1000:.1f} ms; {raw}: {median(theirs).value * 1000:.1f} ms ({about})",)
    title = f"{what} of a volume, against the raw command"
    return Result("P16", title, measured, "+ ≤ 10 ms", added.value <= MOST_S, details)
