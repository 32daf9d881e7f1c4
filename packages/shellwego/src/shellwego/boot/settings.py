"""What an operator may set. Precedence: flag, environment (`SHELLWEGO_…`), `/etc/shellwego/config.toml`, default."""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from shellwego.core.egress import Network, parse_networks
from shellwego.core.errors import InvalidError
from shellwego.core.nodes import CPU_OVERCOMMIT, DISK_OVERCOMMIT, MAX_OVERCOMMIT, Offer
from shellwego.core.peers import is_host_address

CONFIG_FILE = Path("/etc/shellwego/config.toml")
MAX_PREBOOT = 64
MAX_SHUTDOWN_DELAY = 60
_DATABASE = ("database_url", "database_url_file")
_OTHER_TABLES = ("database", "bus")
KMS_KINDS = ("local", "vault", "aws")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_DOMAIN = re.compile(r"(?=.{1,200}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")

_NODE_URL = re.compile(r"https://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}")

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
    image_budget: ByteCount = 0
    """What built images may take on this machine's disk; beyond it the longest unused go. 0: as much as there is."""
    registry_auth: Path | None = None
    """Logins for registries, as `docker login` writes them; None: /etc/shellwego/registries.json where it exists."""
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

    @property
    def edge_address(self) -> str:
        """Where the edge listens. Nothing listens on a public address unless a domain was given."""
        return self.http_listen or ("127.0.0.1" if self.local else "0.0.0.0")  # noqa: S104 - asked for by --domain

    @property
    def local(self) -> bool:
        """A laptop or a test: the domain resolves to this machine only."""
        return self.domain == "localhost" or self.domain.endswith(".localhost")

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
        try:
            return parse_networks(self.webhooks_allow)
        except InvalidError as error:
            raise InvalidError("invalid-network", f"webhooks_allow: {error.message}") from None

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
    if settings.address and not is_host_address(settings.address):
        words = f"--address: {settings.address!r:.60} is not an IPv4 address by which other hosts could reach this one"
        raise InvalidError("invalid-address", words)
    _ = settings.webhook_networks
    if bool(settings.api_cert) != bool(settings.api_key):
        raise InvalidError("half-tls", "--api-cert and --api-key go together")
    if settings.api_listen not in _LOOPBACK and not settings.api_cert:
        raise InvalidError(
            "public-api-without-tls",
            f"--api-listen {settings.api_listen}: the API would be reachable from outside without TLS",
            resolution="Give --api-cert and --api-key, or keep it on 127.0.0.1.",
        )


def _check_bounds(settings: UpSettings) -> None:
    if not 0 <= settings.preboot <= MAX_PREBOOT:
        raise InvalidError("invalid-preboot", f"--preboot: {settings.preboot} is not between 0 and {MAX_PREBOOT}")
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


def config_file_values(path: Path = CONFIG_FILE) -> dict[str, object]:
    """What the configuration file sets: its table `[up]`, `[database]` (`url` or `url_file`) and `[bus]` (`authority_file`,
    `node_passes`); empty where there is none.

    Raises:
        InvalidError: it cannot be read or parsed, or holds something beside those tables.
    """
    if not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidError("invalid-config", f"{path}: {error}") from error
    unknown = sorted(set(document) - {"up", *_OTHER_TABLES})
    if unknown:
        raise InvalidError(
            "unknown-setting",
            f"{path}: unknown: {', '.join(unknown)}",
            resolution="All settings stand in the table [up]; the database's in [database], the bus's in [bus].",
        )
    values = {name.replace("-", "_"): value for name, value in _table(path, document, "up").items()}
    for table in _OTHER_TABLES:
        misplaced = sorted(name for name in values if name.startswith(f"{table}_"))
        if misplaced:
            raise InvalidError("unknown-setting", f"{path}: {', '.join(misplaced)}: it stands in the table [{table}]")
    other = _database_values(path, _table(path, document, "database")) | _bus_values(
        path, _table(path, document, "bus")
    )
    return values | other


def _table(path: Path, document: dict[str, object], name: str) -> dict[str, object]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise InvalidError("invalid-config", f"{path}: [{name}] is not a table")
    return {str(key): value for key, value in table.items()}


def _database_values(path: Path, table: dict[str, object]) -> dict[str, object]:
    unknown = sorted(set(table) - {"url", "url_file"})
    if unknown:
        raise InvalidError("unknown-setting", f"{path}: unknown: database.{', database.'.join(unknown)}")
    url = table.get("url")
    if not isinstance(url, str | None):
        raise InvalidError("invalid-setting", f"{path}: database.url is not a text")
    if url and has_password(url) and path.stat().st_mode & 0o004:
        raise exposed(path)
    return {f"database_{name}": value for name, value in table.items()}


def _bus_values(path: Path, table: dict[str, object]) -> dict[str, object]:
    unknown = sorted(set(table) - {"authority_file", "node_passes"})
    if unknown:
        raise InvalidError("unknown-setting", f"{path}: unknown: bus.{', bus.'.join(unknown)}")
    return {f"bus_{name}": value for name, value in table.items()}


def has_password(url: str) -> bool:
    """Whether a URL holds one; what is no URL may."""
    try:
        return bool(urlsplit(url).password)
    except ValueError:
        return True


def exposed(path: Path) -> InvalidError:
    """A file with the database's password that everybody can read."""
    return InvalidError(
        "exposed-password",
        f"{path} holds the database's password, and everybody can read it",
        resolution=f"chmod 600 {path}",
    )


def one_database(*layers: Mapping[str, object]) -> dict[str, object]:
    """Settings of several layers, the strongest last: one that names the database in one way takes back the other way.

    Raises:
        InvalidError: one layer names it in both.
    """
    merged: dict[str, object] = {}
    for layer in layers:
        ways = [name for name in _DATABASE if layer.get(name)]
        if len(ways) > 1:
            raise InvalidError("two-databases", "the database is named twice: by its URL, and by a file with its URL")
        if ways:
            merged = {name: value for name, value in merged.items() if name not in _DATABASE}
        merged.update(layer)
    return merged
