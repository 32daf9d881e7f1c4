"""What of an operator's settings cannot be: each refusal names the flag, and comes before anything is begun.

The theme of most: nothing that carries a token leaves this host in clear, and no two servers want one port.
"""

from __future__ import annotations

import re

from shellwego.boot.settings import UpSettings
from shellwego.core.errors import InvalidError
from shellwego.core.nodes import MAX_OVERCOMMIT, Offer, Underlay
from shellwego.core.peers import is_host_address

MAX_PREBOOT = 64
MAX_SHUTDOWN_DELAY = 60
MAX_ROTATE_HOURS = 24 * 365
FEWEST_CONNECTIONS, MOST_CONNECTIONS = 64, 1 << 22
KMS_KINDS = ("local", "vault", "aws")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_DOMAIN = re.compile(r"(?=.{1,200}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_NODE_URL = re.compile(r"https://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}")


def check(settings: UpSettings) -> None:
    """Refuse settings that contradict themselves.

    Raises:
        InvalidError: naming the flag.
    """
    if not _DOMAIN.fullmatch(settings.domain):
        raise InvalidError("invalid-domain", f"--domain: {settings.domain!r} is not a domain name")
    for flag, port in (("--http-port", settings.http_port), ("--api-port", settings.api_port)):
        if not 1 <= port <= 65535:
            raise InvalidError("invalid-port", f"{flag}: {port} is not a port (1 to 65535)")
    _check_bounds(settings)
    _check_offer(settings.offer)
    if settings.kms not in KMS_KINDS:
        raise InvalidError("invalid-kms", f"kms: {settings.kms!r} is none of {', '.join(KMS_KINDS)}")
    if settings.http_port == settings.api_port:
        raise InvalidError("same-port", "--http-port and --api-port must differ")
    _check_grpc(settings)
    _check_node_port(settings)
    _check_bus(settings)
    _check_reach(settings)
    _ = settings.webhook_networks
    _ = settings.balancer_networks
    _ = settings.edge_balancer_networks
    _check_published(settings)
    if bool(settings.api_cert) != bool(settings.api_key):
        raise InvalidError("half-tls", "--api-cert and --api-key go together")
    if settings.api_listen not in _LOOPBACK and not settings.api_cert:
        raise InvalidError(
            "public-api-without-tls",
            f"--api-listen {settings.api_listen}: the API would be reachable from outside without TLS",
            resolution="Give --api-cert and --api-key, or keep it on 127.0.0.1.",
        )


def _check_reach(settings: UpSettings) -> None:
    """How other hosts reach this one."""
    if settings.underlay not in list(Underlay):
        words = f"--underlay: {settings.underlay!r:.40} is none of {', '.join(Underlay)}"
        raise InvalidError("invalid-underlay", words)
    if not 1024 <= settings.wireguard_port < 65535:
        words = f"--wireguard-port: {settings.wireguard_port} is not the first of two ports above root's own (1024 to 65534)"
        raise InvalidError("invalid-port", words)
    if not 1 <= settings.rotate_keys <= MAX_ROTATE_HOURS:
        words = f"--rotate-keys: {settings.rotate_keys} is not between 1 and {MAX_ROTATE_HOURS} hours"
        raise InvalidError("invalid-rotation", words)
    if settings.address and not is_host_address(settings.address):
        words = f"--address: {settings.address!r:.60} is not an IPv4 address by which other hosts could reach this one"
        raise InvalidError("invalid-address", words)


def _check_bounds(settings: UpSettings) -> None:
    if not 0 <= settings.preboot <= MAX_PREBOOT:
        raise InvalidError("invalid-preboot", f"--preboot: {settings.preboot} is not between 0 and {MAX_PREBOOT}")
    if settings.connections_per_vm and not FEWEST_CONNECTIONS <= settings.connections_per_vm <= MOST_CONNECTIONS:
        bounds = f"{FEWEST_CONNECTIONS} and {MOST_CONNECTIONS}"
        words = f"--connections-per-vm: {settings.connections_per_vm} is not between {bounds}"
        raise InvalidError("invalid-connections", words)
    for name in ("connections_per_source", "connections_per_app"):
        if getattr(settings, f"edge_{name}") < 0:
            raise InvalidError("invalid-connections", f"{name}, table [edge]: it is less than none")
    if not 0 <= settings.shutdown_delay <= MAX_SHUTDOWN_DELAY:
        words = f"--shutdown-delay: {settings.shutdown_delay} is not between 0 and {MAX_SHUTDOWN_DELAY}"
        raise InvalidError("invalid-shutdown-delay", words)


def _check_offer(offer: Offer) -> None:
    for flag, times in (("--cpu-overcommit", offer.cpu_overcommit), ("--disk-overcommit", offer.disk_overcommit)):
        if not 1 <= times <= MAX_OVERCOMMIT:
            raise InvalidError("invalid-overcommit", f"{flag}: {times} is not between 1 and {MAX_OVERCOMMIT}")


def _check_grpc(settings: UpSettings) -> None:
    if not settings.grpc_port:
        return
    if not 1024 <= settings.grpc_port <= 65535:
        words = f"--grpc-port: {settings.grpc_port} is not a port above root's own (1024 to 65535)"
        raise InvalidError("invalid-port", words)
    if settings.grpc_port in (settings.http_port, settings.api_port):
        raise InvalidError("same-port", "--grpc-port must differ from --http-port and --api-port")
    if settings.grpc_listen not in _LOOPBACK and not settings.api_cert:
        raise InvalidError(
            "public-grpc-without-tls",
            f"--grpc-listen {settings.grpc_listen}: tokens would travel in clear",
            resolution="Give --api-cert and --api-key, or keep it on 127.0.0.1.",
        )


def _check_published(settings: UpSettings) -> None:
    ports = {"--http-port": settings.http_port, "--api-port": settings.api_port}
    ports |= {"--grpc-port": settings.grpc_port, "--node-port": settings.node_port}
    for flag, port in ports.items():
        if port in settings.published_ports:
            words = f"publish, table [network]: the port of {flag}, {port}, is one of {settings.network_publish}"
            raise InvalidError("same-port", words, resolution="Offer other ports, or have that one elsewhere.")
    _ = settings.published_on


def _check_bus(settings: UpSettings) -> None:
    if settings.bus_node_passes and settings.bus_authority_file is None:
        words = "--bus-node-passes: there is no bus apart to listen on"
        raise InvalidError("no-bus-authority", words, resolution="Give --bus-authority-file, as of swg bus init.")


def _check_node_port(settings: UpSettings) -> None:
    if not settings.node_port:
        return
    if not 1024 <= settings.node_port <= 65535:
        words = f"--node-port: {settings.node_port} is not a port above root's own (1024 to 65535)"
        raise InvalidError("invalid-port", words)
    if settings.node_port in (settings.http_port, settings.api_port, settings.grpc_port):
        raise InvalidError("same-port", "--node-port must differ from the other ports")
    for url in settings.node_urls:
        if not _NODE_URL.fullmatch(url):
            raise InvalidError("invalid-url", f"--node-url: {url!r:.200} is not like https://one.example:7081")
