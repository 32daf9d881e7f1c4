"""The file system that a new volume begins with: a small ext4, laid by the host and grown by the guest to its disk.

Theory. What is laid is the same for all volumes, so it is made once and copied; formatting per volume would take seconds,
and growing a file system from outside would have the host read what a guest wrote. The template is a sparse file whose
data is exactly what the formatter wrote, zeros included: a sealed volume is noise where nothing is laid. To know what it
wrote, it is let loose on a file full of a pattern.

Its features are listed, so that it is the same from every formatter and any kernel since 4.4 mounts it; its inodes are
counted for the volume that it will become. The journal is not all zeros, nor are its inode tables: both are marked so. The
room for group descriptors is for a tebibyte; beyond it the kernel goes on in another layout (meta_bg).

Source: mke2fs(8), ext4(5), Documentation/filesystems/ext4.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.guest.cache import publish, workshop
from plasmavmc.host.run import run
from plasmavmc.host.threads import in_thread
from plasmavmc.types import MIB

MIN_VOLUME_BYTES = 16 * MIB
"""With less there is no room for a journal."""
TEMPLATE_BYTES = 128 * MIB
"""One whole group of blocks: what is added later looks like it."""
_LAYOUT = 1
_BLOCK = 4096
_PATTERN = b"\xa5" * _BLOCK
_FORMAT_S = 60.0
_FEATURES = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink"
    ",extra_isize,metadata_csum,resize_inode"
)
_GROWS_TO_BLOCKS = 2**28
_FIXED = "00000000-0000-4000-8000-000000000002"
_locks: dict[Path, asyncio.Lock] = {}


async def volume_template(cache: Path, size_bytes: int) -> Path:
    """A file with what is laid into a new volume of this size, which may be larger than the file; made once per host.

    Raises:
        HostError: `missing-program`, `volume-template`, `cache-not-writable`.
    """
    size = min(size_bytes, TEMPLATE_BYTES)
    parent = cache / "disks"
    place = parent / f"volume-{size}-v{_LAYOUT}.img"
    async with _locks.setdefault(place, asyncio.Lock()):
        if not place.is_file():
            with workshop(parent) as made:
                full, sparse = made / "full", made / "sparse"
                await in_thread(full.write_bytes, _PATTERN * (size // _BLOCK))
                completed = await run(mkfs_argv(full), timeout_s=_FORMAT_S)
                if completed.returncode != 0:
                    raise HostError(
                        "volume-template", f"cannot format a volume of {size} bytes", details=completed.complaint
                    )
                await in_thread(_keep_what_was_written, full, sparse)
                publish(sparse, place)
    return place


def mkfs_argv(image: Path) -> list[str]:
    """How it is formatted; the fixed UUID and hash seed make it the same on every host."""
    extended = f"nodiscard,lazy_itable_init=1,lazy_journal_init=1,resize={_GROWS_TO_BLOCKS},hash_seed={_FIXED}"
    return [
        *("mkfs.ext4", "-q", "-F"),
        *("-b", str(_BLOCK), "-i", "16384", "-I", "256", "-m", "0"),
        *("-L", "volume", "-U", _FIXED, "-O", _FEATURES, "-E", extended),
        str(image),
    ]


def _keep_what_was_written(full: Path, sparse: Path) -> None:
    with full.open("rb") as source, sparse.open("wb") as target:
        while block := source.read(_BLOCK):
            if block == _PATTERN:
                target.seek(_BLOCK, 1)
            else:
                target.write(block)
        target.truncate(full.stat().st_size)
