"""What every request over netlink needs: the number of a link by its name, and the kernel's refusals in our words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import if_nametoindex

from pyroute2.netlink.exceptions import NetlinkError

from plasmavmc.errors import HostError

TUN = "/dev/net/tun"


def index_of(name: str) -> int:
    """Number of a link, 0 where there is none. One ioctl; asked over netlink it takes a millisecond."""
    with suppress(OSError):
        return if_nametoindex(name)
    return 0


def bridge_index(name: str) -> int:
    """Number of a bridge, or of another link that we have made.

    Raises:
        HostError: `no-bridge`, it is not there.
    """
    index = index_of(name)
    if not index:
        raise HostError("no-bridge", f"the bridge {name} is not there", resolution="restart the platform")
    return index


@contextmanager
def absent_is_fine() -> Iterator[None]:
    """Pass over that a thing is not there (any more)."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ENODEV, errno.ENOENT, errno.ESRCH):
            raise


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise `HostError` (`host-network`) for whatever the kernel refuses about `what`, with a remedy where one is known."""
    try:
        yield
    except NetlinkError as error:
        raise HostError("host-network", f"{what}: {os.strerror(error.code)}") from error
    except OSError as error:
        raise HostError("host-network", f"{what}: {error.strerror}", resolution=_remedy(error)) from error


def _remedy(error: OSError) -> str:
    if error.filename == TUN:
        return "load the tun module (modprobe tun)"
    if error.errno == errno.EBUSY:
        return "a link of this name exists; a sweep removes it at the next start"
    return ""
