"""Which programs root starts, and which devices a VMM may be given: judged by who could have changed them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.host.architecture import EMULATOR_PACKAGE
from plasmavmc.host.helper.checks import refusal
from plasmavmc.host.run import PACKAGES

KVM = Path("/dev/kvm")


def check_program(path: Path, what: str = "a VMM") -> None:
    """Accept a program that only root can have written: itself and every directory above it.

    Raises:
        HostError: `missing-program`, or `helper-refused`.
    """
    try:
        real = path.resolve(strict=True)
    except OSError as error:
        raise HostError(
            "missing-program",
            f"{what}, {path}, cannot be run: {error.strerror}",
            resolution=f"apt-get install {PACKAGES.get(path.name, EMULATOR_PACKAGE)}, or run scripts/setup",
        ) from error
    if not stat.S_ISREG(real.stat().st_mode):
        raise refusal(what, f"{real} is not a regular file")
    for part in (real, *real.parents):
        status = part.stat()
        if status.st_uid != 0 or (status.st_mode & 0o022 and not _is_sticky(status)):
            raise refusal(what, f"others than root can write {part}")


def _is_sticky(status: os.stat_result) -> bool:
    """A directory in which nobody can rename or remove what is root's (inode(7), S_ISVTX), such as /var/tmp."""
    return stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)


def kvm_access() -> tuple[int, ...]:
    """The one group that a VMM needs to open /dev/kvm, if any.

    Raises:
        HostError: `kvm-closed`, no group could give it.
    """
    try:
        status = KVM.stat()
    except OSError as error:
        raise HostError("no-kvm", f"{KVM}: {error.strerror}", resolution="load the kvm module of this CPU") from error
    if status.st_mode & 0o006 == 0o006:
        return ()
    if status.st_mode & 0o060 == 0o060 and status.st_gid != 0:
        return (status.st_gid,)
    raise HostError(
        "kvm-closed",
        f"only root can open {KVM}",
        resolution=f"chgrp kvm {KVM}; chmod 660 {KVM} (as udev's rule does)",
    )


def open_kvm() -> int:
    """A descriptor of /dev/kvm.

    Raises:
        HostError: `no-kvm`.
    """
    try:
        return os.open(KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError("no-kvm", f"{KVM}: {error.strerror}", resolution="load the kvm module of this CPU") from error
