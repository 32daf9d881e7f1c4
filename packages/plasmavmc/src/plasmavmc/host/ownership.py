"""Directories and files that root makes for an unprivileged user, and looks at again later.

Trap: such a directory belongs to the user. What root reads or writes there may have been put there by whoever took that
user over: a link to a file of root's, a pipe that never answers. So root follows no link in it, gives away nothing that
it did not make, and believes only what has the form of what it wrote itself.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.host.files import sync_directory

OF_A_FILE_SYSTEM = frozenset({"lost+found"})
"""What an empty directory may hold."""
_MAX_OWN_FILE = 256


def own_directory(path: Path, uid: int, gid: int) -> None:
    """Make a directory the user's; one that is there already must be his, or empty.

    Raises:
        HostError: `no-directory`, it cannot be made; `foreign-directory`.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _take_over(path, descriptor, uid, gid)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HostError(
            "no-directory",
            f"the directory {path} cannot be made or owned: {error.strerror}",
            resolution="Choose another place with --data-dir, or mend its file system.",
        ) from error


def _take_over(path: Path, descriptor: int, uid: int, gid: int) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != uid:
        if set(os.listdir(descriptor)) - OF_A_FILE_SYSTEM:
            raise HostError(
                "foreign-directory",
                f"the directory {path} holds files, and belongs to the user {status.st_uid}, not to {uid}",
                resolution="Choose a new or an empty directory with --data-dir.",
            )
        os.fchown(descriptor, uid, gid)
    if status.st_uid != uid or status.st_mode & 0o022:
        os.fchmod(descriptor, 0o700)


def open_own(path: Path, flags: int, owners: Collection[int]) -> int:
    """Open a file in such a directory as root: a plain file of these owners, with no second name.

    Raises:
        FileNotFoundError: there is none, and the flags make none.
        HostError: `foreign-file`, it is something else.
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _not_ours(path, os.strerror(error.errno or errno.EIO)) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid in owners:
        return descriptor
    os.close(descriptor)
    raise _not_ours(path, f"mode {stat.filemode(status.st_mode)}, uid {status.st_uid}, {status.st_nlink} names")


def read_own(path: Path, owners: Collection[int], form: re.Pattern[str]) -> str:
    """The one line of such a file. Raises as `open_own`, and where it has another form."""
    with os.fdopen(open_own(path, os.O_RDONLY, owners), "rb") as stream:
        text = stream.read(_MAX_OWN_FILE).decode(errors="replace").strip()
    if not form.fullmatch(text):
        raise _not_ours(path, "its content has another form")
    return text


def write_own(path: Path, text: str, uid: int, gid: int) -> None:
    """Make such a file, or replace it: whole, and on the disk when this returns. Raises `OSError`."""
    fresh = beside(path)
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        os.fchown(descriptor, uid, gid)
        stream.write(text)
        stream.flush()
        os.fsync(descriptor)
    fresh.replace(path)
    sync_directory(path.parent)


def beside(path: Path) -> Path:
    """Where such a file is written first; what a start that ended early may leave."""
    return path.with_name(f".{path.name}.new")


def _not_ours(path: Path, how: str) -> HostError:
    return HostError(
        "foreign-file",
        f"{path} is not the file that was made here: {how}",
        resolution="See who changed it, and restore it from a backup; no other is trusted.",
    )
