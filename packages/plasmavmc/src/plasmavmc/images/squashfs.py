"""From a tar stream to a squashfs file, by `tar2sqfs` of squashfs-tools-ng.

lz4, since a guest reads more often than a node builds: it decompresses fastest, and packs a 137 MB tree in 0.3 s. The
output depends on the input only (times come from the archive, the superblock's from nowhere).

Traps of tar2sqfs 1.2.0: it skips what it dislikes unless told `--no-skip`; it fails on a name given twice; an entry
`./` becomes the root's attributes. On a full disk it says "I/O error" and removes its output, so nothing tells why: we
look at the room ourselves while we feed it. Debian's `unsquashfs` cannot read its lz4 images; the kernel can.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.host.run import feeding
from plasmavmc.images.files import check_room

BUILD_TIMEOUT_S = 1800.0
"""For the whole build: tar2sqfs waits where we do."""


def pack_argv(target: Path, jobs: int) -> tuple[str, ...]:
    return ("tar2sqfs", "--quiet", "--force", "--no-skip", "--compressor", "lz4", "--num-jobs", str(jobs), str(target))


async def pack(tar: AsyncIterator[bytes], target: Path) -> None:
    """Write the squashfs of a tar stream to `target`. On an error the caller removes what is there.

    Raises:
        CapacityError: `disk-full`.
        HostError: `squashfs-failed`, `missing-program`.
        UnavailableError: `program-timeout`.
        Whatever the stream raises.
    """
    try:
        async with feeding(pack_argv(target, os.cpu_count() or 1), timeout_s=BUILD_TIMEOUT_S) as child:
            async for chunk in tar:
                check_room(target.parent, len(chunk))
                await child.write(chunk)
            completed = await child.finish()
    except HostError as error:
        if error.code == "program-ended":
            raise _failure(error.details) from error
        raise
    if completed.returncode != 0:
        raise _failure(completed.complaint)


def _failure(words: str) -> HostError:
    return HostError("squashfs-failed", "tar2sqfs could not build the root file system", details=words)
