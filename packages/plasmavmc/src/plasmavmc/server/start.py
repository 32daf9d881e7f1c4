"""The start of `plasmavmc serve`, as root.

Check the host, open the installation, read what only root may read, and split: the parent keeps root and is the helper
from there on, the child drops to the user `shellwego` and only then imports and starts the server. (gRPC must not be
imported before a fork.)
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click

from plasmavmc.errors import HostError
from plasmavmc.guest.boot import load_assets
from plasmavmc.host.architecture import EMULATOR
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.descriptors import raise_descriptor_limit
from plasmavmc.host.installation import (
    Installation,
    Product,
    check_programs,
    check_reach,
    check_root,
    check_zfs,
    open_installation,
)
from plasmavmc.host.split import split
from plasmavmc.images.policy import RegistryPolicy
from plasmavmc.server.settings import ServerTls, ServeSettings, parse_address

PRODUCT = Product("engine", "plasmavmc serve")
PROGRAMS = (EMULATOR, "nft", "tar2sqfs", "mkfs.ext4")


def serve(settings: ServeSettings) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Called by root, returns in the unprivileged child.

    Raises:
        PlasmaError: it cannot start; what, and what to do.
    """
    check_root(PRODUCT)
    raise_descriptor_limit()
    check_programs(PROGRAMS)
    load_assets(settings.cache)
    RegistryPolicy(settings.registries_allow)
    tls = _read_tls(settings)
    installation = open_installation(settings.data_dir, PRODUCT)
    policy = () if settings.policy is None else (settings.policy,)
    check_reach(installation, PRODUCT, (settings.cache, Path(click.__file__), *policy))
    _open_socket_directory(settings.socket.parent, installation)
    check_zfs(settings.zfs)
    link = split(HelperConfiguration(installation.id, installation.uid, installation.gid, zfs=settings.zfs))

    from plasmavmc.server.serve import run_server  # noqa: PLC0415 - for the unprivileged child only

    return run_server(settings, installation, tls, link)


def _read_tls(settings: ServeSettings) -> ServerTls | None:
    """The certificates, read by root, so that only root need be able to read the key.

    Raises:
        HostError: `half-tls`, `bad-certificate`.
    """
    paths = (settings.certificate, settings.key, settings.client_authority)
    if not settings.listen and not any(paths):
        return None
    if not settings.listen or settings.certificate is None or settings.key is None or settings.client_authority is None:
        raise HostError(
            "half-tls",
            "TCP is served with mutual TLS only",
            resolution="Give --listen, --tls-cert, --tls-key and --tls-client-ca together, or none of them.",
        )
    parse_address(settings.listen)
    try:
        return ServerTls(
            settings.certificate.read_bytes(), settings.key.read_bytes(), settings.client_authority.read_bytes()
        )
    except OSError as error:
        raise HostError("bad-certificate", f"{error.filename} cannot be read: {error.strerror}") from error


def _open_socket_directory(path: Path, installation: Installation) -> None:
    """The sockets' directory is the server's own; all may pass through it, for each socket has its own rights.

    Raises:
        HostError: `bad-socket`, it exists and is another's: it is not taken over.
    """
    try:
        path.mkdir(mode=0o711, parents=True)
        path.chmod(0o711)
        os.chown(path, installation.uid, installation.gid)
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != installation.uid or status.st_mode & 0o022:
            raise HostError(
                "bad-socket",
                f"{path} is not a directory of the server's own",
                resolution="Choose another --socket, in a directory that does not exist yet.",
            ) from None
    except OSError as error:
        raise HostError("bad-socket", f"{path} cannot be made: {error.strerror}") from error
