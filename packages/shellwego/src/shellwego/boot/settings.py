"""What an operator may set. Precedence: flag, environment (`SHELLWEGO_…`), `/etc/shellwego/config.toml`, default.

What contradicts itself is refused by `settingschecks`, before anything begins.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

from shellwego.core.egress import Network, parse_networks
from shellwego.core.errors import InvalidError
from shellwego.core.nodes import CPU_OVERCOMMIT, DISK_OVERCOMMIT, Offer, Underlay
from shellwego.core.peers import is_host_address
from shellwego.core.publishing import parse_ports

Address = IPv4Address | IPv6Address
ByteCount = int
"""Bytes, which an operator may write as `20gb`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSettings:
    data_dir: Path = Path("/var/lib/shellwego")
    http_port: int = 80
    http_listen: str = ""
    """Address of the edge; empty: loopback on a `localhost` domain, else all addresses."""
    api_port: int = 7080
    api_listen: str = "127.0.0.1"
    api_cert: Path | None = None
    api_key: Path | None = None
    api_balancers: tuple[str, ...] = ()
    """Addresses or networks of balancers before the API, such as `10.0.0.5`: their connections are not bounded, as those of
    other addresses are."""
    grpc_port: int = 0
    """Port of the engine's services over the platform (`plasmavmc.v1`, usually 50082); 0: not served."""
    grpc_listen: str = "127.0.0.1"
    node_port: int = 0
    """Port for agents and edges of other hosts (usually 7081); 0: there is none."""
    node_listen: str = "127.0.0.1"
    node_urls: tuple[str, ...] = ()
    """Under which addresses they reach the servers of this platform, such as `https://one.example:7081`; empty: as this
    host is called, and only the one they joined at is used."""
    address: str = ""
    """IPv4 address by which other hosts of the platform reach this one. Empty: see `host_address`; an agent takes that of
    its way to the servers."""
    underlay: str = Underlay.PLAIN.value
    """How packets for the VMs of this host travel here from others (`core.nodes.Underlay`)."""
    wireguard_port: int = 7084
    """With the underlay `wireguard`, the first of two UDP ports."""
    rotate_keys: int = 24
    """Hours for which nodes use a key between them, where they encrypt; the servers of a platform have the same."""
    domain: str = "localhost"
    keep_vms: bool = False
    shutdown_delay: int = 0
    """Seconds for which a server that is asked to end says that it is not ready, and serves all the same, so that a balancer
    turns elsewhere first."""
    open_organizations: bool = False
    """Whether every user may make organizations (on the smallest plan), and not the platform's operators alone."""
    preboot: int = 0
    """How many guests may be booted ahead, so that VMs begin as copies of them; each takes the memory of a booted guest."""
    cpu_overcommit: int = CPU_OVERCOMMIT
    disk_overcommit: int = DISK_OVERCOMMIT
    """How many times over CPU and disk are promised to VMs on this host."""
    reserve_memory: ByteCount = 0
    """Memory of this host that VMs do not get, beside what the engine leaves to it."""
    cache: Path = Path("/var/cache/shellwego")
    registries_allow: tuple[str, ...] | None = None
    """Registries on private addresses that may be used, such as `10.0.0.5:5000`; None: the default for the domain."""
    webhooks_allow: tuple[str, ...] = ()
    """Networks beside the public ones that webhooks may go to, such as `10.0.0.0/8`; there also by plain http."""
    zfs: str = ""
    """The dataset below which volumes are kept, such as `tank/shellwego`; empty: they are in the data directory."""
    connections_per_vm: int = 0
    """Connections that one VM may have open, so that none fills what the host can remember; 0: a share of that."""
    image_budget: ByteCount = 0
    """What built images may take on this machine's disk; beyond it the longest unused go. 0: as much as there is."""
    registry_auth: Path | None = None
    """Logins for registries, as `docker login` writes them; None: /etc/shellwego/registries.json where it exists."""
    registry_logins_for: tuple[str, ...] = ()
    """Organizations, by name or id, whose images are fetched with those logins; `*`: all. Empty: the first one alone."""
    database_url: str = field(default="", repr=False)
    """PostgreSQL, as `postgresql://…`; it may hold a password. Empty: SQLite in the data directory."""
    database_url_file: Path | None = None
    """A file that holds that URL instead."""
    bus_authority_file: Path | None = None
    """As `swg bus init` wrote it: hints go over NATS, for a platform of several hosts. None: within this process."""
    bus_node_passes: bool = False
    """Whether nodes and edges get passes to that bus, and listen there by themselves. Else hints reach them over their links
    to the servers alone."""
    master_passphrase_file: Path | None = None
    """Seals the file of master keys in the data directory; None: see `boot.masterkeys`."""
    master_keys_file: Path | None = None
    """Master keys that are kept outside the data directory, in base64, the current one first."""
    kms: str = "local"
    """Who keeps the master key: `local` (this host, see above), `vault` (its transit engine) or `aws` (AWS KMS)."""
    kms_url: str = ""
    """Address of Vault; for AWS only where it is not AWS' own."""
    kms_key: str = ""
    """`<mount>/<key>` of Vault; an id, ARN or alias of AWS."""
    kms_region: str = ""
    """Of AWS."""
    kms_ca_file: Path | None = None
    """Certificate authority of the KMS, where it is not public."""
    kms_credentials_file: Path | None = None
    """Vault's token, or AWS credentials as `aws configure` writes them (profile `default`); else the systemd credential
    `shellwego.kms-credentials`."""

    backups_url: str = ""
    """Where backups of volumes lie: `file:///directory`, which every node has mounted there, or `s3://bucket/prefix`. Empty:
    there are none."""
    backups_endpoint: str = ""
    """Address of S3 where it is not AWS' own."""
    backups_region: str = ""
    """Of S3."""
    backups_credentials_file: Path | None = None
    """AWS credentials as `aws configure` writes them (profile `default`); else the systemd credential
    `shellwego.backups-credentials`."""

    network_publish: str = ""
    """Ports that apps may publish, such as `20000-29999`. On a server: what may be asked for; on a host that runs VMs: at
    which of them it answers. Empty: none, so that no app opens a port of a public address unless the operator says so."""
    network_publish_on: tuple[str, ...] = ()
    """Addresses of this host at which published ports answer. Empty: all but loopback, link-local and the platform's own."""

    edge_connections_per_source: int = 0
    """Connections that the edge takes from one address, or one /64 of IPv6; 0: a tenth of all that it takes."""
    edge_connections_per_app: int = 0
    """Requests and WebSockets that one app may have open at the edge; 0: a quarter of all."""
    edge_balancers: tuple[str, ...] = ()
    """Addresses or networks of balancers before the edge, which are no one client's; this host itself is none either."""

    @property
    def published_ports(self) -> range:
        """Raises `InvalidError` where it is no range."""
        try:
            return parse_ports(self.network_publish)
        except ValueError as error:
            raise InvalidError("invalid-ports", f"publish, table [network]: {error}") from None

    @property
    def published_on(self) -> tuple[Address, ...]:
        """Raises `InvalidError` where one is no address."""
        try:
            return tuple(ip_address(text) for text in self.network_publish_on)
        except ValueError as error:
            raise InvalidError("invalid-address", f"publish_on, table [network]: {error}") from None

    @property
    def edge_address(self) -> str:
        """Where the edge listens. Nothing listens on a public address unless a domain was given."""
        return self.http_listen or ("127.0.0.1" if self.local else "0.0.0.0")  # noqa: S104 - asked for by --domain

    @property
    def local(self) -> bool:
        """A laptop or a test: the domain resolves to this machine only."""
        return self.domain == "localhost" or self.domain.endswith(".localhost")

    @property
    def key_generation_s(self) -> float:
        """How long nodes use a key between them."""
        return self.rotate_keys * 3600.0

    @property
    def offer(self) -> Offer:
        """How much of this host VMs get."""
        return Offer(
            cpu_overcommit=self.cpu_overcommit,
            disk_overcommit=self.disk_overcommit,
            reserved_memory_bytes=self.reserve_memory,
        )

    @property
    def registry_allow_list(self) -> tuple[str, ...]:
        if self.registries_allow is not None:
            return self.registries_allow
        return ("127.0.0.1:*", "localhost:*") if self.local else ()

    @property
    def webhook_networks(self) -> tuple[Network, ...]:
        """Raises `InvalidError` where one is none."""
        return _networks(self.webhooks_allow, "webhooks_allow")

    @property
    def balancer_networks(self) -> tuple[Network, ...]:
        """Before the API; raises `InvalidError` where one is none."""
        return _networks(self.api_balancers, "api_balancers")

    @property
    def edge_balancer_networks(self) -> tuple[Network, ...]:
        """Before the edge; raises `InvalidError` where one is none."""
        return _networks(self.edge_balancers, "balancers, table [edge]")

    @property
    def api_url(self) -> str:
        scheme = "https" if self.api_cert else "http"
        host = "127.0.0.1" if self.api_listen in ("", "0.0.0.0") else self.api_listen  # noqa: S104 - compared only
        return f"{scheme}://{host}:{self.api_port}"

    @property
    def grpc_address(self) -> str:
        """Where clients of the engine's services connect; empty: nowhere."""
        if not self.grpc_port:
            return ""
        host = "127.0.0.1" if self.grpc_listen in ("", "0.0.0.0") else self.grpc_listen  # noqa: S104 - compared only
        return f"[{host}]:{self.grpc_port}" if ":" in host else f"{host}:{self.grpc_port}"

    @property
    def host_address(self) -> str:
        """By which other hosts reach this one: as was said, else as it tells them itself; empty where that is no address."""
        if self.address:
            return self.address
        hosts = (urlsplit(url).hostname or "" for url in self.node_addresses)
        return next(filter(is_host_address, hosts), "")

    @property
    def node_addresses(self) -> tuple[str, ...]:
        """Where a host that joins finds the node port; empty: nowhere."""
        if self.node_urls or not self.node_port:
            return self.node_urls if self.node_port else ()
        anywhere = self.node_listen in ("", "0.0.0.0", "::")  # noqa: S104 - compared only
        host = socket.gethostname() if anywhere else self.node_listen
        return (f"https://[{host}]:{self.node_port}" if ":" in host else f"https://{host}:{self.node_port}",)

    @property
    def apps_url(self) -> str:
        """Where apps are reached through the edge."""
        return f"http://<app>.{self.domain}" + ("" if self.http_port == 80 else f":{self.http_port}")


def _networks(texts: tuple[str, ...], setting: str) -> tuple[Network, ...]:
    try:
        return parse_networks(texts)
    except InvalidError as error:
        raise InvalidError("invalid-network", f"{setting}: {error.message}") from None
