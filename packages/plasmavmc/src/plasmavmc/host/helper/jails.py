"""Jails: a root directory for each VMM that takes paths and no descriptors, and how the jailer is started in it.

Theory. `<jails>/<installation>/<program>/<name>/root` is what Firecracker's jailer expects; what lies above is root's alone.
In it lie further names (hard links) of the VM's files, which came as descriptors, and `s`, the directory for sockets: the
VM's uid's, with the caller's group, so that he can use what the VMM makes there. He gets a descriptor of it, since the
jailer closes the root directory to all but the VM's uid. A file that may be written must be the caller's own; it gets the
VM's gid as its group, so its owner keeps his access. A file that is only read is linked where everybody may read it, and
else copied. The command line is made here, from a key, a uid and what root configured; nothing of it comes from outside.

The jailer runs in namespaces of its own for network (empty, or with the VM's tap: `namespaces`), System V objects and the
host's name, which end with it; that of mounts it makes itself. It joins its cgroups before it starts, as every VMM does, so
it is not told of any.

What it prints goes to datagrams (`spawn`): Firecracker hangs on SIGPIPE, so one whose reader went with a restart of the
platform would be lost at the next line of its log or of its guest's console.

Traps: the jailer removes nothing, refuses a jail in which it ran before, and takes `/dev/kvm` into it as a device file, so
the file system must allow those (no `nodev`). Whatever lies in a jail is the VMM's to change: nothing there is trusted.

Source: docs/jailer.md and src/jailer/src/env.rs of Firecracker 1.12.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.host.helper.checks import refusal
from plasmavmc.host.helper.spawn import FIRST_DESCRIPTOR
from plasmavmc.host.names import HostNames
from plasmavmc.types import MIB

UNSHARE = "/usr/bin/unshare"
NSENTER = "/usr/bin/nsenter"
SOCKETS = "s"
API = f"/{SOCKETS}/api.sock"
LARGEST_COPY = 512 * MIB
"""A copy holds all other requests up."""
_FILE = re.compile(r"kernel|initrd|disk[0-9]{1,2}")
_CHUNK = 8 * MIB


@dataclass(frozen=True, slots=True)
class JailPrograms:
    """What root configured; absolute paths."""

    jailer: str
    firecracker: str

    @property
    def name(self) -> str:
        """The jailer names its directory by this."""
        return Path(self.firecracker).resolve().name


def jailer_argv(programs: JailPrograms, base: Path, name: str, uid: int, *, wired: bool) -> list[str]:
    """How Firecracker is started in the jail `name` below `base`, as `uid`. `wired`: in the network namespace that is its
    first descriptor, which the jailer closes; else in an empty one."""
    return [
        *((NSENTER, f"--net=/proc/self/fd/{FIRST_DESCRIPTOR}", "--") if wired else ()),
        *(UNSHARE, *(() if wired else ("--net",)), "--ipc", "--uts", "--"),
        *(programs.jailer, "--id", name),
        *("--exec-file", programs.firecracker),
        *("--uid", str(uid), "--gid", str(uid)),
        *("--chroot-base-dir", str(base)),
        *("--", "--api-sock", API, "--level", "Warn"),
    ]


def check_files(names: Collection[str], count: int) -> None:
    """Names of files for a jail, each with a descriptor."""
    if count != len(names) or len(set(names)) != len(names):
        raise refusal("a jail", f"{count} descriptors came for the files {sorted(names)!r:.200}")
    if any(_FILE.fullmatch(name) is None for name in names):
        raise refusal("a jail", f"{sorted(names)!r:.200} are not names of its files")


class HelperJails:
    """The jails of one installation. `uid` and `gid` are the caller's."""

    def __init__(self, root: Path, names: HostNames, programs: JailPrograms, uid: int, gid: int) -> None:
        self._names = names
        self._programs = programs
        self._uid = uid
        self._gid = gid
        self.base = root / names.key

    def prepare(self, key: str, vm_uid: int, files: Mapping[str, int]) -> int:
        """Make VM `key`'s jail; a descriptor of its directory for sockets. All or nothing.

        Raises:
            HostError: `jail-exists`; `jail-file`, a file cannot be taken into it; `unsafe-jails`.
        """
        jail = self._jail(key)
        self._make_base()
        try:
            jail.mkdir(mode=0o700)
        except FileExistsError:
            raise HostError("jail-exists", f"VM {key} has a jail already", resolution="remove it first") from None
        try:
            root = jail / "root"
            root.mkdir(mode=0o700)
            for name, fd in files.items():
                self._place(fd, root / name, vm_uid)
            sockets = root / SOCKETS
            sockets.mkdir(mode=0o700)
            os.chown(sockets, vm_uid, self._gid)
            sockets.chmod(0o2770)
        except BaseException:
            shutil.rmtree(jail)
            raise
        return self.open(key)

    def open(self, key: str) -> int:
        """A descriptor of the directory for sockets.

        Raises:
            HostError: `no-jail`.
        """
        try:
            return os.open(
                self._jail(key) / "root" / SOCKETS, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError as error:
            raise HostError("no-jail", f"VM {key} has no jail with a directory for sockets") from error

    def argv(self, key: str, vm_uid: int, *, wired: bool = False) -> list[str]:
        """The command line that starts Firecracker in VM `key`'s jail (`jailer_argv`)."""
        return jailer_argv(self._programs, self.base, self._names.process(key), vm_uid, wired=wired)

    def has(self, key: str) -> bool:
        return self._jail(key).exists()

    def remove(self, key: str) -> None:
        """Remove VM `key`'s jail, in which nothing runs. Idempotent."""
        if self.has(key):
            shutil.rmtree(self._jail(key))

    def keys(self) -> frozenset[str]:
        """Keys of all jails."""
        prefix = self._names.process("")
        places = self.base.glob(f"*/{prefix}*")
        return frozenset(place.name.removeprefix(prefix) for place in places)

    def remove_base(self) -> None:
        """Remove the installation's directory, with all jails."""
        if self.base.exists():
            shutil.rmtree(self.base)

    def _jail(self, key: str) -> Path:
        return self.base / self._programs.name / self._names.process(key)

    def _make_base(self) -> None:
        """Raises `HostError` where others than root could change what lies above the jails."""
        self.base.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in (self.base, self.base.parent):
            status = part.lstat()
            if status.st_uid != 0 or status.st_mode & 0o022 or not stat.S_ISDIR(status.st_mode):
                raise HostError(
                    "unsafe-jails", f"{part} is not root's alone", resolution=f"chown root {part}; chmod 700 {part}"
                )
        self._jail("").parent.mkdir(mode=0o700, exist_ok=True)

    def _place(self, fd: int, place: Path, vm_gid: int) -> None:
        """Give a file a name in the jail."""
        status = os.fstat(fd)
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH)
        if not stat.S_ISREG(status.st_mode) or access not in (os.O_RDONLY, os.O_RDWR):
            raise refusal("a jail", f"{place.name} is no regular file that is open for reading, or for both")
        if access == os.O_RDWR:
            if status.st_uid != self._uid:
                raise refusal("a jail", f"{place.name} is to be written, and not of uid {self._uid}")
            self._link(fd, place)
            os.fchown(fd, -1, vm_gid)
            os.fchmod(fd, 0o660)
        elif status.st_mode & 0o6004 != 0o004 or not self._linked(fd, place):
            self._copy(fd, place, vm_gid, status.st_size)

    def _linked(self, fd: int, place: Path) -> bool:
        """Whether a file that is only read could be linked; not from another file system."""
        try:
            self._link(fd, place)
        except HostError:
            return False
        return True

    @staticmethod
    def _link(fd: int, place: Path) -> None:
        here = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(str(fd), place, src_dir_fd=here)  # without src_dir_fd Python calls link(2), which follows no link
        except OSError as error:
            raise HostError(
                "jail-file",
                f"{place.name} cannot be taken into the VM's jail: {error.strerror}",
                resolution="keep the data directory and the jails on one file system",
            ) from error
        finally:
            os.close(here)

    @staticmethod
    def _copy(fd: int, place: Path, vm_gid: int, size: int) -> None:
        if size > LARGEST_COPY:
            raise HostError(
                "jail-file",
                f"{place.name} is too large to copy into the VM's jail: {size} bytes",
                resolution="keep it on the file system of the jails, readable by all",
            )
        target = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o440)
        try:
            os.fchown(target, 0, vm_gid)
            os.fchmod(target, 0o440)
            offset = 0
            while sent := os.sendfile(target, fd, offset, _CHUNK):
                offset += sent
        finally:
            os.close(target)
