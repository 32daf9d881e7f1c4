"""The tunnel to other nodes: frames for their VMs in UDP datagrams between hosts (VXLAN, RFC 7348).

Theory. One device leads to all nodes that are to be reached so. A node's MAC on it is made of its gateway, and a static
forwarding entry says to which host that MAC's frames go; static neighbours say which MAC a gateway has, by both families.
So nothing is learnt or flooded and nobody is asked anything, and the device needs no address of its own: packets are routed
into it, as over a cable. All nodes of a platform share one network number, which is made of the platform's prefix.

Whoever can send a datagram in the name of a node's host can speak as that node; the firewall takes datagrams of the nodes'
hosts only (`rules`), and what is between hosts has to see to the rest.

Traps:
- The kernel takes 1,500 bytes for the device whatever lies beneath: a datagram that is too long would be cut to pieces. So
  its MTU is set, and a VM that sends more is told by the host (ICMP).
- Several installations of a host share the port, told apart by their numbers.

Sources: Documentation/networking/vxlan.rst, bridge(8) on fdb.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import if_nametoindex

from pyroute2 import IPRoute

from plasmavmc.host.addresses import HOSTS, vxlan_number
from plasmavmc.host.helper.tunnel_device import prepare_tunnel
from plasmavmc.host.operations import Peer, Underlay
from plasmavmc.types import mac_of

PORT = 7083
OVERHEAD_BYTES = 50
"""Ethernet within, VXLAN, UDP and IPv4 without options."""
_LEAST_MTU = 1280
"""Of IPv6 (RFC 8200, section 5)."""
_NTF_SELF = 0x02
_PERMANENT = 0x80


def tunnelled(peers: Iterable[Peer]) -> list[Peer]:
    """Those that are reached so."""
    return [peer for peer in peers if peer.underlay is Underlay.VXLAN and peer.private is not None]


def number_of(peers: Iterable[Peer]) -> int | None:
    """The platform's network number, which any of its nodes tells; None where none does."""
    return next((vxlan_number(peer.private) for peer in peers if peer.private is not None), None)


def ensure(ip: IPRoute, name: str, number: int, gateway: IPv4Address, address: IPv4Address | None) -> int:
    """Have the tunnel's device of this name, and return its index. `gateway` is this node's own, and `address` that by which
    the others know its host. Raises `NetlinkError`."""
    local = {} if address is None else {"vxlan_local": str(address)}
    index = _present(ip, name, number, local.get("vxlan_local"))
    if not index:
        ip.link(
            "add",
            ifname=name,
            kind="vxlan",
            vxlan_id=number,
            vxlan_port=PORT,
            vxlan_learning=0,
            address=_mac(gateway),
            **local,
        )
        index = if_nametoindex(name)
        prepare_tunnel(ip, name)
    ip.link("set", index=index, state="up")
    return index


def _present(ip: IPRoute, name: str, number: int, local: str | None) -> int:
    """The index of the device; one with another number or address is removed."""
    for link in ip.get_links():
        if link.get_attr("IFLA_IFNAME") == name:
            info = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
            known = None if info is None else (info.get_attr("IFLA_VXLAN_ID"), info.get_attr("IFLA_VXLAN_LOCAL"))
            if known == (number, local):
                return int(link["index"])
            ip.link("del", index=link["index"])
    return 0


def set_mtu(ip: IPRoute, index: int, beneath: int) -> None:
    """Have whole datagrams fit into what lies beneath, of that MTU. Raises `NetlinkError`."""
    ip.link("set", index=index, mtu=max(beneath - OVERHEAD_BYTES, _LEAST_MTU))


def set_peers(ip: IPRoute, index: int, peers: Sequence[Peer]) -> None:
    """Make who is at the other ends exactly these. Raises `NetlinkError`."""
    ends = {_mac(peer.gateway): str(peer.via) for peer in peers}
    for entry in list(ip.fdb("dump", ifindex=index)):
        mac, end = entry.get_attr("NDA_LLADDR"), entry.get_attr("NDA_DST")
        if end is not None and ends.get(mac) != end:
            ip.fdb("del", ifindex=index, lladdr=mac, dst=end, flags=_NTF_SELF)
    for mac, end in ends.items():
        ip.fdb("replace", ifindex=index, lladdr=mac, dst=end, flags=_NTF_SELF, state=_PERMANENT)
    _set_neighbours(ip, index, peers)


def _set_neighbours(ip: IPRoute, index: int, peers: Sequence[Peer]) -> None:
    wanted: dict[IPv4Address | IPv6Address, str] = {}
    for peer in peers:
        wanted |= {peer.gateway: _mac(peer.gateway), gateway6(peer): _mac(peer.gateway)}
    for entry in list(ip.get_neighbours(ifindex=index)):
        address = ip_address(entry.get_attr("NDA_DST"))
        if address not in wanted and not address.is_multicast:
            ip.neigh("del", dst=str(address), ifindex=index)
    for address, mac in wanted.items():
        ip.neigh("replace", dst=str(address), lladdr=mac, ifindex=index, state=_PERMANENT)


def gateway6(peer: Peer) -> IPv6Address:
    """What a node is called at the tunnel by IPv6."""
    return HOSTS[int(peer.gateway)]


def _mac(gateway: IPv4Address) -> str:
    return mac_of(f"underlay {gateway}")
