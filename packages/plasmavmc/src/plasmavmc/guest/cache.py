"""The host's cache: what every installation on this host boots from. Filled by `plasmavmc kernel fetch` and
`plasmavmc guest build` (scripts/setup calls both), read by everybody, so 0755 and 0644 whatever the umask.

    kernel/<release>/     vmlinux, sha256, modules/*.ko, modules-vsock/*.ko
    kernel/current        link to the one in use
    guest/<key>/          initrd, initrd-vsock, kernel (the release they were built for)
    guest/current         link to the one in use
    disks/ext4-<bytes>-v<layout>.img

Everything appears complete or not at all: it is made beside its place and renamed. VMMs read a kernel once, at their start,
so replacing one harms no running VM.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plasmavmc.errors import HostError

DEFAULT_CACHE = Path("/var/cache/shellwego")
CACHE_VARIABLE = "SHELLWEGO_CACHE"
CURRENT = "current"


def cache_directory() -> Path:
    """The cache of this host: `SHELLWEGO_CACHE`, else /var/cache/shellwego."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)


@contextmanager
def workshop(parent: Path) -> Iterator[Path]:
    """A directory to make something in, on the file system of `parent`; gone afterwards.

    Raises:
        HostError: `cache-not-writable`.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        made = Path(tempfile.mkdtemp(prefix=".making-", dir=parent))
    except OSError as error:
        raise HostError(
            "cache-not-writable",
            f"cannot write to the cache {parent}: {error.strerror}",
            resolution=f"Run as root, or set {CACHE_VARIABLE} to a directory of yours.",
        ) from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def publish(made: Path, place: Path) -> None:
    """Put a finished file or directory in its place, readable by all. A directory that another process put there
    meanwhile stays: its name is the key of its content."""
    _open_to_all(made)
    try:
        made.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def _open_to_all(path: Path) -> None:
    if not path.is_dir():
        path.chmod(0o644)
        return
    path.chmod(0o755)
    for child in path.iterdir():
        _open_to_all(child)


def make_current(place: Path) -> None:
    """Let `current` beside `place` point to it, atomically."""
    with workshop(place.parent) as made:
        link = made / CURRENT
        link.symlink_to(place.name)
        link.replace(place.parent / CURRENT)
