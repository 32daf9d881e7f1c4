"""What all devices that lead to other nodes have in common.

Traps:
- Which way an answer would go says nothing of where a packet may come from: nodes change over from one way to another, each
  at its own time. So the check of the source by routes (`rp_filter`) is loose; but it is strict all the same where the
  device has no address. So it has one that means nothing.

Source: ip-sysctl.rst, RFC 7600 (section 4.8, the dummy address).
"""

from __future__ import annotations

import errno
from pathlib import Path
from socket import if_nametoindex

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from plasmavmc.host.helper.parameters import set_parameter

DUMMY = "192.0.0.8"
_CONF_V6 = Path("/proc/sys/net/ipv6/conf")
_CONF_V4 = Path("/proc/sys/net/ipv4/conf")
_LOOSE = 2


def prepare_tunnel(ip: IPRoute, device: str) -> None:
    """Have a device speak for itself in no way, and take packets whichever way their answers would go. Raises
    `NetlinkError`."""
    set_parameter(_CONF_V6 / device / "addr_gen_mode", 1)
    set_parameter(_CONF_V6 / device / "accept_ra", 0)
    set_parameter(_CONF_V4 / device / "rp_filter", _LOOSE)
    try:
        ip.addr("add", index=if_nametoindex(device), address=DUMMY, prefixlen=32)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
