"""ZFS for one installation: orders are checked, made into command lines, and run.

Theory. All names in an order are last names of children; what is before them comes from the helper's start alone, so that
nothing beside the installation's own dataset can be named. Properties are never the caller's: `_BASE` for all, and the two
of ours with values made here. The dataset itself is never mounted; its children are, below a directory of root's, when they
are ordered to be (`canmount=noauto`), and without devices, programs and set-user-id.

Only what OpenZFS 2 and zfs-fuse 0.7 both have is used, and no words of theirs are read but what `list -H` and `get -H -p`
tell, and that something is busy.
Source: zfs(8), zfsprops(7).
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import singledispatch
from pathlib import Path

from plasmavmc.errors import HostError, PlasmaError
from plasmavmc.host import zfs
from plasmavmc.host.helper.checks import refusal
from plasmavmc.host.helper.zfs_commands import ORDER_S, Argv, ZfsCommands

_CHILD = re.compile(rf"[a-z0-9_]{{3,64}}({re.escape(zfs.VIEW)})?")
_SNAPSHOT = re.compile(r"[a-z0-9_]{3,64}")
_LARGEST = 2**62
_NOT_BY_ITSELF = ("-o", "canmount=noauto")
_BASE = (
    *("-o", "canmount=off"),
    *("-o", "compression=on"),
    *("-o", "recordsize=16K"),
    *("-o", "atime=off"),
    *("-o", "setuid=off"),
    *("-o", "devices=off"),
    *("-o", "exec=off"),
)
"""Compressed, for zeros then take no room; records are the size that file systems in guests write at least about once."""


def base_argv(base: str, mountpoint: Path) -> Argv:
    """To make an installation's own dataset."""
    return ("create", *_BASE, "-o", f"mountpoint={mountpoint}", base)


def look_argv(base: str) -> Argv:
    """To tell of all there is."""
    return ("get", "-H", "-p", "-r", "-o", "name,property,value", ",".join(zfs.LOOK_PROPERTIES), base)


@singledispatch
def argv_of(order: zfs.ZfsOrder, base: str) -> Argv:
    """The command line (after the program) by which an order is done; mounts are apart from it."""
    raise refusal("an order for ZFS", f"{type(order).__name__} is unknown")


@argv_of.register
def _(order: zfs.ZfsCreate, base: str) -> Argv:
    return ("create", *_NOT_BY_ITSELF, *_size(order.size_bytes), *_sealed(order.sealed), f"{base}/{order.child}")


@argv_of.register
def _(order: zfs.ZfsClone, base: str) -> Argv:
    made = ("-o", f"{zfs.WHOLE_PROPERTY}=yes") if order.whole else ()
    properties = (*_NOT_BY_ITSELF, *_size(order.size_bytes), *_sealed(order.sealed), *made)
    return ("clone", *properties, f"{base}/{order.child}@{order.snapshot}", f"{base}/{order.target}")


@argv_of.register
def _(order: zfs.ZfsSnapshot, base: str) -> Argv:
    return ("snapshot", *_size(order.size_bytes), f"{base}/{order.child}@{order.snapshot}")


@argv_of.register
def _(order: zfs.ZfsResize, base: str) -> Argv:
    return ("set", f"{zfs.SIZE_PROPERTY}={order.size_bytes}", f"{base}/{order.child}")


@argv_of.register
def _(order: zfs.ZfsMark, base: str) -> Argv:
    return ("set", f"{zfs.WHOLE_PROPERTY}={order.whole}", f"{base}/{order.child}")


@argv_of.register
def _(order: zfs.ZfsMount, base: str) -> Argv:
    return ("mount", f"{base}/{order.child}")


@argv_of.register
def _(order: zfs.ZfsRollback, base: str) -> Argv:
    return ("rollback", f"{base}/{order.child}@{order.snapshot}")


@argv_of.register
def _(order: zfs.ZfsPromote, base: str) -> Argv:
    return ("promote", f"{base}/{order.child}")


@argv_of.register
def _(order: zfs.ZfsDestroy, base: str) -> Argv:
    return ("destroy", f"{base}/{order.child}")


@argv_of.register
def _(order: zfs.ZfsDestroySnapshot, base: str) -> Argv:
    return ("destroy", "-d", f"{base}/{order.child}@{order.snapshot}")


def _size(size_bytes: int) -> Argv:
    return ("-o", f"{zfs.SIZE_PROPERTY}={size_bytes}")


def _sealed(sealed: bool) -> Argv:
    return ("-o", f"{zfs.SEALED_PROPERTY}={'yes' if sealed else 'no'}")


def check_order(order: zfs.ZfsOrder) -> None:
    """Every value is one that our own code would send.

    Raises:
        HostError: `helper-refused`.
    """
    for name in (order.child, getattr(order, "target", None)):
        if name is not None and not _CHILD.fullmatch(name):
            raise refusal("an order for ZFS", f"{name!r:.100} is not the name of a volume")
    snapshot = getattr(order, "snapshot", None)
    if snapshot is not None and not _SNAPSHOT.fullmatch(snapshot):
        raise refusal("an order for ZFS", f"{snapshot!r:.100} is not the name of a snapshot")
    if not 0 <= getattr(order, "size_bytes", 0) <= _LARGEST:
        raise refusal("an order for ZFS", "a size is out of bounds")


class HelperZfs:
    """See the module's head. One per installation; `dataset` is empty where the operator named none. An order, or a look,
    takes so long at most."""

    def __init__(self, dataset: str, name: str, root: Path, uid: int, gid: int, *, order_s: float = ORDER_S) -> None:
        self._dataset = zfs.check_dataset(dataset) if dataset else ""
        self._base = f"{dataset}/{name}"
        self._root = root / name
        self._owner = uid, gid
        self._order_s = order_s

    def open(self) -> str:
        """Make the installation's dataset where it is missing; below which directory its children are mounted.

        Raises:
            HostError: `missing-program`, `zfs-failed`, `helper-refused`.
            UnavailableError: `storage-slow`.
        """
        commands = self._begin()
        for place in (self._root.parent, self._root):
            place.mkdir(exist_ok=True)
            place.chmod(0o711)
        if self._base not in datasets(self._dataset, commands):
            commands.run(base_argv(self._base, self._root))
        elif commands.told(("get", "-H", "-p", "-o", "value", "mountpoint", self._base)) != [str(self._root)]:
            commands.run(("set", f"mountpoint={self._root}", self._base))
        return str(self._root)

    def look(self) -> int:
        """A descriptor of what there is, as `get -H -p` tells it. Raises as `open`."""
        commands = self._begin()
        told = os.memfd_create("zfs", os.MFD_CLOEXEC)
        try:
            commands.run(look_argv(self._base), told)
            os.lseek(told, 0, os.SEEK_SET)
        except BaseException:
            os.close(told)
            raise
        return told

    def do(self, order: zfs.ZfsOrder) -> None:
        """Carry an order out. Raises as `open`; what was done of it stays."""
        commands = self._begin()
        check_order(order)
        match order:
            case zfs.ZfsMount():
                self._mount(commands, order.child)
            case zfs.ZfsCreate():
                commands.run(argv_of(order, self._base))
                self._mount(commands, order.child)
                self._own(order.child)
            case zfs.ZfsClone():
                commands.run(argv_of(order, self._base))
                self._mount(commands, order.target)
            case zfs.ZfsRollback():
                try:
                    self._unmounted(commands.first, order)
                finally:
                    self._mount(commands, order.child)
            case zfs.ZfsDestroy():
                self._unmounted(commands, order)
            case _:
                commands.run(argv_of(order, self._base))

    def close(self) -> None:
        """Unmount what nobody uses; for an installation that has ended."""
        commands = ZfsCommands.within(self._order_s)
        for place in self._root.glob("*"):
            with suppress(PlasmaError):
                self._unmount(commands, place.name)

    def _begin(self) -> ZfsCommands:
        if not self._dataset:
            raise refusal("an order for ZFS", "no dataset was named at its start")
        return ZfsCommands.within(self._order_s)

    def _unmounted(self, commands: ZfsCommands, order: zfs.ZfsOrder) -> None:
        self._unmount(commands, order.child)
        commands.patiently(argv_of(order, self._base))

    def _mount(self, commands: ZfsCommands, child: str) -> None:
        if not (self._root / child).is_mount():
            commands.patiently(("mount", f"{self._base}/{child}"))

    def _unmount(self, commands: ZfsCommands, child: str) -> None:
        place = self._root / child
        if place.is_mount():
            commands.run(("unmount", f"{self._base}/{child}"))
        with suppress(OSError):  # it is not there, or the next mount needs it
            place.rmdir()

    def _own(self, child: str) -> None:
        """What is mounted there is new: nobody but root has been in it."""
        place = os.open(self._root / child, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(place, *self._owner)
            os.fchmod(place, 0o700)
        finally:
            os.close(place)


def datasets(dataset: str, commands: ZfsCommands | None = None) -> list[str]:
    """The names of a dataset and of all below it. `commands`: of the order that asks for them.

    Raises:
        HostError: `missing-program`; `no-zfs-dataset`.
        UnavailableError: `storage-slow`.
    """
    asking = commands or ZfsCommands.within()
    try:
        return asking.told(("list", "-H", "-o", "name", "-r", "-t", "filesystem", zfs.check_dataset(dataset)))
    except HostError as error:
        if error.code != "zfs-failed":
            raise
        raise HostError(
            "no-zfs-dataset",
            f"the ZFS dataset {dataset} cannot be used",
            details=error.details,
            resolution=f"Look with zfs list and zpool status; make it with: zfs create {dataset}",
        ) from error
