"""The host's cache: what every installation on this host boots from. Filled by `plasmavmc kernel fetch` and
`plasmavmc guest build` (scripts/setup calls both), read by everybody, so 0755 and 0644 whatever the umask.

    kernel/<release>/     vmlinux, sha256, modules-2/*.ko, modules-vsock/*.ko; one of our own configuration has `config` in
                          place of modules
    kernel/current        link to the distribution's in use
    kernel/own            link to our own, where it is to be used before the distribution's
    guest/<key>/          initrd, initrd-vsock, kernel (the release they were built for)
    guest/current         link to the one for the distribution's kernel
    guest/own-<…>         link to the one for our own kernel of that release
    disks/ext4-<bytes>-v<layout>.img

Everything appears complete or not at all: it is made beside its place and renamed. VMMs read a kernel once, at their start,
so replacing one harms no running VM; what a suspended one began with stays, to be found by its digest.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from plasmavmc.errors import ConflictError, HostError

DEFAULT_CACHE = Path("/var/cache/shellwego")
CACHE_VARIABLE = "SHELLWEGO_CACHE"
"""In the environment; names another directory."""
CURRENT = "current"


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
        raise _not_writable(parent, error) from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _not_writable(parent: Path, error: OSError) -> HostError:
    return HostError(
        "cache-not-writable",
        f"cannot write to the cache {parent}: {error.strerror}",
        resolution=f"Run as root, or set {CACHE_VARIABLE} to a directory of yours.",
    )


@contextmanager
def building_site(parent: Path) -> Iterator[tuple[Path, int]]:
    """A workshop for what takes long: one at a time, and what an earlier one left that was killed is cleared away.

    With the directory comes the descriptor that holds the place. A child that keeps it holds the place until it ends,
    even where we are killed; so nobody clears away what it still writes to.

    Raises:
        ConflictError: `already-building`.
        HostError: `cache-not-writable`.
    """
    site = parent / ".building"
    with ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            place = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, place)
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(site, ignore_errors=True)
            site.mkdir()
        except BlockingIOError as error:
            raise ConflictError(
                "already-building", f"somebody is building in {parent} already", resolution="Wait until that has ended."
            ) from error
        except OSError as error:
            raise _not_writable(parent, error) from error
        stack.callback(shutil.rmtree, site, ignore_errors=True)
        yield site, place


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


def make_current(place: Path, name: str = CURRENT) -> None:
    """Let the link `name` beside `place` point to it, atomically."""
    with workshop(place.parent) as made:
        link = made / name
        link.symlink_to(place.name)
        link.replace(place.parent / name)
