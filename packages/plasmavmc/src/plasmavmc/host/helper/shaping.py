"""How much a second passes a tap, each way: token buckets of the kernel.

Theory. What the host sends out of a tap is what its VM receives, so that way has a bucket at the tap itself. What a VM
sends comes *in* at its tap, where the kernel has no queue to hold frames in; so they are sent round by a device that is
there for nothing else (an `ifb`), which has a bucket and hands them back to the tap, as if they had come just then. What
does not fit waits in a queue of a fifth of a second, and is dropped beyond that: TCP finds its rate, and no connection
starves. Bytes are those of whole frames.

Traps:
- A frame of a VM may be 64 KiB long (offloads). One that is longer than the bucket is cut into frames of a MTU by the
  kernel, which is right but costs; so a bucket is no smaller than a fiftieth of a second, and 16 KiB.
- An ifb is a link of its own: it does not end with its tap. Whoever releases a VM asks for its end; a sweep finds what
  was forgotten.

Source: tc-tbf(8), tc-mirred(8), Documentation of ifb in the kernel's Kconfig.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from socket import if_nametoindex

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from plasmavmc.host.helper.ebpf_attach import CLSACT_INGRESS

_ROOT_HANDLE = 0x10000
_INGRESS = 0xFFFF0000
_EVERY_PROTOCOL = 0x0003
"""ETH_P_ALL of linux/if_ether.h."""
_LAST = 0xFFFF
_BUCKETS_PER_SECOND = 50
_SMALLEST_BUCKET = 16 * 1024
_QUEUES_PER_SECOND = 5
_SMALLEST_QUEUE = 128 * 1024


def hold_outgoing(ip: IPRoute, index: int, rate: int) -> None:
    """Let a link send `rate` bytes a second. Raises `NetlinkError`."""
    burst = max(rate // _BUCKETS_PER_SECOND, _SMALLEST_BUCKET)
    queue = max(rate // _QUEUES_PER_SECOND, _SMALLEST_QUEUE)
    ip.tc("add", "tbf", index, _ROOT_HANDLE, rate=rate, burst=burst, limit=burst + queue)


def hold_incoming(ip: IPRoute, index: int, shaper: str, rate: int) -> None:
    """Let what comes in at a link go on at `rate` bytes a second, by a device of the name `shaper`, which is made.
    Raises `NetlinkError`."""
    detour = add_shaper(ip, shaper)
    hold_outgoing(ip, detour, rate)
    _redirect(ip, index, detour)


def _redirect(ip: IPRoute, index: int, detour: int) -> None:
    """Send what comes in at a link out of another, behind the filters that are there."""
    parent = _INGRESS
    try:
        ip.tc("add", "ingress", index, _INGRESS)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        parent = CLSACT_INGRESS
    ip.tc(
        "add-filter",
        "u32",
        index,
        parent=parent,
        prio=_LAST,
        protocol=_EVERY_PROTOCOL,
        target=_ROOT_HANDLE,
        keys=["0x0/0x0+0"],
        action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": detour},
    )


def add_shaper(ip: IPRoute, name: str) -> int:
    """A device to send frames round by; returns its number. Raises `NetlinkError`."""
    ip.link("add", ifname=name, kind="ifb")
    index = if_nametoindex(name)
    ip.link("set", index=index, state="up")
    return index


def lack(ip: IPRoute, name: str) -> str:
    """What this kernel lacks to hold a link back, in words; empty where it lacks nothing. Found out on a device of that
    name, which is made and taken away."""
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("the device ifb", lambda: add_shaper(ip, name)),
        ("the queue sch_tbf", lambda: hold_outgoing(ip, if_nametoindex(name), _SMALLEST_QUEUE)),
        ("sch_ingress, cls_u32 or act_mirred", lambda: _redirect(ip, if_nametoindex(name), if_nametoindex(name))),
    )
    try:
        for what, attempt in steps:
            try:
                attempt()
            except NetlinkError as error:
                return f"the kernel lacks {what} ({os.strerror(error.code)})"
        return ""
    finally:
        with suppress(OSError):
            ip.link("del", index=if_nametoindex(name))
