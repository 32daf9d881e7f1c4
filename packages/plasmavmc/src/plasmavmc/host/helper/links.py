"""Bridge and taps, over netlink and the tun device.

Theory. The bridge is a switch whose ports may not speak to each other: each tap is isolated, learns nothing and is never
flooded to. The host knows each VM by a static forwarding entry (MAC to tap) and a static neighbour (address to MAC, see
`neighbours`), so a guest gets no frame that is not for it, and neither an old ARP entry nor a lying guest can lead the host
astray.

Traps:
- A bridge without a fixed MAC takes the lowest of its ports, and changes it when taps come and go: guests lose their
  gateway. It is set at creation.
- `send_redirects` of an interface is or-ed with that of `all`; the firewall drops the redirects besides.
- A tap that is not persistent lives as long as a descriptor of it, which is what we want: it dies with its VMM.

Sources: bridge(8), ip-sysctl.rst, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from socket import AF_INET

from pyroute2 import IPRoute

from plasmavmc.errors import HostError
from plasmavmc.host.configuration import POOL
from plasmavmc.host.helper import ipv6, shaping
from plasmavmc.host.helper.ebpf_guard import TapGuard
from plasmavmc.host.helper.netlink import TUN, absent_is_fine, bridge_index, explained, index_of
from plasmavmc.host.helper.parameters import set_parameter
from plasmavmc.host.names import shaper_name
from plasmavmc.host.operations import Bridge, Guarding, Member, TapRequest
from plasmavmc.types import mac_of

CABLE = "cable0"
"""The end of a VM's cable that lies in its namespace."""
_TUNSETIFF = 0x400454CA
_TAP_FLAGS = 0x0002 | 0x1000 | 0x4000 | 0x8000
"""IFF_TAP, IFF_NO_PI, IFF_VNET_HDR (offloads), IFF_TUN_EXCL (never open a tap that exists)."""
_MOST_WAITING = 4
"""Taps made ahead: for VMs that start together."""
_NUD_NOARP = 0x40
_NTF_MASTER = 0x04
_CONF = Path("/proc/sys/net/ipv4/conf")
_CONF_V6 = Path("/proc/sys/net/ipv6/conf")
_BRIDGE_CONF = {
    "forwarding": 1,
    "rp_filter": 1,
    "send_redirects": 0,
    "accept_redirects": 0,
    "accept_source_route": 0,
    "arp_ignore": 1,
}


class Links:
    """The links of the network namespace that the helper was started in."""

    def __init__(self, guard: TapGuard) -> None:
        self._ip = IPRoute()
        self._guard = guard
        self._waiting: dict[str, int] = {}
        """Taps made ahead: descriptors by name."""

    @property
    def ip(self) -> IPRoute:
        """For whoever changes other links of this namespace."""
        return self._ip

    def close(self) -> None:
        self._ip.close()
        self.drop_waiting()

    # The bridge

    def ensure_bridge(self, bridge: Bridge) -> str:
        """Make the bridge, or bring it to this shape: one address of each family, up, forwarding. Returns what IPv6 lacks
        here."""
        with explained(f"bridge {bridge.name}"):
            self._refuse_taken(bridge)
            index = index_of(bridge.name) or self._add_bridge(bridge.name)
            for key, value in _BRIDGE_CONF.items():
                set_parameter(_CONF / bridge.name / key, value)
            self._address(index, IPv4Interface((bridge.gateway, bridge.network.prefixlen)))
            lack = ipv6.prepare(bridge.name)
            self._ip.link("set", index=index, state="up")
            set_parameter(Path("/proc/sys/net/ipv4/ip_forward"), 1)
            if not lack:
                ipv6.speak(self._ip, index)
            return lack

    def _add_bridge(self, name: str) -> int:
        self._ip.link(
            "add",
            ifname=name,
            kind="bridge",
            address=mac_of(name),
            br_stp_state=0,
            br_forward_delay=0,
            br_mcast_snooping=0,
        )
        return index_of(name)

    def _refuse_taken(self, bridge: Bridge) -> None:
        for network in self.networks(besides=bridge.name):
            if network.overlaps(bridge.network):
                raise HostError(
                    "subnet-taken",
                    f"{bridge.network} is in use on this host by {network}",
                    resolution="another network must be chosen for this installation",
                )

    def _address(self, index: int, wanted: IPv4Interface) -> None:
        present = set()
        for address in self._ip.get_addr(family=AF_INET, index=index):
            found = IPv4Interface((address.get_attr("IFA_LOCAL"), address["prefixlen"]))
            if found != wanted:
                self._ip.addr("del", index=index, address=str(found.ip), prefixlen=found.network.prefixlen)
            present.add(found)
        if wanted not in present:
            self._ip.addr("add", index=index, address=str(wanted.ip), prefixlen=wanted.network.prefixlen)

    def networks(self, *, besides: str) -> set[IPv4Network]:
        """Networks that this host has addresses in or routes to, but for those of one link.

        What is as wide as the whole pool or wider (a default route, a company's 10.0.0.0/8) is left out: a narrower
        network beside it is the usual case, and routing prefers it.
        """
        with explained("networks of the host"):
            own = index_of(besides)
            found = {
                IPv4Interface((address.get_attr("IFA_ADDRESS"), address["prefixlen"])).network
                for address in self._ip.get_addr(family=AF_INET)
                if address["index"] != own
            }
            for route in self._ip.get_routes(family=AF_INET, table=ipv6.MAIN_TABLE):
                destination = route.get_attr("RTA_DST")
                if destination is not None and route.get_attr("RTA_OIF") != own:
                    found.add(IPv4Network((destination, route["dst_len"])))
        return {network for network in found if not network.supernet_of(POOL)}

    # Taps

    def open_tap(self, tap: TapRequest, bridge: str) -> int:
        """Make a tap on the bridge; it lives as long as the descriptor returned and its copies."""
        with explained(f"tap {tap.name}"):
            fd = self._take_waiting(tap.name) if self._waiting else make_tap(tap.name)
            try:
                self._join(tap, bridge)
            except BaseException:
                os.close(fd)
                raise
            return fd

    @property
    def waiting(self) -> frozenset[str]:
        """Names of taps that were made ahead."""
        return frozenset(self._waiting)

    def make_ahead(self, prefix: str) -> bool:
        """Have one more tap wait with programs at it, down and on no bridge, where programs take long to attach; whether
        another could be of use."""
        if not self._guard.takes_long or len(self._waiting) >= _MOST_WAITING:
            return False
        name = next(name for number in range(_MOST_WAITING) if (name := f"{prefix}{number}") not in self._waiting)
        with explained(f"tap {name}"):
            fd = make_tap(name)
            try:
                self._guard.prepare(index_of(name))
            except BaseException:
                os.close(fd)
                raise
        self._waiting[name] = fd
        return len(self._waiting) < _MOST_WAITING

    def _take_waiting(self, name: str) -> int:
        waiting, fd = next(iter(self._waiting.items()))
        self._ip.link("set", index=bridge_index(waiting), ifname=name)
        del self._waiting[waiting]
        return fd

    def plug(self, tap: TapRequest, bridge: str, namespace: int) -> None:
        """Lay a cable from the bridge, where its end is called and treated as a tap, to `CABLE` in a namespace, with which
        it ends."""
        with explained(f"cable {tap.name}"):
            self._ip.link("add", ifname=tap.name, kind="veth", peer={"ifname": CABLE, "net_ns_fd": namespace})
            try:
                self._join(tap, bridge)
            except BaseException:
                self.delete(tap.name)
                raise

    def _join(self, tap: TapRequest, bridge: str) -> None:
        index = index_of(tap.name)
        set_parameter(_CONF_V6 / tap.name / "disable_ipv6", 1)
        self._ip.link("set", index=index, master=bridge_index(bridge))
        self._ip.brport("set", index=index, isolated=1, learning=0, unicast_flood=0, mcast_flood=0, bcast_flood=0)
        self._ip.fdb("add", ifindex=index, lladdr=tap.mac, flags=_NTF_MASTER, state=_NUD_NOARP)
        self._guard.attach(tap.name, index)
        if tap.receive:
            shaping.hold_outgoing(self._ip, index, tap.receive)
        if tap.transmit:
            self._hold_incoming(index, tap)
        self._ip.link("set", index=index, state="up")

    def _hold_incoming(self, index: int, tap: TapRequest) -> None:
        """One device a tap. What an earlier tap of this VM has left is replaced, and another VM's never taken away."""
        shaper = shaper_name(tap.name)
        if index_of(shaper):
            if any(name not in (tap.name, shaper) and shaper_name(name) == shaper for name in self.names()):
                raise HostError(
                    "tap-name", f"two VMs would share the device {shaper}", resolution="create the VM again"
                )
            self.delete(shaper)
        try:
            shaping.hold_incoming(self._ip, index, shaper, tap.transmit)
        except BaseException:
            self.delete(shaper)
            raise
        set_parameter(_CONF_V6 / shaper / "disable_ipv6", 1)

    def lack_of_limits(self, name: str) -> str:
        """What the kernel lacks to hold taps back; tried out on a link of that name."""
        with explained(f"link {name}"):
            self.delete(name)
            return shaping.lack(self._ip, name)

    def guarding(self, name: str) -> Guarding:
        """How taps are guarded; tried out, once, on a tap of that name."""
        if not self._guard.tried:
            with explained(f"tap {name}"):
                fd = make_tap(name)
                try:
                    self._guard.choose(index_of(name))
                finally:
                    os.close(fd)
        return self._guard.told()

    def guard(self, members: Sequence[Member]) -> bool:
        """Let taps send as these members, and the others nothing. False where no programs stand at them."""
        with explained("programs at taps"):
            return self._guard.apply(members)

    def change_guard(self, coming: Sequence[Member], leaving: Sequence[Member]) -> bool:
        """As `guard`, where only these members are others."""
        with explained("programs at taps"):
            return self._guard.change(coming, leaving)

    # For sweeps

    def names(self) -> dict[str, str]:
        """All links by name, each with its master's name or nothing."""
        with explained("links of the host"):
            links = list(self._ip.get_links())
        by_index = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
        return {link.get_attr("IFLA_IFNAME"): by_index.get(link.get_attr("IFLA_MASTER"), "") for link in links}

    def is_idle(self, name: str) -> bool:
        """Whether nobody holds the other end: a tap without a VMM, a bridge without such a port."""
        with explained(f"link {name}"), absent_is_fine():
            if index_of(name):
                return not any(link.get_attr("IFLA_CARRIER") for link in self._ip.get_links(ifname=name))
        return True

    def delete(self, name: str) -> None:
        """Remove a link; one that is not there is fine."""
        with explained(f"link {name}"), absent_is_fine():
            if index := index_of(name):
                self._ip.link("del", index=index)

    def release(self, name: str) -> None:
        """Take a link off its bridge, and leave it otherwise alone."""
        with explained(f"link {name}"), absent_is_fine():
            if index := index_of(name):
                self._ip.link("set", index=index, master=0)

    def gateway(self, bridge: str) -> IPv4Address:
        """The address of the bridge."""
        [address] = self._ip.get_addr(family=AF_INET, index=bridge_index(bridge))
        return IPv4Address(address.get_attr("IFA_LOCAL"))

    def drop_waiting(self) -> None:
        """Let go of the taps that were made ahead."""
        for fd in self._waiting.values():
            os.close(fd)
        self._waiting.clear()


def make_tap(name: str) -> int:
    """A new tap in this process's namespace; it lives as long as a descriptor of it, unless it is made to stay."""
    fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_FLAGS))
    except BaseException:
        os.close(fd)
        raise
    return fd
