"""One installation on this host: what must hold before it starts, its directories, its id and the lock that keeps it single.

Asked and made by root, before the split. Nothing here changes the host except the directories that are the installation's
own: its data directory, and below /run/shellwego one for sockets.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.host.helper.zfs import datasets
from plasmavmc.host.names import RUN_ROOT, installation_key
from plasmavmc.host.ownership import OF_A_FILE_SYSTEM, beside, open_own, own_directory, read_own, write_own
from plasmavmc.host.run import PACKAGES, PATH
from plasmavmc.host.split import check_reachable

USER = "shellwego"
"""Whom everything but the root helper runs as."""
MIN_FREE_BYTES = 256 << 20
_INSTALLATION, _LOCK = "installation", "lock"
_INSTALLATION_ID = re.compile(r"swg_[0-9a-f]{20}")


@dataclass(frozen=True, slots=True)
class Product:
    """What runs here, as its messages call it."""

    name: str
    """`platform`, `engine`."""
    command: str
    """How it is started."""


@dataclass(frozen=True, slots=True)
class Installation:
    """See the module's head. `lock` is a descriptor, held as long as a process of it lives."""

    id: str
    key: str
    data_dir: Path
    run_dir: Path
    uid: int
    gid: int
    lock: int


def check_root(product: Product) -> None:
    """It is started by root, who keeps the helper only. Raises `HostError`: `not-root`."""
    if os.geteuid() != 0:
        raise HostError(
            "not-root",
            f"the {product.name} must be started as root: taps, firewall and the start of VMs need it",
            resolution=f"Run: sudo {product.command} …  (all but one small helper drops root at once)",
        )


def check_user() -> tuple[int, int]:
    """The unprivileged user that everything but the helper runs as. Raises `HostError`: `no-user`."""
    try:
        entry = pwd.getpwnam(USER)
    except KeyError:
        raise HostError(
            "no-user", f"the system user {USER!r} does not exist", resolution="Run: scripts/setup"
        ) from None
    return entry.pw_uid, entry.pw_gid


def missing_programs(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the programs that are not installed."""
    return tuple(name for name in names if shutil.which(name, path=PATH) is None)


def check_programs(names: Sequence[str]) -> None:
    """Every program that is started is installed. Raises `HostError`: `missing-program`, with the packages."""
    missing = missing_programs(names)
    if missing:
        packages = sorted({PACKAGES.get(name, name) for name in missing})
        raise HostError(
            "missing-program",
            f"not installed: {', '.join(missing)}",
            resolution=f"Run: scripts/setup, or: apt-get install {' '.join(packages)}",
        )


def check_zfs(dataset: str) -> None:
    """The dataset that the operator named for volumes can be used; an empty name is fine. To be called by root.

    Raises:
        HostError: `bad-zfs-dataset`, `no-zfs-dataset`, `missing-program`.
        UnavailableError: `storage-slow`.
    """
    if dataset:
        datasets(dataset)


def check_wireguard() -> str:
    """Something on this host can be WireGuard: `kernel`, or the program `wireguard-go`. To be called by root.

    Raises:
        HostError: `no-wireguard`.
    """
    from plasmavmc.host.helper.routes import encrypting  # noqa: PLC0415 - loads netlink, which few starts ask for so early

    return encrypting()


def check_space(directory: Path) -> None:
    """There is room for records, logs and at least one VM. Raises `HostError`: `disk-full`."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < MIN_FREE_BYTES:
        raise HostError(
            "disk-full",
            f"only {free >> 20} MiB are free on the file system of {directory}; {MIN_FREE_BYTES >> 20} MiB are needed",
            resolution="Free some space, or choose another place with --data-dir.",
        )


def open_installation(data_dir: Path, product: Product) -> Installation:
    """Make or open the data directory, lock it, and make the run directory.

    Raises:
        HostError: `no-directory`, it cannot be made; `foreign-directory`, `foreign-file`, it is something else's;
            `disk-full`; `already-running`, another process holds it.
    """
    uid, gid = check_user()
    data_dir = data_dir.absolute()
    own_directory(data_dir, uid, gid)
    _check_is_data(data_dir, product)
    check_space(data_dir)
    lock = _lock(data_dir, uid, gid, product)
    installation_id = _installation_id(data_dir, uid, gid)
    key = installation_key(installation_id)
    RUN_ROOT.mkdir(mode=0o755, exist_ok=True)
    own_directory(RUN_ROOT / key, uid, gid)
    return Installation(installation_id, key, data_dir, RUN_ROOT / key, uid, gid, lock)


def run_dir_of(data_dir: Path) -> Path | None:
    """The run directory of the installation in this data directory; None: there is none. Raises `HostError`."""
    try:
        installation_id = read_own(data_dir / _INSTALLATION, (0, check_user()[0]), _INSTALLATION_ID)
    except FileNotFoundError:
        return None
    return RUN_ROOT / installation_key(installation_id)


def _check_is_data(data_dir: Path, product: Product) -> None:
    """Refuse a directory with files of something else, such as the current one by a slip, though it is the user's own."""
    names = {path.name for path in data_dir.iterdir()}
    if _INSTALLATION not in names and names - OF_A_FILE_SYSTEM - {_LOCK, beside(data_dir / _INSTALLATION).name}:
        raise HostError(
            "foreign-directory",
            f"the directory {data_dir} holds files, and none is that of an installation ({_INSTALLATION})",
            resolution=f"Choose a new or an empty directory with --data-dir, or that of an earlier {product.command}.",
        )


def _lock(data_dir: Path, uid: int, gid: int, product: Product) -> int:
    path = data_dir / _LOCK
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT, (0, uid))
    os.fchown(descriptor, uid, gid)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise HostError(
            "already-running",
            f"another {product.name} (pid {holder or 'unknown'}) runs on {data_dir}",
            resolution="Use that one, stop it first, or choose another --data-dir.",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _installation_id(data_dir: Path, uid: int, gid: int) -> str:
    path = data_dir / _INSTALLATION
    with suppress(FileNotFoundError):
        return read_own(path, (0, uid), _INSTALLATION_ID)
    installation_id = f"swg_{secrets.token_hex(10)}"
    try:
        write_own(path, installation_id + "\n", uid, gid)
    except OSError as error:
        raise HostError("data-dir", f"{path} cannot be written: {error.strerror}") from error
    return installation_id


def check_reach(installation: Installation, product: Product, paths: Iterable[Path]) -> None:
    """What the unprivileged side reads is reachable for its user: interpreter, packages, data, and these paths.

    Raises:
        HostError: `unreachable`, with the path that is closed, its mode and the remedy.
    """
    own = (Path(sys.executable), Path(__file__).resolve().parents[1], installation.data_dir)
    closed = check_reachable(installation.uid, installation.gid, (*own, *paths))
    if closed:
        first = closed[0]
        raise HostError(
            "unreachable",
            f"the user {USER!r}, whom the {product.name} runs as, cannot reach {first.path} (mode {first.mode})",
            resolution=first.remedy,
        )
