"""A network namespace for a VMM that opens its tap by name: the tap, and a cable from it to the bridge.

Theory. A VMM in a jail shall see no link of the host, and cannot be given a descriptor. So it gets a namespace of its own
with a tap, `JAIL_TAP`, that its uid may open, and a cable (veth) whose other end is a port of the bridge. That end has the
name, and is joined as, any VM's tap: every rule that matches by it holds for what comes out of the jail, and a VMM that was
taken over gets no further than with a descriptor. Frames are handed from tap to cable and back where they come in (tc,
mirred), before any stack of the namespace sees them: it has no address, no route and no IPv6, and answers nothing.

The namespace lives by its processes, the cable by the namespace: when the VMM has ended, the kernel removes all of it.

Trap: this process has one thread, and root must never go on in a namespace that is not its own: where there is no way
back, it ends.

Sources: network_namespaces(7), setns(2), veth(4), tc-mirred(8), Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute

from plasmavmc.host.helper.links import CABLE, Links, make_tap
from plasmavmc.host.helper.netlink import explained
from plasmavmc.host.helper.parameters import set_parameter
from plasmavmc.host.operations import JAIL_TAP, TapRequest

_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_CLONE_NEWNET = 0x40000000
_OWN = Path("/proc/thread-self/ns/net")
_IPV6_OFF = tuple(Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6") for which in ("all", "default"))
_INGRESS = 0xFFFF0000
_ALL_PROTOCOLS = 3
_libc = ctypes.CDLL(None, use_errno=True)


def open_namespace(links: Links, tap: TapRequest, bridge: str, uid: int) -> int:
    """Make a namespace with a tap of `uid`'s, cabled to the bridge by a port called as `tap` says; a descriptor of it. It
    ends with the descriptor and all processes in it.

    Raises:
        HostError: `host-network`, with what the kernel said.
    """
    with explained(f"the network of {tap.name}"):
        namespace = _new()
        try:
            links.plug(tap, bridge, namespace)
            with _inside(namespace):
                _furnish(uid)
        except BaseException:
            os.close(namespace)
            raise
        return namespace


def _furnish(uid: int) -> None:
    for parameter in _IPV6_OFF:
        set_parameter(parameter, 1)
    tap = make_tap(JAIL_TAP)
    try:
        fcntl.ioctl(tap, _TUNSETOWNER, uid)
        fcntl.ioctl(tap, _TUNSETPERSIST, 1)
    finally:
        os.close(tap)
    with IPRoute() as ip:
        ends = [ip.link_lookup(ifname=name)[0] for name in (JAIL_TAP, CABLE)]
        for end, other in (ends, reversed(ends)):
            ip.link("set", index=end, state="up")
            ip.tc("add", "ingress", end)
            ip.tc(
                "add-filter",
                "u32",
                end,
                parent=_INGRESS,
                prio=1,
                protocol=_ALL_PROTOCOLS,
                target=0x10000,
                keys=["0x0/0x0+0"],
                action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": other},
            )


def _new() -> int:
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_CLONE_NEWNET):
            raise _error()
        try:
            return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _return(home)
    finally:
        os.close(home)


@contextmanager
def _inside(namespace: int) -> Iterator[None]:
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(namespace, _CLONE_NEWNET):
            raise _error()
        try:
            yield
        finally:
            _return(home)
    finally:
        os.close(home)


def _return(home: int) -> None:
    if _libc.setns(home, _CLONE_NEWNET):
        sys.stderr.write(f"the root helper cannot return to its network namespace: {_error().strerror}\n")
        os._exit(1)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
