"""Leases of uids for VMs.

Theory. All installations of a host share one range, so a lease is a file `<uid>` in a directory that only root can write,
made with O_EXCL; its content names installation and VM. A new lease tries uids from a random place on, and takes none of
which a process lives, or a file lies where every uid may write: what an earlier VM left behind must not become a later
one's. A VM gets descriptors, or a jail that goes before its uid does, and can write nowhere else, so no other place can hold
a file of it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from plasmavmc.errors import UnavailableError
from plasmavmc.host.helper.checks import refusal
from plasmavmc.host.processes import has_process

WRITABLE_BY_ALL = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/dev/mqueue"))  # noqa: S108 - looked at only


class Uids:
    """The leases of one installation in the host's common table."""

    def __init__(self, directory: Path, installation: str, uids: range) -> None:
        self._directory = directory
        self._installation = installation
        self._range = uids
        directory.mkdir(mode=0o700, exist_ok=True)
        self._leases = dict(self._recorded())

    def take(self, key: str) -> int:
        """The uid of VM `key`, leased now or before.

        Raises:
            UnavailableError: all are taken.
        """
        held = self._leases.get(key)
        return self._lease(key) if held is None else held

    def pass_on(self, holder: str, key: str) -> None:
        """Give `holder`'s lease to VM `key`, which has none."""
        uid = self._leases.pop(holder)
        self._leases[key] = uid
        written = self._directory / f"{uid}.new"
        written.write_text(f"{self._installation} {key}\n")
        written.replace(self._directory / str(uid))

    def free(self, key: str) -> int | None:
        """End a lease, where there is one."""
        uid = self._leases.pop(key, None)
        if uid is not None:
            (self._directory / str(uid)).unlink(missing_ok=True)
        return uid

    def of(self, key: str) -> int:
        """The uid that VM `key` has.

        Raises:
            HostError: it has none.
        """
        if key not in self._leases:
            raise refusal("a VM", f"{key} has no uid; take one first")
        return self._leases[key]

    def lends(self, uid: int) -> bool:
        """Whether a VM could have this uid, now or once."""
        return uid in self._range

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self._leases)

    def _lease(self, key: str) -> int:
        owners = _owners()
        start = secrets.randbelow(len(self._range))
        for offset in range(len(self._range)):
            uid = self._range[(start + offset) % len(self._range)]
            if uid not in owners and not has_process(uid) and self._record(uid, key):
                self._leases[key] = uid
                return uid
        raise UnavailableError("uids-exhausted", f"all {len(self._range)} uids for VMs are taken")

    def _record(self, uid: int, key: str) -> bool:
        """Write the lease down; False where another helper was first."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        try:
            fd = os.open(self._directory / str(uid), flags, 0o600)
        except FileExistsError:
            return False
        with os.fdopen(fd, "w") as file:
            file.write(f"{self._installation} {key}\n")
        return True

    def _recorded(self) -> Iterator[tuple[str, int]]:
        for path in self._directory.iterdir():
            owner, _, key = _text_of(path).strip().partition(" ")
            if owner == self._installation and path.name.isdecimal() and int(path.name) in self._range:
                yield key, int(path.name)


def _text_of(path: Path) -> str:
    """Content of a lease; empty where its helper has just ended it."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _owners() -> set[int]:
    """Uids that have a file in a place that is open to every uid."""
    found: set[int] = set()
    for directory in WRITABLE_BY_ALL:
        with suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                with suppress(OSError):
                    found.add(entry.stat(follow_symlinks=False).st_uid)
    return found
