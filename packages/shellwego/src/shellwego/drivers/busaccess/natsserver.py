"""What a NATS server is set up with, as text: operator mode, its accounts in a directory, TLS only, streams in memory."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shellwego.drivers.busaccess.authority import ACCOUNT_NAME, SYSTEM_NAME, Authority
from shellwego.drivers.busaccess.tokens import MEMORY_BYTES, account_token, operator_token

CERTIFICATE_DAYS = 3650
_EARLIER_S = 60.0
"""A server that starts prefers what it has stored only where that is newer than its configuration."""
_MOST_PAYLOAD = 64 * 1024


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Where the server's own files lie; it needs to read and write below this directory, and nowhere else."""

    directory: Path

    @property
    def configuration(self) -> Path:
        return self.directory / "nats.conf"

    @property
    def certificate(self) -> Path:
        return self.directory / "server.pem"

    @property
    def key(self) -> Path:
        return self.directory / "server.key"

    @property
    def accounts(self) -> Path:
        """Where it keeps its accounts' tokens, with what was revoked."""
        return self.directory / "accounts"

    @property
    def streams(self) -> Path:
        return self.directory / "jetstream"


def server_configuration(authority: Authority, files: ServerFiles, listen: str, now: float) -> str:
    """The configuration of a server that listens at `listen` (host and port). It holds no secret but the path of its key."""
    account, system = authority.account.public, authority.system.public
    now -= _EARLIER_S
    preload = {
        account: account_token(authority.operator, account, ACCOUNT_NAME, now, streams=True),
        system: account_token(authority.operator, system, SYSTEM_NAME, now, streams=False),
    }
    lines = [
        f"listen: {_quoted(listen)}",
        "server_name: swg-bus",
        f"max_payload: {_MOST_PAYLOAD}",
        'ping_interval: "10s"',
        "tls {",
        f"  cert_file: {_quoted(files.certificate)}",
        f"  key_file: {_quoted(files.key)}",
        "  timeout: 5",
        "}",
        "jetstream {",
        f"  store_dir: {_quoted(files.streams)}",
        f"  max_memory_store: {MEMORY_BYTES}",
        "  max_file_store: 0",
        "}",
        f"operator: {_quoted(operator_token(authority.operator, system, now))}",
        f"system_account: {_quoted(system)}",
        "resolver {",
        "  type: full",
        f"  dir: {_quoted(files.accounts)}",
        "  allow_delete: false",
        "}",
        "resolver_preload {",
        *(f"  {key}: {_quoted(token)}" for key, token in preload.items()),
        "}",
    ]
    return "\n".join(lines) + "\n"


def self_signed(hosts: Sequence[str], now: float) -> tuple[bytes, bytes]:
    """A certificate for these names and addresses that is its own authority, and its key: both PEM.

    There is no authority above it whose key would have to be kept: clients are given this one certificate.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ShellWeGo bus")])
    begin = datetime.fromtimestamp(now, UTC) - timedelta(minutes=5)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([_san(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


def _san(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _quoted(value: str | Path) -> str:
    return json.dumps(str(value))
