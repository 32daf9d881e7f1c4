"""Where engine and edge live on this host, whichever process runs them."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from urllib.parse import urlsplit

from shellwego.boot.preflight import Installation, directory, publish_site
from shellwego.boot.settings import UpSettings
from shellwego.drivers.engine.assembly import EngineSite, Reach, Underlay
from shellwego.edge.processes import haproxy_processes
from shellwego.edge.settings import LOOPBACK, EdgeSettings, Layout


def engine_site(settings: UpSettings, installation: Installation, address: str, subnet: str = "") -> EngineSite:
    """The engine's place. By `address` other hosts reach this one, empty where none does; `subnet` is given to a node that
    joined."""
    return EngineSite(
        installation_id=installation.id,
        data_dir=installation.data_dir,
        run_dir=installation.run_dir,
        cache=settings.cache,
        blobs=directory(installation, "blobs"),
        preboot=settings.preboot,
        image_budget=settings.image_budget,
        connections_per_vm=settings.connections_per_vm,
        zfs=settings.zfs,
        subnet=IPv4Network(subnet) if subnet else None,
        reach=_reach(settings, address),
        publish=publish_site(settings),
        web_port=settings.http_port,
    )


def _reach(settings: UpSettings, address: str) -> Reach:
    underlay = Underlay(settings.underlay)
    port = settings.wireguard_port if underlay is Underlay.WIREGUARD else 0
    return Reach(underlay, IPv4Address(address) if address else None, port)


def address_towards(urls: Iterable[str]) -> str:
    """The address of this host on its way to the first of these that it knows a way to; empty where there is none. Nothing
    is sent."""
    for parts in map(urlsplit, urls):
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((parts.hostname or "", parts.port or 443))
            return str(way.getsockname()[0])
    return ""


def edge_settings(name: str, installation: Installation, settings: UpSettings) -> EdgeSettings:
    """The edge's place, and what it bears."""
    run_dir = installation.run_dir / "edge"
    run_dir.mkdir(mode=0o700, exist_ok=True)
    return EdgeSettings(
        name=name,
        run_dir=run_dir,
        state_dir=directory(installation, "edge"),
        connections_per_source=settings.edge_connections_per_source,
        connections_per_app=settings.edge_connections_per_app,
        balancers=(*LOOPBACK, *map(str, settings.edge_balancer_networks)),
    )


def edge_processes(settings: EdgeSettings) -> tuple[tuple[int, int], ...]:
    """HAProxy of this edge: pid and start time."""
    return tuple((each.pid, each.start_time) for each in haproxy_processes(Layout(settings.run_dir)))
