"""What must hold before the platform starts, checked as root, each failure with its remedy.

Nothing here changes the host except the directories that are the platform's own.

Trap: the data directory belongs to the unprivileged user. What root reads or writes there may have been put there by
whoever took that user over: a link to a file of root's, a pipe that never answers. So root follows no link in it, and
believes only what has the form of what it wrote itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import secrets
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from shellwego.boot.settings import USER, UpSettings
from shellwego.core.errors import ShellWeGoError, UnavailableError
from shellwego.drivers.engine.host import (
    HelperConfiguration,
    Listener,
    assets_present,
    check_reachable,
    installation_key,
    missing_programs,
    packages_of,
)

RUN_DIR = Path("/run/shellwego")
PROGRAMS = ("qemu-system-x86_64", "haproxy", "nft", "tar2sqfs", "mkfs.ext4")
MIN_FREE_BYTES = 256 << 20
_INSTALLATION_ID = re.compile(r"swg_[0-9a-f]{20}")
_MAX_OWN_FILE = 256
_INSTALLATION, _LOCK = "installation", "lock"
_OF_A_FILE_SYSTEM = {"lost+found"}
"""What an empty directory may hold."""


class PreflightError(ShellWeGoError):
    """The host is not ready; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Installation:
    """One platform on this host: its id, its directories, the user it runs as, and the lock that keeps it single."""

    id: str
    key: str
    data_dir: Path
    run_dir: Path
    uid: int
    gid: int
    lock: int
    """Descriptor of the locked file; held as long as a process of the platform lives."""


def check_root() -> None:
    """The platform is started by root, who keeps the helper only."""
    if os.geteuid() != 0:
        raise PreflightError(
            "not-root",
            "the platform must be started as root: taps, firewall and the start of VMs need it",
            resolution="Run: sudo swg up …  (all but one small helper drops root at once)",
        )


def check_user() -> tuple[int, int]:
    """The unprivileged user that everything but the helper runs as."""
    try:
        entry = pwd.getpwnam(USER)
    except KeyError:
        raise PreflightError(
            "no-user", f"the system user {USER!r} does not exist", resolution="Run: scripts/setup"
        ) from None
    return entry.pw_uid, entry.pw_gid


def check_programs() -> None:
    """Every program that the platform starts is installed."""
    missing = missing_programs(PROGRAMS)
    if missing:
        raise PreflightError(
            "missing-program",
            f"not installed: {', '.join(missing)}",
            resolution=f"Run: scripts/setup, or: apt-get install {' '.join(packages_of(missing))}",
        )


def check_cache(cache: Path) -> None:
    """Guest kernel and init are in the host's cache."""
    if not assets_present(cache):
        raise PreflightError(
            "no-guest-kernel",
            f"the guest's kernel and init are not in {cache}",
            resolution="Run: scripts/setup (or: plasmavmc kernel fetch && plasmavmc guest build)",
        )


def check_space(directory: Path) -> None:
    """There is room for the database, logs and at least one VM."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < MIN_FREE_BYTES:
        raise PreflightError(
            "disk-full",
            f"only {free >> 20} MiB are free on the file system of {directory}; {MIN_FREE_BYTES >> 20} MiB are needed",
            resolution="Free some space, or choose another place with --data-dir.",
        )


def open_installation(settings: UpSettings) -> Installation:
    """Make or open the data directory, lock it, and make the run directory.

    Raises:
        PreflightError: it cannot be made, is full, or another `swg up` holds it.
    """
    uid, gid = check_user()
    data_dir = settings.data_dir.absolute()
    _own_directory(data_dir, uid, gid)
    _check_is_data(data_dir)
    check_space(data_dir)
    lock = _lock(data_dir, uid, gid)
    installation_id = _installation_id(data_dir, uid, gid)
    key = installation_key(installation_id)
    run_dir = RUN_DIR / key
    RUN_DIR.mkdir(mode=0o755, exist_ok=True)
    _own_directory(run_dir, uid, gid)
    return Installation(installation_id, key, data_dir, run_dir, uid, gid, lock)


def _own_directory(path: Path, uid: int, gid: int) -> None:
    """Make a directory the user's; one that is there already must be his, or empty."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _take_over(path, descriptor, uid, gid)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PreflightError(
            "no-directory",
            f"the directory {path} cannot be made or owned: {error.strerror}",
            resolution="Choose another place with --data-dir, or mend its file system.",
        ) from error


def _take_over(path: Path, descriptor: int, uid: int, gid: int) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != uid:
        if set(os.listdir(descriptor)) - _OF_A_FILE_SYSTEM:
            raise PreflightError(
                "foreign-directory",
                f"the directory {path} holds files, and belongs to the user {status.st_uid}, not to {USER!r}",
                resolution="Choose a new or an empty directory with --data-dir.",
            )
        os.fchown(descriptor, uid, gid)
    if status.st_uid != uid or status.st_mode & 0o022:
        os.fchmod(descriptor, 0o700)


def _check_is_data(data_dir: Path) -> None:
    """Refuse a directory with files of something else, such as the current one by a slip, though it is the user's own."""
    names = {path.name for path in data_dir.iterdir()}
    if _INSTALLATION not in names and names - _OF_A_FILE_SYSTEM - {_LOCK}:
        raise PreflightError(
            "foreign-directory",
            f"the directory {data_dir} holds files, and none is that of a platform ({_INSTALLATION})",
            resolution="Choose a new or an empty directory with --data-dir, or that of a platform.",
        )


def open_own(path: Path, flags: int, owners: Collection[int]) -> int:
    """Open a file in the data directory as root: a plain file of these owners, with no second name.

    Raises:
        FileNotFoundError: there is none, and the flags make none.
        PreflightError: it is something else.
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
    """The one line of a file in the data directory. Raises as `open_own`, and where it has another form."""
    with os.fdopen(open_own(path, os.O_RDONLY, owners), "rb") as stream:
        text = stream.read(_MAX_OWN_FILE).decode(errors="replace").strip()
    if not form.fullmatch(text):
        raise _not_ours(path, "its content has another form")
    return text


def _not_ours(path: Path, how: str) -> PreflightError:
    return PreflightError(
        "foreign-file",
        f"{path} is not the file that the platform made: {how}",
        resolution="See who changed it, and restore it from a backup; the platform trusts no other.",
    )


def _lock(data_dir: Path, uid: int, gid: int) -> int:
    path = data_dir / _LOCK
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT, (0, uid))
    os.fchown(descriptor, uid, gid)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise PreflightError(
            "already-running",
            f"another platform (pid {holder or 'unknown'}) runs on {data_dir}",
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
        with tempfile.NamedTemporaryFile("w", dir=data_dir, delete=False) as fresh:
            fresh.write(installation_id + "\n")
            os.fchown(fresh.fileno(), uid, gid)
        Path(fresh.name).replace(path)
    except OSError as error:
        raise UnavailableError("data-dir", f"{path} cannot be written: {error.strerror}") from error
    return installation_id


def check_reach(settings: UpSettings, installation: Installation) -> None:
    """Everything that the unprivileged platform reads is reachable for its user: interpreter, packages, data, cache.

    Raises:
        PreflightError: with the path that is closed, its mode and the remedy.
    """
    package = Path(__file__).resolve().parents[1]
    paths = [Path(sys.executable), package, Path(click.__file__), installation.data_dir, settings.cache]
    paths += [path for path in (settings.api_cert, settings.api_key) if path]
    closed = check_reachable(installation.uid, installation.gid, paths)
    if closed:
        first = closed[0]
        raise PreflightError(
            "unreachable",
            f"the user {USER!r}, whom the platform runs as, cannot reach {first.path} (mode {first.mode})",
            resolution=first.remedy,
        )


def check_tls(settings: UpSettings) -> None:
    """The API's certificate and key can be read, and belong together."""
    if settings.api_cert is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.api_cert, settings.api_key, password=_no_password
        )
    except (OSError, ValueError) as error:
        raise PreflightError(
            "bad-certificate",
            f"--api-cert {settings.api_cert} with --api-key {settings.api_key} cannot be used: {error}",
            resolution="Give a certificate chain and its own, unencrypted key, both as PEM.",
        ) from error


def _no_password() -> str:
    """In place of OpenSSL's own question on the terminal."""
    return ""


def check_ports(settings: UpSettings, installation: Installation) -> None:
    """Both ports are free, before anything is changed; that of the edge may be held by this installation's own HAProxy.

    The helper binds them for good later. This look tells it early, and leaves a running platform's context as it is.
    """
    listeners = [("--api-listen", "--api-port", settings.api_listen, settings.api_port)]
    if not _edge_lives(installation):
        listeners.append(("--http-listen", "--http-port", settings.edge_address, settings.http_port))
    for address_flag, port_flag, address, port in listeners:
        _check_port(address_flag, port_flag, address, port)


def _check_port(address_flag: str, port_flag: str, address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise PreflightError(
                "port-taken" if taken else "port-refused",
                f"cannot listen on {address}:{port}: {error.strerror}",
                resolution=f"See who holds it (ss -ltnp 'sport = :{port}'), or choose another {port_flag}."
                if taken
                else f"Give {address_flag} an address of this host.",
            ) from error


def _edge_lives(installation: Installation) -> bool:
    """Whether a HAProxy of this installation was left running, to be adopted."""
    marker = os.fsencode(installation.run_dir / "edge")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].rpartition(b"/")[2] == b"haproxy" and any(marker in word for word in words):
                return True
    return False


def helper_configuration(settings: UpSettings, installation: Installation) -> HelperConfiguration:
    """What the root helper is told once: whom it serves, and the sockets it may open."""
    return HelperConfiguration(
        installation_id=installation.id,
        uid=installation.uid,
        gid=installation.gid,
        listeners=(
            Listener(settings.edge_address, settings.http_port),
            Listener(settings.api_listen, settings.api_port),
        ),
    )
