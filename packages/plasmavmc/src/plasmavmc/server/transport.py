"""Listeners: a unix socket for each user who is known, and TCP with mutual TLS where it is asked for. Nothing in clear.

Theory. A socket's file is made with no rights for anybody (umask), then given to the one user whom it is for: to root
alone by mode 0600 (root passes any mode), to another by one entry of its access control list, which its owner may write
without being root. connect(2) needs write permission on the file (unix(7)), so the kernel keeps all others out. The
directory is the server's own, so nobody puts another file in the place of one of these.

Each listener is a gRPC server of its own, for that is what tells the gate where a call came in; servicers and their
memory are shared.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import grpc

from plasmavmc.errors import HostError
from plasmavmc.rpc.gate import Gate
from plasmavmc.rpc.opening import Enter, bind, open_server
from plasmavmc.server.settings import ServerTls

ROOT_UID = 0
_MAX_PATH = 107
"""Bytes of a socket's path (unix(7))."""


def socket_of(path: Path, uid: int) -> Path:
    """The socket of a user: root's is `path`, that of another lies beside it and carries the user's number."""
    return path if uid == ROOT_UID else path.with_name(f"{path.stem}-{uid}{path.suffix}")


def listen_unix(path: Path, uid: int, gate: Gate, enter: Enter) -> grpc.aio.Server:
    """A server on the socket that only `uid` (and root, and we) may open. Not started yet.

    Raises:
        HostError: `socket-taken`, `bad-socket`; `no-access-lists` where the file system of the socket has none.
    """
    if len(os.fsencode(path)) > _MAX_PATH:
        raise HostError("bad-socket", f"the path of the socket {path} has more than {_MAX_PATH} bytes")
    _make_way(path)
    server = open_server(gate, enter)
    bind(server, f"unix:{path}", server.add_insecure_port)
    path.chmod(0o600)
    if uid not in (ROOT_UID, os.geteuid()):
        _admit(path, uid)
    return server


def listen_tls(address: str, tls: ServerTls, gate: Gate, enter: Enter) -> tuple[grpc.aio.Server, int]:
    """A server on a TCP address with mutual TLS, and its port. Not started yet.

    Raises:
        HostError: `port-taken`.
    """
    server = open_server(gate, enter)
    credentials = grpc.ssl_server_credentials(
        [(tls.key, tls.certificate)], root_certificates=tls.client_authority, require_client_auth=True
    )
    return server, bind(server, address, lambda each: server.add_secure_port(each, credentials))


def _make_way(path: Path) -> None:
    """Remove a socket that nobody serves any more."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise HostError("bad-socket", f"{path} is in the way: it is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise HostError("bad-socket", f"{path} is in the way: {error.strerror}") from error
    raise HostError("socket-taken", f"another server serves {path}", resolution="Stop it, or choose another --socket.")


# Access control lists: acl(5), and the layout of linux/posix_acl_xattr.h.

_ACL = "system.posix_acl_access"
_VERSION = 2
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
_READ_WRITE = 6


def access_list(uids: Sequence[int]) -> bytes:
    """An access control list by which the owner and these users may read and write, and nobody else anything."""
    entries = [
        (_OWNER, _READ_WRITE, _NOBODY),
        *((_USER, _READ_WRITE, uid) for uid in sorted(uids)),
        (_GROUP, 0, _NOBODY),
        (_MASK, _READ_WRITE, _NOBODY),
        (_OTHERS, 0, _NOBODY),
    ]
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _admit(path: Path, uid: int) -> None:
    try:
        os.setxattr(path, _ACL, access_list([uid]))
    except OSError as error:
        raise HostError(
            "no-access-lists",
            f"user {uid} cannot be let in to {path}: {error.strerror}",
            resolution="Put --socket on a file system with access control lists, or give the user a token.",
        ) from error
