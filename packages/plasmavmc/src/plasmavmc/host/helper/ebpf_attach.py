"""How the programs come to a tap: by links of their own (tcx), else as filters (clsact).

Theory. A tcx link lives by its descriptor or by a pin, not by its tap: each is pinned by the number of its interface, lives
on when the helper ends, and is left as a dead pin when its interface ends (`sweep` takes those away). A filter lives and
ends with its interface, with nothing to keep. Either is exchanged in one step: each frame meets the old program or the new
one.

Attaching by tcx makes the kernel wait until no frame is under way (RCU; twice some 10 ms), which filters do not: so taps
are made ahead (`Links.make_ahead`).

Trap: an interface has one qdisc for what comes in. Where a filter is there for us, it is `clsact`, and a VM's limit has to
go there too, behind us.

Source: include/uapi/linux/bpf.h, net/core: tcx.c; tc-bpf(8).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from socket import if_indextoname
from typing import Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from plasmavmc.host.helper import ebpf_kernel as kernel
from plasmavmc.host.helper.ebpf_programs import FROM_VM, TO_VM, TapPrograms

CLSACT_INGRESS, CLSACT_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_EVERY_PROTOCOL = 0x0003
_FIRST, _HANDLE = 1, 1
_HOOKS = {FROM_VM: kernel.INGRESS, TO_VM: kernel.EGRESS}


class Attachment(Protocol):
    """A way to attach. Errors are `OSError` and `NetlinkError`."""

    name: str
    takes_long: bool

    def attach(self, interface: int, programs: TapPrograms) -> None:
        """Let these programs see every frame of an interface, in place of those of ours that do."""

    def sweep(self) -> None:
        """Take away what interfaces that have ended left."""

    def forget(self, interface: int) -> None:
        """Take away what one that has ended left."""

    def close(self) -> None:
        """Give up what it works with; what is attached stays."""


class TcxLinks:
    """Links that are pinned in a directory of the installation, which is there."""

    name = "tcx"
    takes_long = True

    def __init__(self, pins: Path) -> None:
        self._pins = pins

    def attach(self, interface: int, programs: TapPrograms) -> None:
        for program, hook in _HOOKS.items():
            self._attach(interface, hook, self._pins / f"{interface}-{program}", getattr(programs, program))

    def _attach(self, interface: int, hook: int, place: Path, program: int) -> None:
        link = self._living(place, interface)
        if link is not None:
            try:
                kernel.exchange(link, program)
            finally:
                os.close(link)
            return
        link = kernel.attach(program, interface, hook)
        try:
            kernel.pin(link, place)
        finally:
            os.close(link)

    def _living(self, place: Path, interface: int) -> int | None:
        """The link pinned for an interface; a dead one of an earlier interface of that number is taken away."""
        link = kernel.pinned(place)
        if link is None or kernel.interface_of(link) == interface:
            return link
        os.close(link)
        place.unlink()
        return None

    def sweep(self) -> None:
        for place in self._pins.iterdir():
            number, _, program = place.name.partition("-")
            if program in _HOOKS and not _exists(int(number)):
                place.unlink()

    def forget(self, interface: int) -> None:
        for program in _HOOKS:
            (self._pins / f"{interface}-{program}").unlink(missing_ok=True)

    def close(self) -> None:
        """It has nothing."""


class ClsactFilters:
    """Filters, for kernels without tcx (before 6.6)."""

    name = "clsact"
    takes_long = False

    def __init__(self) -> None:
        self._ip = IPRoute()

    def attach(self, interface: int, programs: TapPrograms) -> None:
        try:
            self._ip.tc("add", "clsact", index=interface)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
        for program, parent in ((FROM_VM, CLSACT_INGRESS), (TO_VM, CLSACT_EGRESS)):
            self._ip.tc(
                "replace-filter",
                "bpf",
                index=interface,
                parent=parent,
                handle=_HANDLE,
                prio=_FIRST,
                protocol=_EVERY_PROTOCOL,
                fd=getattr(programs, program),
                name=program,
                direct_action=True,
            )

    def sweep(self) -> None:
        """Nothing outlives an interface."""

    def forget(self, interface: int) -> None:
        """Likewise."""

    def close(self) -> None:
        self._ip.close()


def remove_pins(pins: Path) -> None:
    """Take away a directory with all that is pinned in it; it may be absent."""
    if pins.exists():
        for place in pins.iterdir():
            place.unlink()
        pins.rmdir()


def _exists(interface: int) -> bool:
    with suppress(OSError):
        return bool(if_indextoname(interface))
    return False
