"""Bridge and taps, over netlink and the tun device.

Theory. The bridge is a switch whose ports may not speak to each other: each tap is isolated, learns nothing and is never
flooded to. The host knows each VM by a static forwarding entry (MAC to tap) and a static neighbour (address to MAC), so a
guest gets no frame that is not for it, and neither an old ARP entry nor a lying guest can lead the host astray.

Traps:
- A bridge without a fixed MAC takes the lowest of its ports, and changes it when taps come and go: guests lose their
  gateway. It is set at creation.
- `send_redirects` of an interface is or-ed with that of `all`; the firewall drops the redirects besides.
- A tap that is not persistent lives as long as a descriptor of it, which is what we want: it dies with its VMM.

Sources: bridge(8), ip-sysctl.rst, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from socket import AF_INET, if_nametoindex

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from plasmavmc.errors import HostError
from plasmavmc.host.configuration import POOL
from plasmavmc.host.helper import shaping
from plasmavmc.host.names import shaper_name
from plasmavmc.host.operations import Bridge, Peer, TapRequest
from plasmavmc.types import mac_of

CABLE = "cable0"
"""The end of a VM's cable that lies in its namespace."""
_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TAP_FLAGS = 0x0002 | 0x1000 | 0x4000 | 0x8000
"""IFF_TAP, IFF_NO_PI, IFF_VNET_HDR (offloads), IFF_TUN_EXCL (never open a tap that exists)."""
_NUD_PERMANENT = 0x80
_NUD_NOARP = 0x40
_NTF_MASTER = 0x04
_MAIN_TABLE = 254
_ROUTE_PROTOCOL = 83
"""Routes made by us, as `ip route` shows them; of no known routing daemon."""
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

    def __init__(self) -> None:
        self._ip = IPRoute()

    def close(self) -> None:
        self._ip.close()

    # The bridge

    def ensure_bridge(self, bridge: Bridge) -> None:
        """Make the bridge, or bring it to this shape: one address, up, forwarding."""
        with explained(f"bridge {bridge.name}"):
            self._refuse_taken(bridge)
            index = self._index(bridge.name) or self._add_bridge(bridge.name)
            set_parameter(_CONF_V6 / bridge.name / "disable_ipv6", 1)
            for key, value in _BRIDGE_CONF.items():
                set_parameter(_CONF / bridge.name / key, value)
            self._address(index, IPv4Interface((bridge.gateway, bridge.network.prefixlen)))
            self._ip.link("set", index=index, state="up")
            set_parameter(Path("/proc/sys/net/ipv4/ip_forward"), 1)

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
        return self._index(name)

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
            own = self._index(besides)
            found = {
                IPv4Interface((address.get_attr("IFA_ADDRESS"), address["prefixlen"])).network
                for address in self._ip.get_addr(family=AF_INET)
                if address["index"] != own
            }
            for route in self._ip.get_routes(family=AF_INET, table=_MAIN_TABLE):
                destination = route.get_attr("RTA_DST")
                if destination is not None and route.get_attr("RTA_OIF") != own:
                    found.add(IPv4Network((destination, route["dst_len"])))
        return {network for network in found if not network.supernet_of(POOL)}

    # Other nodes

    def set_routes(self, bridge: str, peers: Sequence[Peer]) -> tuple[Peer, ...]:
        """Make the routes to peers exactly these; returns the peers that this host has no way to.

        They carry the bridge's address as the source that this host speaks from: by it the peers know it, and we our own.
        """
        with explained("routes to other nodes"):
            source = self._gateway(bridge)
            present = {
                (route.get_attr("RTA_DST"), route["dst_len"]): route.get_attr("RTA_GATEWAY")
                for route in self._ip.get_routes(family=AF_INET, table=_MAIN_TABLE, proto=_ROUTE_PROTOCOL)
                if route.get_attr("RTA_PREFSRC") == source
            }
            wanted = {(str(p.network.network_address), p.network.prefixlen): p for p in peers}
            for address, length in present.keys() - wanted.keys():
                with _absent_is_fine():
                    self._ip.route("del", dst=f"{address}/{length}", prefsrc=source, proto=_ROUTE_PROTOCOL)
            return tuple(
                peer
                for key, peer in wanted.items()
                if present.get(key) != str(peer.via) and not self._route(peer, source)
            )

    def _route(self, peer: Peer, source: str) -> bool:
        try:
            self._ip.route(
                "replace", dst=str(peer.network), gateway=str(peer.via), prefsrc=source, proto=_ROUTE_PROTOCOL
            )
        except NetlinkError as error:
            if error.code not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL):
                raise
            return False
        return True

    def _gateway(self, bridge: str) -> str:
        [address] = self._ip.get_addr(family=AF_INET, index=self._required(bridge))
        return str(address.get_attr("IFA_LOCAL"))

    # Taps

    def open_tap(self, tap: TapRequest, bridge: str) -> int:
        """Make a tap on the bridge; it lives as long as the descriptor returned and its copies."""
        with explained(f"tap {tap.name}"):
            fd = make_tap(tap.name)
            try:
                self._join(tap, bridge)
            except BaseException:
                os.close(fd)
                raise
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
        index = self._index(tap.name)
        set_parameter(_CONF_V6 / tap.name / "disable_ipv6", 1)
        self._ip.link("set", index=index, master=self._required(bridge))
        self._ip.brport("set", index=index, isolated=1, learning=0, unicast_flood=0, mcast_flood=0, bcast_flood=0)
        self._ip.fdb("add", ifindex=index, lladdr=tap.mac, flags=_NTF_MASTER, state=_NUD_NOARP)
        if tap.receive:
            shaping.hold_outgoing(self._ip, index, tap.receive)
        if tap.transmit:
            self._hold_incoming(index, tap)
        self._ip.link("set", index=index, state="up")

    def _hold_incoming(self, index: int, tap: TapRequest) -> None:
        """One device a tap. What an earlier tap of this VM has left is replaced, and another VM's never taken away."""
        shaper = shaper_name(tap.name)
        if self._index(shaper):
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

    def set_neighbours(self, bridge: str, wanted: Mapping[IPv4Address, str]) -> None:
        """Make the static neighbours of the bridge exactly these."""
        with explained(f"neighbours of {bridge}"):
            index = self._required(bridge)
            present = {}
            for entry in self._ip.get_neighbours(family=AF_INET, ifindex=index):
                address = IPv4Address(entry.get_attr("NDA_DST"))
                present[address] = entry.get_attr("NDA_LLADDR") if entry["state"] & _NUD_PERMANENT else None
            for address in present.keys() - wanted.keys():
                with _absent_is_fine():
                    self._ip.neigh("del", dst=str(address), ifindex=index)
            for address, mac in wanted.items():
                if present.get(address) != mac:
                    self._ip.neigh("replace", dst=str(address), lladdr=mac, ifindex=index, state=_NUD_PERMANENT)

    # For sweeps

    def names(self) -> dict[str, str]:
        """All links by name, each with its master's name or nothing."""
        with explained("links of the host"):
            links = list(self._ip.get_links())
        by_index = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
        return {link.get_attr("IFLA_IFNAME"): by_index.get(link.get_attr("IFLA_MASTER"), "") for link in links}

    def is_idle(self, name: str) -> bool:
        """Whether nobody holds the other end: a tap without a VMM, a bridge without such a port."""
        with explained(f"link {name}"), _absent_is_fine():
            if self._index(name):
                return not any(link.get_attr("IFLA_CARRIER") for link in self._ip.get_links(ifname=name))
        return True

    def delete(self, name: str) -> None:
        """Remove a link; one that is not there is fine."""
        with explained(f"link {name}"), _absent_is_fine():
            if index := self._index(name):
                self._ip.link("del", index=index)

    def release(self, name: str) -> None:
        """Take a link off its bridge, and leave it otherwise alone."""
        with explained(f"link {name}"), _absent_is_fine():
            if index := self._index(name):
                self._ip.link("set", index=index, master=0)

    @staticmethod
    def _index(name: str) -> int:
        """Number of a link, 0 where there is none. One ioctl; asked over netlink it takes a millisecond."""
        with suppress(OSError):
            return if_nametoindex(name)
        return 0

    def _required(self, name: str) -> int:
        index = self._index(name)
        if not index:
            raise HostError("no-bridge", f"the bridge {name} is not there", resolution="restart the platform")
        return index


def make_tap(name: str) -> int:
    """A new tap in this process's namespace; it lives as long as a descriptor of it, unless it is made to stay."""
    fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_FLAGS))
    except BaseException:
        os.close(fd)
        raise
    return fd


def set_parameter(path: Path, value: int) -> None:
    """Set a kernel parameter; one that this kernel does not have (IPv6 built out) needs no setting."""
    with suppress(FileNotFoundError):
        path.write_text(f"{value}\n")


@contextmanager
def _absent_is_fine() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ENODEV, errno.ENOENT, errno.ESRCH):
            raise


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the kernel says into an error of ours."""
    try:
        yield
    except NetlinkError as error:
        raise HostError("host-network", f"{what}: {os.strerror(error.code)}") from error
    except OSError as error:
        raise HostError("host-network", f"{what}: {error.strerror}", resolution=_remedy(error)) from error


def _remedy(error: OSError) -> str:
    if error.filename == _TUN:
        return "load the tun module (modprobe tun)"
    if error.errno == errno.EBUSY:
        return "a link of this name exists; a sweep removes it at the next start"
    return ""
