"""What must hold before the platform starts, checked as root, each failure with its remedy.

Nothing here changes the host except the directories that are the platform's own.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from shellwego.boot.settings import UpSettings
from shellwego.core.errors import ShellWeGoError
from shellwego.core.nodes import Underlay
from shellwego.drivers.engine.host import (
    EMULATOR,
    NOTHING_PUBLISHED,
    HelperConfiguration,
    Installation,
    Listener,
    PlasmaError,
    Product,
    PublishSite,
    assets_present,
    installation,
    ownership,
)

__all__ = ["NOTHING_PUBLISHED", "Installation", "Listener", "PreflightError", "PublishSite"]

PRODUCT = Product("platform", "swg up")
NODE_PROGRAMS = (EMULATOR, "nft", "tar2sqfs", "mkfs.ext4")
EDGE_PROGRAMS = ("haproxy",)
PROGRAMS = (*NODE_PROGRAMS, *EDGE_PROGRAMS)


class PreflightError(ShellWeGoError):
    """The host is not ready; the message says what is missing and what to do."""


@contextmanager
def told() -> Iterator[None]:
    """What the engine's host refuses, in the platform's words.

    Raises:
        PreflightError: with its remedy.
    """
    try:
        yield
    except PlasmaError as error:
        raise PreflightError(error.code, error.brief, resolution=error.resolution) from error


def check_root() -> None:
    """The platform is started by root, who keeps the helper only."""
    with told():
        installation.check_root(PRODUCT)


def check_user() -> tuple[int, int]:
    """The unprivileged user that everything but the helper runs as."""
    with told():
        return installation.check_user()


def check_programs(programs: Sequence[str] = PROGRAMS) -> None:
    """Every program that is started is installed: those of the whole platform, or of a part of it."""
    with told():
        installation.check_programs(programs)


def check_cache(cache: Path) -> None:
    """Guest kernel and init are in the host's cache."""
    if not assets_present(cache):
        raise PreflightError(
            "no-guest-kernel",
            f"the guest's kernel and init are not in {cache}",
            resolution="Run: scripts/setup (or: plasmavmc kernel fetch && plasmavmc guest build)",
        )


def check_zfs(dataset: str) -> None:
    """The dataset for volumes, if one was named, can be used."""
    with told():
        installation.check_zfs(dataset)


def check_underlay(underlay: str) -> str:
    """What encrypts here, where that is asked for; empty where it is not. To be called by root."""
    if underlay != Underlay.WIREGUARD:
        return ""
    with told():
        return installation.check_wireguard()


def check_space(directory: Path) -> None:
    """There is room for the database, logs and at least one VM."""
    with told():
        installation.check_space(directory)


def open_installation(settings: UpSettings) -> Installation:
    """Make or open the data directory, lock it, and make the run directory.

    Raises:
        PreflightError: it cannot be made, is full, or another `swg up` holds it.
    """
    with told():
        return installation.open_installation(settings.data_dir, PRODUCT)


def directory(installation: Installation, name: str) -> Path:
    """A directory of this name in the data directory, made by the unprivileged side."""
    path = installation.data_dir / name
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def read_own(path: Path, owners: Collection[int], form: re.Pattern[str]) -> str:
    """The one line of a file that root made in the data directory, which is the unprivileged user's.

    Raises:
        FileNotFoundError: there is none.
        PreflightError: it is not what root made.
    """
    with told():
        return ownership.read_own(path, owners, form)


def check_reach(settings: UpSettings, opened: Installation) -> None:
    """Everything that the unprivileged platform reads is reachable for its user: interpreter, packages, data, cache.

    Raises:
        PreflightError: with the path that is closed, its mode and the remedy.
    """
    paths = [Path(__file__).resolve().parents[1], Path(click.__file__), settings.cache]
    paths += [path for path in (settings.api_cert, settings.api_key) if path]
    with told():
        installation.check_reach(opened, PRODUCT, paths)


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


def check_ports(settings: UpSettings, opened: Installation, *, edge: bool = True) -> None:
    """All ports are free, before anything is changed; the edge's may be held by this installation's own HAProxy.

    They are bound for good later. This look tells it early, and leaves a running platform's context as it is.
    """
    listeners = [("--api-listen", "--api-port", settings.api_listen, settings.api_port)]
    if edge and not edge_lives(opened.run_dir):
        listeners.append(("--http-listen", "--http-port", settings.edge_address, settings.http_port))
    if settings.grpc_port:
        listeners.append(("--grpc-listen", "--grpc-port", settings.grpc_listen, settings.grpc_port))
    if settings.node_port:
        listeners.append(("--node-listen", "--node-port", settings.node_listen, settings.node_port))
    for address_flag, port_flag, address, port in listeners:
        check_port(address_flag, port_flag, address, port)


def check_port(address_flag: str, port_flag: str, address: str, port: int) -> None:
    """A port is free. Raises `PreflightError`."""
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


def kept_edge(data_dir: Path) -> bool:
    """As `edge_lives`, of an installation that is not open, if there is one."""
    with told():
        run_dir = installation.run_dir_of(data_dir)
    return run_dir is not None and edge_lives(run_dir)


def edge_lives(run_dir: Path) -> bool:
    """Whether a HAProxy of the installation with this directory was left running, to be adopted."""
    marker = os.fsencode(run_dir / "edge")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].rpartition(b"/")[2] == b"haproxy" and any(marker in word for word in words):
                return True
    return False


def helper_configuration(
    opened: Installation, *listeners: Listener, zfs: str = "", publish: PublishSite = NOTHING_PUBLISHED
) -> HelperConfiguration:
    """What the root helper is told once: whom it serves, the sockets it may open, the dataset it may use, the ports that VMs
    may answer at."""
    return HelperConfiguration(
        installation_id=opened.id, uid=opened.uid, gid=opened.gid, listeners=listeners, zfs=zfs, publish=publish
    )


def publish_site(settings: UpSettings) -> PublishSite:
    """The ports of this host at which VMs may answer."""
    return PublishSite(settings.published_ports, settings.published_on)


def server_listeners(settings: UpSettings) -> tuple[Listener, ...]:
    """The sockets of a control plane that the helper opens."""
    nodes = (Listener(settings.node_listen, settings.node_port),) if settings.node_port else ()
    return (Listener(settings.api_listen, settings.api_port), *nodes)


def edge_listener(settings: UpSettings) -> Listener:
    """The socket of an edge."""
    return Listener(settings.edge_address, settings.http_port)
