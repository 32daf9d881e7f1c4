"""P16 on ZFS: a snapshot and a clone of a volume, as the engine makes them through root's helper, against `zfs snapshot` and
`zfs clone` of the same dataset by hand. Before each order all volumes are looked at, as an agent does before it gives any;
that is no part of the order. The pool lies in memory, made for the occasion; where the host has no ZFS in its kernel both
sides ask the daemon of zfs-fuse. The volume is tiny, for neither copies anything.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from bench.measure import Result, interleaved
from bench.p16_volumes import compared, timed
from plasmavmc.storage.volumes.zfs.driver import open_zfs_volumes
from plasmavmc.types import GIB, MIB
from plasmavmc.volumes import Volumes
from tests.contract.host_rig import real_helper
from tests.contract.zfs_pool import KERNEL, command, command_when_free, pool

ROUNDS = 40
SIZE, WRITTEN = 16 * MIB, 2 * MIB


class Sides:
    """One volume with a snapshot, and what is made of it; all that is made goes again, beside what is measured."""

    def __init__(self, runner: asyncio.Runner, volumes: Volumes, dataset: str) -> None:
        self._runner = runner
        self._volumes = volumes
        self._dataset = dataset
        self._numbers = itertools.count()

    def snapshot(self) -> float:
        name = f"snap_{next(self._numbers)}"
        self._runner.run(self._volumes.list())
        took = timed(lambda: self._runner.run(self._volumes.snapshot("vol_1", name)))
        self._runner.run(self._volumes.delete_snapshot(name))
        return took

    def clone(self) -> float:
        name = f"vol_{next(self._numbers)}x"
        self._runner.run(self._volumes.list())
        took = timed(lambda: self._runner.run(self._volumes.clone("snap_origin", name, SIZE)))
        self._runner.run(self._volumes.delete(name))
        return took

    def raw_snapshot(self) -> float:
        name = f"{self._dataset}/vol_1@raw{next(self._numbers)}"
        took = timed(lambda: _run("snapshot", name))
        command_when_free("zfs", "destroy", name)
        return took

    def raw_clone(self) -> float:
        name = f"{self._dataset}/raw{next(self._numbers)}"
        took = timed(lambda: _run("clone", f"{self._dataset}/vol_1@snap_origin", name))
        command("zfs", "unmount", name)
        command_when_free("zfs", "destroy", name)
        return took


def _run(*words: str) -> None:
    subprocess.run(["zfs", *words], check=True)


async def _prepared(volumes: Volumes) -> None:
    await volumes.create("vol_1", SIZE)
    await volumes.snapshot("vol_1", "snap_origin")


def run() -> list[Result]:
    """Both orders in turn with the commands by hand."""
    with (
        tempfile.TemporaryDirectory(prefix="swg-bench-") as name,
        pool(GIB) as tank,
        asyncio.Runner() as runner,
    ):
        place, stack = Path(name), AsyncExitStack()
        place.chmod(0o755)
        template = place / "template"
        template.write_bytes(os.urandom(WRITTEN))

        async def laid(_size_bytes: int) -> Path:
            return template

        helper = runner.run(stack.enter_async_context(real_helper(place, zfs=tank)))
        try:
            volumes = Volumes(runner.run(open_zfs_volumes(helper.host)), laid)
            runner.run(_prepared(volumes))
            sides = Sides(runner, volumes, f"{tank}/{helper.names.dataset}")
            measured = interleaved(ROUNDS, sides.snapshot, sides.raw_snapshot, sides.clone, sides.raw_clone)
        finally:
            runner.run(stack.aclose())
    kind = "OpenZFS in the kernel" if KERNEL.exists() else "zfs-fuse"
    about = f"driver zfs on {kind}, a volume of 16 MiB with 2 MiB written, {ROUNDS} rounds in turn"
    return [
        compared("snapshot", measured[0], measured[1], "zfs snapshot", about),
        compared("clone", measured[2], measured[3], "zfs clone, which mounts it", about),
    ]
