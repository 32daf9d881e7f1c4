"""What an operator may set for `plasmavmc serve`. Imports no gRPC: root reads this before the split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from plasmavmc.errors import InvalidSpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What an operator may set."""

    data_dir: Path = Path("/var/lib/plasmavmc")
    socket: Path = Path("/run/plasmavmc/plasmavmc.sock")
    listen: str = ""
    """`host:port` for TCP with mutual TLS; empty: none."""
    certificate: Path | None = None
    key: Path | None = None
    client_authority: Path | None = None
    policy: Path | None = None
    """Who may do what; None: root by the unix socket, and nobody else."""
    registries_allow: tuple[str, ...] = ()
    """Registries on private or loopback addresses that may be used, such as `10.0.0.5:5000`."""
    cache: Path = Path("/var/cache/shellwego")
    zfs: str = ""
    """The dataset below which volumes are kept; empty: they are in the data directory."""
    keep_vms: bool = False
    preboot: int = 0
    """How many guests may be booted ahead, so that VMs begin as copies of them (`plasmavmc.blanks`)."""
    image_budget: int = 0
    """Bytes that images may take on the disk; beyond it the longest unused go. 0: as much as there is."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Our certificate chain and key, and the authority that client certificates must be from. PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_authority: bytes


def parse_address(address: str) -> tuple[str, int]:
    """`host:port` of a TCP listener.

    Raises:
        InvalidSpecError: `address`.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) < 65536:
        raise InvalidSpecError("address", f"{address[:100]!r} is not HOST:PORT")
    return host, int(port)
