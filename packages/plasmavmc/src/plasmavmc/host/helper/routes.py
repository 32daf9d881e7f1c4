"""Routes to other nodes, and the tunnels that some of them lead into.

Theory. To each node's networks there is one route for IPv4 and one for IPv6: by the node's host, or into the device of
a tunnel. In a VXLAN tunnel the route's gateway is the node itself, under an address that is never looked up (`vxlan`);
WireGuard knows by the packet's destination which node it is for. A route is replaced only where its gateway or device
has changed, and in one step, so nothing is lost when a node is reached in another way from then on.

There is no route between a node that encrypts and one that does not.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from socket import AF_INET

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from plasmavmc.host.helper import ipv6, vxlan, wireguard
from plasmavmc.host.helper.cgroups import Cgroups
from plasmavmc.host.helper.links import Links
from plasmavmc.host.helper.netlink import absent_is_fine, explained
from plasmavmc.host.helper.uids import Uids
from plasmavmc.host.helper.wireguard import Tunnels
from plasmavmc.host.helper.wireguard_go import WireguardGo
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Peer, ProcessId, Reach, Routed, Underlay

_ONLINK = 0x04
"""RTNH_F_ONLINK: the gateway is there, though no address says so."""
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.ENODEV)


class Routes:
    """Those of one installation, from the network namespace of `links`."""

    def __init__(
        self, links: Links, names: HostNames, cgroups: Cgroups, uids: Uids, run_root: Path, *, settle_s: float
    ) -> None:
        self._links = links
        self._ip = links.ip
        self._names = names
        self._program = WireguardGo(links.ip, cgroups, uids, run_root)
        self._encrypted = Tunnels(links.ip, names, self._program, settle_s=settle_s)

    @property
    def watched(self) -> frozenset[int]:
        """Descriptors that can be read when there is something to `collect`."""
        return self._program.watched

    def collect(self) -> None:
        """Take note of processes that have ended or spoken."""
        self._program.collect()

    def close(self) -> None:
        """Let go of what outlives this process."""
        self._program.close()

    @property
    def processes(self) -> frozenset[ProcessId]:
        """Those that encrypt, also an earlier helper's."""
        found = (self._program.process_of(name) for name in self._names.tunnels)
        return frozenset(process for process in found if process is not None)

    def set(self, peers: Sequence[Peer], reach: Reach) -> Routed:
        """Make the routes to peers exactly these; tells of peers that this host has no route to, or none for their private
        network."""
        with explained("routes to other nodes"):
            fit = [peer for peer in peers if reach.fits(peer)]
            devices = {**self._plain_tunnel(fit, reach), **self._encrypted_tunnels(fit, reach)}
            reachable = [peer for peer in fit if peer.underlay is Underlay.PLAIN or devices.get(peer)]
            lacking = self._set_routes(reachable, devices)
            reached = [peer for peer in reachable if peer not in lacking]
            lacking += ipv6.set_routes(self._ip, ipv6.metric_of(self._names.code), reached, devices)
            left_out = tuple(peer for peer in peers if peer not in reachable)
            return Routed(left_out + lacking, self._encrypted.keys, self._encrypted.encrypted_by)

    def leave(self) -> None:
        """Remove what a bridge's end does not take with it: the tunnels, and the routes of private networks."""
        with explained("routes to other nodes"):
            ipv6.set_routes(self._ip, ipv6.metric_of(self._names.code), (), {})
            self._encrypted.remove()

    def _plain_tunnel(self, peers: Sequence[Peer], reach: Reach) -> dict[Peer, int]:
        """The device for those that are reached by VXLAN, and by which we are; none where nobody needs it."""
        ends, number = vxlan.tunnelled(peers), vxlan.number_of(peers)
        if number is None or not (ends or reach.underlay is Underlay.VXLAN):
            self._links.delete(self._names.tunnel)
            return {}
        gateway = self._links.gateway(self._names.bridge)
        index = vxlan.ensure(self._ip, self._names.tunnel, number, gateway, self._own(reach.address))
        vxlan.set_peers(self._ip, index, ends)
        if beneath := [mtu for peer in ends if (mtu := self._mtu_towards(peer.via))]:
            vxlan.set_mtu(self._ip, index, min(beneath))
        return dict.fromkeys(ends, index)

    def _encrypted_tunnels(self, peers: Sequence[Peer], reach: Reach) -> dict[Peer, int]:
        """The device of each node that is reached by WireGuard; without those whose host cannot be reached."""
        if not reach.ports:
            self._encrypted.remove()
            return {}
        self._encrypted.keep(peers, reach)
        beneath = {peer: self._mtu_towards(peer.via) for peer in peers if wireguard.is_end(peer)}
        self._encrypted.set_mtu(min(filter(None, beneath.values()), default=0))
        return {peer: self._encrypted.way_to(peer) for peer, mtu in beneath.items() if mtu}

    def _own(self, address: IPv4Address | None) -> IPv4Address | None:
        """An address that this host has; not one by which others know it, and that is translated on the way."""
        if address is None or not list(self._ip.get_addr(family=AF_INET, address=str(address))):
            return None
        return address

    def _mtu_towards(self, host: IPv4Address) -> int:
        """Of the link by which a host is reached; 0 where there is no way to it."""
        try:
            [link] = self._ip.get_links(ipv6.interface_to(self._ip, host))
        except NetlinkError as error:
            if error.code not in _UNREACHABLE:
                raise
            return 0
        return int(link.get_attr("IFLA_MTU"))

    def _set_routes(self, peers: Sequence[Peer], devices: dict[Peer, int]) -> tuple[Peer, ...]:
        """By IPv4.

        They carry the bridge's address as the source that this host speaks from: by it the peers know it, and we our own.
        """
        source = str(self._links.gateway(self._names.bridge))
        present = {
            (route.get_attr("RTA_DST"), route["dst_len"]): (route.get_attr("RTA_GATEWAY"), route.get_attr("RTA_OIF"))
            for route in self._ip.get_routes(family=AF_INET, table=ipv6.MAIN_TABLE, proto=ipv6.ROUTE_PROTOCOL)
            if route.get_attr("RTA_PREFSRC") == source
        }
        wanted = {(str(p.network.network_address), p.network.prefixlen): p for p in peers}
        for address, length in present.keys() - wanted.keys():
            with absent_is_fine():
                self._ip.route("del", dst=f"{address}/{length}", prefsrc=source, proto=ipv6.ROUTE_PROTOCOL)
        return tuple(
            peer
            for key, peer in wanted.items()
            if not _leads(present.get(key), peer, devices.get(peer))
            and not self._route(peer, source, devices.get(peer))
        )

    def _route(self, peer: Peer, source: str, device: int | None) -> bool:
        by_tunnel = {} if device is None else {"oif": device, "flags": _ONLINK}
        try:
            self._ip.route(
                "replace",
                dst=str(peer.network),
                gateway=_gateway_to(peer, device),
                prefsrc=source,
                proto=ipv6.ROUTE_PROTOCOL,
                **by_tunnel,
            )
        except NetlinkError as error:
            if error.code not in _UNREACHABLE:
                raise
            return False
        return True


def encrypting() -> str:
    """By whom WireGuard would be here; raises as `wireguard.who_encrypts`."""
    with explained("WireGuard"), IPRoute() as ip:
        return wireguard.who_encrypts(ip)


def _leads(present: tuple[str, int] | None, peer: Peer, device: int | None) -> bool:
    """Whether a route that is there is that to a node. By which device its host is reached the kernel knows."""
    if present is None:
        return False
    gateway, interface = present
    return gateway == _gateway_to(peer, device) and device in (None, interface)


def _gateway_to(peer: Peer, device: int | None) -> str:
    """Who is at the other end of the link to a node: its host, or, through a tunnel, itself."""
    return str(peer.via if device is None else peer.gateway)
