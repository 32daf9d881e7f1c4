"""Where a VMM lives: namespaces of its own, and as its root a directory that has little but the host's programs.

Theory. What a VMM uses comes as descriptors: disks, tap, memory, listening sockets. So it needs no network, no directory
that is written, and no file but its own program with what that loads. It gets an empty network, no System V objects and no
name of the host, and a root in memory in which lie, read-only:

- `/usr`, with `/lib` and `/lib64` as the host has them: the program, its libraries and firmware;
- `/proc`, in which it sees no other process, since those have other uids (`hidepid`), and nothing of the host (`subset`);
- `/dev` with `null`, `urandom` and `fd`, by which a VMM opens its kernel anew; and the devices that it was meant to have.

All of it costs 1 to 3 ms. The old root is let go, so no path leads back; a descriptor still leads where it always led, and a
socket that was bound before is still found by who knows its path. The host sees the process and its descriptors as before.

Traps: a descriptor of a directory would be a way out, so callers give none that they would not give the VMM; `pivot_root`
does not work where the host's own root is its initramfs; a bind mount is made read-only by a second call only.

Source: unshare(2), pivot_root(2), mount(2), proc(5) (`hidepid` and `subset` for one mount alone: Linux 5.8), tmpfs(5).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWNET = 0x40000000
_NAMESPACES = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWNET
_MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 0x20, 0x1000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MNT_DETACH = 2
_PR_SET_NO_NEW_PRIVS = 38
_LIBC = ctypes.CDLL(None, use_errno=True)
_ROOT_OPTIONS = "size=64k,nr_inodes=64,mode=755"
_PROC_OPTIONS = "hidepid=2,subset=pid"
USR = Path("/usr")
_LIBRARIES = (Path("/lib"), Path("/lib64"))
_DEVICES = (Path("/dev/null"), Path("/dev/urandom"))


class Cage(Protocol):
    def enter(self) -> None:
        """Confine this process, which is root's still and has one thread. It may change directory and umask.

        Raises:
            OSError: the kernel refused, with the step.
        """


@dataclass(frozen=True, slots=True)
class VmmCage:
    """The cage of a VMM that gets all it uses as descriptors."""

    place: Path
    """Any directory of the host: in this process' view, the new root is mounted on it before it becomes the root."""
    devices: Sequence[Path] = ()
    """Devices beside those that every program expects."""
    networked: bool = False
    """It has the host's network, and not an empty one."""
    files: Sequence[Path] = ()
    """Empty files that it expects, by their places in the new root."""

    def enter(self) -> None:
        part(networked=self.networked)
        os.umask(0o022)
        mount("none", self.place, "tmpfs", MS_NOSUID | MS_NODEV, _ROOT_OPTIONS)
        os.chdir(self.place)
        self._fill()
        _check(_LIBC.pivot_root(b".", b"."), "pivot_root")
        _check(_LIBC.umount2(b".", _MNT_DETACH), "umount of the host's root")
        os.chdir("/")
        mount("none", Path("/"), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | MS_NOSUID | MS_NODEV)

    def _fill(self) -> None:
        """Make the root, in which this process stands."""
        _bind_directory(USR)
        for libraries in _LIBRARIES:
            if libraries.is_symlink():
                _inside(libraries).symlink_to(libraries.readlink())
            elif libraries.is_dir():
                _bind_directory(libraries)
        Path("proc").mkdir()
        mount("proc", Path("proc"), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, _PROC_OPTIONS)
        Path("dev").mkdir()
        Path("dev/fd").symlink_to("/proc/self/fd")
        for device in (*_DEVICES, *self.devices):
            _inside(device).touch()
            mount(str(device), _inside(device), None, _MS_BIND)
        for file in self.files:
            _inside(file).parent.mkdir(parents=True, exist_ok=True)
            _inside(file).touch()


def part(*, networked: bool = False) -> None:
    """Leave the host's namespaces (`networked`: but for the network), and gain no privileges any more. Mounts no longer
    travel either way.

    Raises:
        OSError: the kernel refused.
    """
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _check(_LIBC.unshare(_NAMESPACES & ~_CLONE_NEWNET if networked else _NAMESPACES), "unshare")
    mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE)


def mount(source: str, target: Path, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2).

    Raises:
        OSError: the kernel refused.
    """
    file_system = None if kind is None else kind.encode()
    result = _LIBC.mount(source.encode(), os.fsencode(target), file_system, ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount on {target}")


def _bind_directory(directory: Path) -> None:
    """Show a directory of the host at its own place in the new root, to be read only."""
    place = _inside(directory)
    place.mkdir()
    mount(str(directory), place, None, _MS_BIND)
    mount("none", place, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | MS_NOSUID | MS_NODEV)


def _inside(path: Path) -> Path:
    """Where an absolute path lies in the directory that is to be the root."""
    return path.relative_to("/")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
