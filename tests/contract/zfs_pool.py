"""A pool of ZFS for tests, in a file, by the daemon of zfs-fuse; and root's part of the driver without a helper between.

One daemon serves a host. Who comes first starts it, who goes last ends it, told by a lock that all of them share; so runs
side by side do not meet, as each has a pool of its own. Where the host has ZFS in its kernel, that is used.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plasmavmc.host.helper.zfs import HelperZfs
from plasmavmc.host.threads import in_thread
from plasmavmc.host.zfs import ZfsOrder

LOCK = Path("/run/swgtest-zfs.lock")
PIDFILE = Path("/run/swgtest-zfs.pid")
KERNEL = Path("/dev/zfs")
START_S = 90.0


class RootZfs:
    """`Zfs` by root itself."""

    def __init__(self, dataset: str, run_root: Path, name: str = "swg-test") -> None:
        self.helper = HelperZfs(dataset, name, run_root, os.getuid(), os.getgid())
        self.root = run_root / name

    def close(self) -> None:
        """Unmount everything, as a host that goes down."""
        self.helper.close()

    async def zfs_open(self) -> Path:
        return Path(await in_thread(self.helper.open))

    async def zfs_look(self) -> str:
        with os.fdopen(await in_thread(self.helper.look), "rb") as told:
            return told.read().decode()

    async def zfs_do(self, order: ZfsOrder) -> None:
        await in_thread(self.helper.do, order)


def command(*argv: str) -> str:
    """Run `zfs` or `zpool` as an operator does."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@contextmanager
def pool(size_bytes: int) -> Iterator[str]:
    """A new pool, gone with all that is in it at the end. In memory, for every order waits until it is on the disk."""
    with pool_and_disk(size_bytes) as (name, _):
        yield name


@contextmanager
def pool_and_disk(size_bytes: int) -> Iterator[tuple[str, Path]]:
    """As `pool`, with the file that is its disk."""
    name = f"swgtest{secrets.token_hex(4)}"
    with daemon(), tempfile.NamedTemporaryFile(prefix=name, dir="/dev/shm") as image:
        image.truncate(size_bytes)
        command("zpool", "create", "-m", "none", name, image.name)
        try:
            yield name, Path(image.name)
        finally:
            command_when_free("zpool", "destroy", "-f", name)


@contextmanager
def taken_out(name: str, disk: Path) -> Iterator[None]:
    """In the block the pool is out of the host, and nothing of it is remembered afterwards."""
    command("zpool", "export", name)
    try:
        yield
    finally:
        command("zpool", "import", "-d", str(disk.parent), name)


def command_when_free(*argv: str) -> None:
    """As `command`, of what was unmounted before: the daemon hears of that a moment later, and finds it busy until then."""
    deadline = time.monotonic() + START_S
    while (done := subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)).returncode:
        assert time.monotonic() < deadline, f"{argv}: {done.stderr}"
        time.sleep(0.05)


@contextmanager
def daemon() -> Iterator[None]:
    """ZFS answers in the block."""
    if KERNEL.exists():
        yield
        return
    with LOCK.open("w") as lock:
        while not _had(lock.fileno()):
            time.sleep(0.05)
        try:
            yield
        finally:
            _end_if_last(lock.fileno())


def _had(lock: int) -> bool:
    """Whether ZFS answers, and does so as long as we have the lock; False: who went last ends it just now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return _answers()
    if not _answers():
        PIDFILE.unlink(missing_ok=True)  # with one that was left it does not start
        subprocess.run(["zfs-fuse", "--pidfile", str(PIDFILE)], check=True, capture_output=True)
        _wait()
    fcntl.flock(lock, fcntl.LOCK_SH)
    return True


def _answers() -> bool:
    return subprocess.run(["zpool", "list", "-H"], capture_output=True, check=False, timeout=60).returncode == 0


def _wait() -> None:
    deadline = time.monotonic() + START_S
    while not _answers():
        assert time.monotonic() < deadline, "zfs-fuse does not answer"
        time.sleep(0.05)


def _end_if_last(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if PIDFILE.exists():  # else it is the host's own
        process = os.pidfd_open(int(PIDFILE.read_text()))
        try:
            signal.pidfd_send_signal(process, signal.SIGTERM)
            assert select.select([process], [], [], START_S)[0], "zfs-fuse does not end"
        finally:
            os.close(process)
        PIDFILE.unlink(missing_ok=True)
