"""Listening sockets on ports that only root may take."""

from __future__ import annotations

import errno
import socket

from plasmavmc.errors import HostError

_BACKLOG = 1024


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
            taken = error.errno == errno.EADDRINUSE
            raise HostError(
                "port-taken" if taken else "port-refused",
                f"cannot listen on {address}:{port}: {error.strerror}",
                resolution=f"see who holds it (ss -ltnp 'sport = :{port}'), or choose another port"
                if taken
                else "give an address of this host",
            ) from error
        return listener.detach()
