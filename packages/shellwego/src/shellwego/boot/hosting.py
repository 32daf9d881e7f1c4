"""Where engine and edge live on this host, whichever process runs them."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Network
from urllib.parse import urlsplit

from shellwego.boot.preflight import Installation, directory
from shellwego.boot.settings import UpSettings
from shellwego.drivers.engine.assembly import EngineSite
from shellwego.edge.processes import haproxy_processes
from shellwego.edge.settings import EdgeSettings, Layout


def engine_site(settings: UpSettings, installation: Installation, subnet: str = "") -> EngineSite:
    """The engine's place; `subnet` is given to a node that joined."""
    return EngineSite(
        installation_id=installation.id,
        data_dir=installation.data_dir,
        run_dir=installation.run_dir,
        cache=settings.cache,
        blobs=directory(installation, "blobs"),
        preboot=settings.preboot,
        image_budget=settings.image_budget,
        subnet=IPv4Network(subnet) if subnet else None,
    )


def address_towards(urls: Iterable[str]) -> str:
    """The address of this host on its way to the first of these that it knows a way to; empty where there is none. Nothing
    is sent."""
    for parts in map(urlsplit, urls):
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((parts.hostname or "", parts.port or 443))
            return str(way.getsockname()[0])
    return ""


def edge_settings(name: str, installation: Installation) -> EdgeSettings:
    """The edge's place."""
    run_dir = installation.run_dir / "edge"
    run_dir.mkdir(mode=0o700, exist_ok=True)
    return EdgeSettings(name=name, run_dir=run_dir, state_dir=directory(installation, "edge"))


def edge_processes(settings: EdgeSettings) -> tuple[tuple[int, int], ...]:
    """HAProxy of this edge: pid and start time."""
    return tuple((each.pid, each.start_time) for each in haproxy_processes(Layout(settings.run_dir)))
