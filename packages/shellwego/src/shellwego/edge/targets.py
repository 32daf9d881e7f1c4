"""From a route table to what the pool should hold. Pure.

A table comes from the control plane, yet its words end up in HAProxy's commands and files: each is parsed here, and what
does not fit is refused by itself, with a reason, so that one bad route never stops the others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from shellwego.core.routing import MAX_WEIGHT, Endpoint, Route, RouteState, RouteTable
from shellwego.edge import pages
from shellwego.edge.pool import Slot, Wanted, backend_name

_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_INSTANCE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNIX_PATH = re.compile(r"/[A-Za-z0-9_./-]{1,99}")

_PAGES: Mapping[RouteState, pages.Page] = {
    RouteState.SERVING: pages.NO_SERVER,
    RouteState.STOPPED: pages.STOPPED,
    RouteState.STARTING: pages.STARTING,
    RouteState.FAILING: pages.FAILING,
    RouteState.ASLEEP: pages.ASLEEP,
}


@dataclass(slots=True)
class Targets:
    """A route table, parsed. A host is in `hosts` (it is served) or in `pages`."""

    table: RouteTable | None = None
    """What it was parsed from; None before the first."""
    apps: dict[str, dict[str, Slot]] = field(default_factory=dict)
    """App → server name → slot; only apps with at least one endpoint."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Host → app."""
    pages: dict[str, str] = field(default_factory=dict)
    instances: set[str] = field(default_factory=set)
    departed: dict[str, str] = field(default_factory=dict)
    """Instance whose former VM ended → the server name of its next one; empty where it has none."""
    refused: list[str] = field(default_factory=list)

    @property
    def version(self) -> int:
        """Of the table; -1 before the first."""
        return -1 if self.table is None else self.table.version


def read_table(table: RouteTable) -> Targets:
    """Parse a table. A route with endpoints is served, whatever its state says: a request that can be answered is.

    Routes of one app share its backend, which holds the endpoints of all of them.
    """
    targets = Targets(table)
    for route in table.routes:
        try:
            _read_route(targets, route)
        except ValueError as error:
            targets.refused.append(str(error))
    return targets


def want(targets: Targets, backends: Mapping[str, int]) -> Wanted:
    """What the pool should hold, for the apps that have a backend. The others show that no server is ready."""
    served = {app: backend_name(backends[app]) for app in targets.apps if app in backends}
    unplaced = {host: pages.NO_SERVER.name for host, app in targets.hosts.items() if app not in served}
    return Wanted(
        servers={(backend, name): slot for app, backend in served.items() for name, slot in targets.apps[app].items()},
        hosts={host: served[app] for host, app in targets.hosts.items() if app in served},
        pages={**targets.pages, **unplaced},
        departed=targets.departed,
    )


def server_name(instance_id: str, address: str) -> str:
    """The name of the server for an instance at an address, as `parse_address` gives it."""
    return f"{instance_id}.{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def parse_address(text: str) -> str:
    """`tcp:10.64.0.5:8080` or `unix:/path`, as HAProxy writes it.

    Raises:
        ValueError: it is neither.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and _UNIX_PATH.fullmatch(rest) and ".." not in rest:
        return f"unix@{rest}"
    host, _, port = rest.rpartition(":")
    if kind != "tcp" or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"not an address: {text[:100]!r}")
    address = ip_address(host.removeprefix("[").removesuffix("]"))
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"an address with a scope: {text[:100]!r}")
        return f"[{address}]:{int(port)}"
    return f"{address}:{int(port)}"


def _read_route(targets: Targets, route: Route) -> None:
    if not _HOST.fullmatch(route.host):
        raise ValueError(f"{route.app_id[:64]!r}: not a host name: {route.host[:100]!r}")
    if route.host in targets.hosts or route.host in targets.pages:
        raise ValueError(f"{route.app_id[:64]!r}: a second route of host {route.host}")
    slots = _slots(targets, route)
    _read_departed(targets, route)
    if slots:
        targets.hosts[route.host] = route.app_id
        targets.apps.setdefault(route.app_id, {}).update(slots)
    else:
        targets.pages[route.host] = _PAGES[route.state].name


def _slots(targets: Targets, route: Route) -> dict[str, Slot]:
    slots: dict[str, Slot] = {}
    for endpoint in route.endpoints:
        try:
            slots.update([_slot(endpoint)])
        except ValueError as error:
            targets.refused.append(f"{route.host}: {error}")
            continue
        targets.instances.add(endpoint.instance_id)
    return slots


def _read_departed(targets: Targets, route: Route) -> None:
    for departed in route.departed:
        try:
            name = _server(departed.instance_id, departed.address)[0] if departed.address else ""
        except ValueError as error:
            targets.refused.append(f"{route.host}: {error}")
        else:
            targets.departed[departed.instance_id] = name


def _slot(endpoint: Endpoint) -> tuple[str, Slot]:
    if not 0 <= endpoint.weight <= MAX_WEIGHT:
        raise ValueError(f"{endpoint.instance_id[:64]!r}: the weight {endpoint.weight} is not within 0 to {MAX_WEIGHT}")
    name, address = _server(endpoint.instance_id, endpoint.address)
    return name, Slot(address, endpoint.weight)


@lru_cache(maxsize=65_536)
def _server(instance_id: str, address: str) -> tuple[str, str]:
    """Name and address of a server. Kept, because each new table repeats nearly all of the one before."""
    if not _INSTANCE.fullmatch(instance_id):
        raise ValueError(f"not an instance id: {instance_id[:100]!r}")
    parsed = parse_address(address)
    return server_name(instance_id, parsed), parsed
