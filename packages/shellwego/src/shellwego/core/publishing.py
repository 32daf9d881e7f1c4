"""Published ports: a port of every node's addresses that leads to the instances of an app. Pure.

Theory. Like its hostname a published port is an app's, and of no release: it stays through deploys and rollbacks. A port is
one app's on the whole platform, and whoever asks for one that is taken hears no more than that. What the operator did not
offer cannot be published, and he offers nothing by himself: a port of a public address is not an app's to open.

An instance that serves (healthy, wanted, awake) gets new connections. One that is ill, or drains, keeps those that it has as
long as it has its VM. One that sleeps gets none, and nothing that comes in there would wake it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from shellwego.core.apps import AppConfig
from shellwego.core.instances import Desired, Instance, OwnerKind, Phase, Sleep
from shellwego.core.routes import service_port

LEAST_PORT, MOST_PORT = 1, 65_535
MAX_PORTS = 10_000
"""Of a platform: each node knows all of them."""
MAX_ENDPOINTS = 256
"""Of one port that are told to nodes."""
NO_PORTS = range(0)
SETTLE_S = 5.0
"""From when an instance leaves its ports until no node sends it anything new: they ask every other second."""
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_WITH_VM = frozenset({Phase.HEALTHY, Phase.UNHEALTHY, Phase.STOPPING})


class Transport(StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPort:
    id: str
    project_id: str
    app_id: str
    process: str
    """Whose instances answer."""
    transport: Transport
    port: int
    """Of the nodes' addresses."""
    target_port: int
    """Of the instances."""
    created_at: float
    created_by: str = ""
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PortEndpoint:
    """An instance that answers."""

    vm_id: str
    """Its node knows it by this, and by nothing else: an address may be another's by now."""
    ipv4: str
    port: int
    taking: bool = True
    """It gets new connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPort:
    """A published port as nodes are told of it."""

    transport: Transport
    port: int
    endpoints: tuple[PortEndpoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePorts:
    """All published ports: the same for each node, since each answers at all of them."""

    version: str
    """Another one for other ports."""
    ports: tuple[OpenPort, ...] = ()


def parse_ports(text: str) -> range:
    """`20000-29999`, or one port; nothing: none.

    Raises:
        ValueError: it is neither, or no port is in it.
    """
    if not text:
        return NO_PORTS
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError("a range of ports is two numbers with a hyphen between them, such as 20000-29999")
    first, last = int(match[1]), int(match[2] or match[1])
    if not LEAST_PORT <= first <= last <= MOST_PORT:
        raise ValueError(f"ports are from {LEAST_PORT} to {MOST_PORT}, the first before the last")
    return range(first, last + 1)


def open_port(published: PublishedPort, instances: Iterable[Instance]) -> OpenPort:
    """What nodes are told of a port of an app with these instances."""
    found = sorted(_endpoints(published, instances), key=lambda endpoint: endpoint.vm_id)
    return OpenPort(transport=published.transport, port=published.port, endpoints=tuple(found[:MAX_ENDPOINTS]))


def _endpoints(published: PublishedPort, instances: Iterable[Instance]) -> Iterator[PortEndpoint]:
    for instance in instances:
        ours = instance.owner is OwnerKind.APP and instance.process == published.process
        seen = instance.observed
        if ours and instance.phase in _WITH_VM and seen.vm_id and seen.ipv4:
            serves = instance.desired is Desired.SERVE and instance.sleep is Sleep.AWAKE
            yield PortEndpoint(
                vm_id=seen.vm_id,
                ipv4=seen.ipv4,
                port=published.target_port,
                taking=serves and instance.phase is Phase.HEALTHY,
            )


def chosen_process(asked: str, config: AppConfig) -> str:
    """The process whose instances are to answer: the one that was asked for, else the only one, else the only one with a
    service; empty where there is none such."""
    known = [process.name for process in config.processes]
    if asked:
        return asked if asked in known else ""
    serving = [name for name in known if service_port(config, name)]
    return next((names[0] for names in (known, serving) if len(names) == 1), "")
