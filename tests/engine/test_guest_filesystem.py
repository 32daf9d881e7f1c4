"""What is laid into a new volume: sound on zeros, and on the noise that a sealed volume is where nothing was laid."""

from __future__ import annotations

import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from plasmavmc.guest.filesystem import TEMPLATE_BYTES, volume_template
from plasmavmc.storage.sparse import data_ranges
from plasmavmc.types import GIB, MIB


def check(image: Path) -> None:
    checked = subprocess.run(["/usr/sbin/e2fsck", "-fn", image], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout.decode()


def described(image: Path) -> str:
    return subprocess.run(["/usr/sbin/dumpe2fs", "-h", image], capture_output=True, check=True).stdout.decode()


def filled(template: Path, into: Path) -> Path:
    """With noise where it has holes."""
    with template.open("rb") as source, into.open("wb") as target:
        size = os.fstat(source.fileno()).st_size
        ranges = [(0, 0), *data_ranges(source.fileno()), (size, size)]
        target.truncate(size)
        for (start, end), (following, _) in pairwise(ranges):
            os.pwrite(target.fileno(), os.pread(source.fileno(), end - start, start), start)
            for at in range(end, following, MIB):
                os.pwrite(target.fileno(), os.urandom(min(MIB, following - at)), at)
    return into


@pytest.mark.parametrize("size", [16 * MIB, 40 * MIB])
async def test_the_file_system_needs_no_zeros_but_those_that_are_laid(tmp_path: Path, size: int) -> None:
    template = await volume_template(tmp_path, size)
    assert template.stat().st_size == size
    assert template.stat().st_blocks * 512 < 6 * MIB
    check(template)
    check(filled(template, tmp_path / "noise"))


async def test_large_volumes_share_one_template(tmp_path: Path) -> None:
    template = await volume_template(tmp_path, 10 * GIB)
    assert template.stat().st_size == TEMPLATE_BYTES
    assert await volume_template(tmp_path, 20 * GIB) == template
    told = described(template)
    assert "has_journal" in told
    assert "orphan_file" not in told
    assert "Inodes per group:         8192" in told
