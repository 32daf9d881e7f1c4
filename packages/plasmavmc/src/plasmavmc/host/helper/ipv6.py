"""The private network's part of the host's links: IPv6 on the bridge, and the routes to other nodes.

Theory. To its guests a host is `fe80::1`, on any node, so a guest that goes on elsewhere keeps its gateway. The bridge has
no other address, sends no router advertisement, and knows each guest by a static neighbour as with IPv4.

To another node leads a route by its host. That host is known by an IPv4 address, and a route of IPv6 needs a neighbour of
IPv6; so every host takes, on each interface by which it reaches others, a link-local address made of its IPv4 address there
(`fe80::73:7767:…`). It is there for being asked for by neighbour discovery, and nothing is sent from it. No node has to be
told another's, and nothing else of the interface is changed.

Traps:
- Forwarding is switched for a whole namespace, and an interface that forwards takes no router advertisements any more
  unless `accept_ra` is 2: a host that lives by them would lose its default route. It is raised where it was 1.
- Routes are told apart by their metric, which holds the installation's code: unlike those of IPv4 they have no preferred
  source, and several installations may have routes to one node.

Sources: ip-sysctl.rst, RFC 4861, RFC 4291.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from socket import AF_INET, AF_INET6

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from plasmavmc.host.addresses import GATEWAY, HOSTS
from plasmavmc.host.helper.parameters import set_parameter
from plasmavmc.host.helper.vxlan import gateway6
from plasmavmc.host.operations import Peer

ROUTE_PROTOCOL = 83
"""Routes made by us, as `ip route` shows them; of no known routing daemon."""
MAIN_TABLE = 254
_CONF = Path("/proc/sys/net/ipv6/conf")
_BRIDGE = {
    "addr_gen_mode": 1,
    "accept_ra": 0,
    "autoconf": 0,
    "accept_redirects": 0,
    "router_solicitations": 0,
    "dad_transmits": 0,
    "disable_ipv6": 0,
}
_NODAD = 0x02
_FIRST_METRIC = 1 << 20
_DIGITS = "abcdefghijklmnopqrstuvwxyz234567"
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.ENODEV, errno.EOPNOTSUPP)
"""EACCES: an interface on which IPv6 is switched off."""


def prepare(bridge: str) -> str:
    """Have a bridge that is not up yet speak IPv6, but only as it is told, and forward it; what stands against it, in words,
    empty where nothing does. Raises `OSError`."""
    if not (_CONF / bridge).is_dir():
        return "the kernel has no IPv6"
    _keep_advertisements(bridge)
    for key, value in _BRIDGE.items():
        set_parameter(_CONF / bridge / key, value)
    set_parameter(_CONF / "all/forwarding", 1)
    return ""


def speak(ip: IPRoute, index: int) -> None:
    """Give the bridge its address. Raises `NetlinkError`."""
    _add_address(ip, index, GATEWAY)


def _keep_advertisements(bridge: str) -> None:
    for place in _CONF.iterdir():
        forwards, accepts = place / "forwarding", place / "accept_ra"
        if place.name not in ("all", bridge) and _read(forwards) == 0 and _read(accepts) == 1:
            set_parameter(accepts, 2)


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except FileNotFoundError:  # the interface has just gone
        return -1


def _add_address(ip: IPRoute, index: int, address: IPv6Address) -> None:
    try:
        ip.addr("add", index=index, address=str(address), prefixlen=128, family=AF_INET6, flags=_NODAD)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def lead_in(ip: IPRoute, index: int, networks: Sequence[IPv6Network]) -> None:
    """Routes to the VMs of this node, which know the host by one address only. Raises `NetlinkError`."""
    for network in networks:
        ip.route("replace", dst=str(network), oif=index, prefsrc=str(GATEWAY), family=AF_INET6, proto=ROUTE_PROTOCOL)


def metric_of(code: str) -> int:
    """What tells an installation's routes from others': its code, four digits of base32, as a number."""
    number = 0
    for digit in code:
        number = number * len(_DIGITS) + _DIGITS.index(digit)
    return _FIRST_METRIC + number


def set_routes(ip: IPRoute, metric: int, peers: Sequence[Peer], tunnels: Mapping[Peer, int]) -> tuple[Peer, ...]:
    """Make the routes to these nodes' private networks exactly these, for the installation of that metric; returns those to
    which there is no way. `tunnels`: the devices of those that are reached by one. Raises `NetlinkError`."""
    wanted = {str(peer.private): peer for peer in peers if peer.private is not None}
    present = {name: (gateway, interface) for name, (gateway, found, interface) in _routes(ip) if found == metric}
    for name in present.keys() - wanted.keys():
        ip.route("del", dst=name, family=AF_INET6, priority=metric, proto=ROUTE_PROTOCOL)
    lacking = tuple(
        peer for name, peer in wanted.items() if not _lead_to(ip, metric, peer, present.get(name), tunnels.get(peer))
    )
    _drop_unused(ip)
    return lacking


def _lead_to(ip: IPRoute, metric: int, peer: Peer, present: tuple[str, int] | None, tunnel: int | None) -> bool:
    gateway = str(_host(peer.via) if tunnel is None else gateway6(peer))
    try:
        interface = tunnel or interface_to(ip, peer.via)
        for address in _own(ip, interface) if tunnel is None else ():
            _add_address(ip, interface, _host(address))
        if present != (gateway, interface):
            ip.route(
                "replace",
                dst=str(peer.private),
                gateway=gateway,
                oif=interface,
                family=AF_INET6,
                priority=metric,
                proto=ROUTE_PROTOCOL,
            )
    except NetlinkError as error:
        if error.code not in _UNREACHABLE:
            raise
        return False
    return True


def _host(address: IPv4Address) -> IPv6Address:
    """The link-local address of the host that has this address on the same link."""
    return HOSTS[int(address)]


def interface_to(ip: IPRoute, address: IPv4Address) -> int:
    """By which a host is reached; raises `NetlinkError`."""
    [route, *_] = ip.route("get", dst=str(address))
    index = route.get_attr("RTA_OIF")
    return index if isinstance(index, int) else 0


def _own(ip: IPRoute, index: int) -> Iterator[IPv4Address]:
    for address in ip.get_addr(family=AF_INET, index=index):
        yield IPv4Address(address.get_attr("IFA_LOCAL"))


def _routes(ip: IPRoute) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Ours and those of other installations to other nodes: network, with gateway, metric and interface."""
    for route in ip.get_routes(family=AF_INET6, table=MAIN_TABLE, proto=ROUTE_PROTOCOL):
        if gateway := route.get_attr("RTA_GATEWAY"):
            name = f"{route.get_attr('RTA_DST')}/{route['dst_len']}"
            yield name, (gateway, route.get_attr("RTA_PRIORITY"), route.get_attr("RTA_OIF"))


def _drop_unused(ip: IPRoute) -> None:
    """Take the link-local addresses away from interfaces that lead to no node any more."""
    used = {interface for _, (_, _, interface) in _routes(ip)}
    for address in list(ip.get_addr(family=AF_INET6)):
        text = address.get_attr("IFA_ADDRESS")
        if address["index"] not in used and IPv6Address(text) in HOSTS:
            ip.addr("del", index=address["index"], address=text, prefixlen=address["prefixlen"], family=AF_INET6)
