"""Sockets on ports that only root may take."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from plasmavmc.errors import HostError

_BACKLOG = 1024
_SO_RCVBUFFORCE = 33
"""Of asm-generic/socket.h: beyond what others than root may have (socket(7))."""
_WAITING_BYTES = 4 << 20
"""Of datagrams: questions of many VMs at once wait rather than being lost."""


def listen(address: str, port: int) -> int:
    """A listening TCP socket, owned by the caller.

    SO_REUSEADDR lets a restart bind while old connections linger; a living listener still wins (no SO_REUSEPORT).

    Raises:
        HostError: `port-taken`, `port-refused`.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            raise _refused(address, port, error, "ss -ltnp") from error
        return listener.detach()


def open_datagrams(address: str, port: int) -> int:
    """A UDP socket, owned by the caller. Raises as `listen`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
        with suppress(PermissionError):
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _WAITING_BYTES)
        try:
            opened.bind((address, port))
        except OSError as error:
            raise _refused(address, port, error, "ss -lunp") from error
        return opened.detach()


def _refused(address: str, port: int, error: OSError, look: str) -> HostError:
    taken = error.errno == errno.EADDRINUSE
    return HostError(
        "port-taken" if taken else "port-refused",
        f"cannot listen on {address}:{port}: {error.strerror}",
        resolution=f"see who holds it ({look} 'sport = :{port}'), or choose another port"
        if taken
        else "give an address of this host",
    )
