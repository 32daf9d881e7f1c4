"""The TLS that servers, nodes and edges speak on the node port: 1.3 alone, both sides known by certificates of the platform.

Theory. A server is known by its name, which the platform's authority gives to servers only, so that no node can pass for
one; a node or edge by its key. What a certificate is for is checked on both sides by OpenSSL (extended key usage, RFC 5280,
section 4.2.1.12). Sessions are never resumed: a resumed one is not verified again.

Keys come as bytes and go to OpenSSL through a file in memory, since it reads them from nothing else.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shellwego.core.errors import InvalidError
from shellwego.core.sensitive import Sensitive

SERVER_NAME = "server.shellwego.internal"
"""What each server's certificate names, and no node's, at whatever address it is: addresses change, and say nothing."""
AUTHORITY_NAME = "ShellWeGo nodes "
"""How the name of an authority begins, in its own certificate and in those that it signs; its id follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What one side shows, and whom it believes. All in PEM."""

    certificate: bytes
    """With those above it, if there are any."""
    key: Sensitive = field(repr=False)
    authorities: bytes
    """Each that is believed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Whose certificate a connection has."""

    key: str
    """SHA-256 of its public key, in hex; see `core.nodecallers.Identify`."""
    expires_at: float
    """Seconds since the epoch."""
    server: bool = False
    """It is a server of this platform: its certificate is one for servers, with the name that only they are given."""
    authority_id: str = ""
    """Whose certificate it shows, of `control.nodeauthority`; empty: the name says nothing."""


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """For a server. A client may show no certificate; one that it shows must be good.

    Raises:
        InvalidError: these are no such credentials.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, credentials.authorities)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    _show(context, credentials)
    return context


def client_context(authorities: bytes, credentials: Credentials | None = None) -> ssl.SSLContext:
    """For a client that believes these authorities; without credentials for a host that has not joined.

    Raises:
        InvalidError: these are no such credentials.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, authorities)
    if credentials is not None:
        _show(context, credentials)
    return context


@lru_cache(maxsize=16_384)
def peer_of(certificate: bytes) -> Peer:
    """Who shows this certificate (DER)."""
    parsed = x509.load_der_x509_certificate(certificate)
    key = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Peer(
        hashlib.sha256(key).hexdigest(),
        parsed.not_valid_after_utc.timestamp(),
        server=_is_server(parsed),
        authority_id=_authority_of(parsed),
    )


def _is_server(certificate: x509.Certificate) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return SERVER_NAME in names.get_values_for_type(x509.DNSName) and ExtendedKeyUsageOID.SERVER_AUTH in usage


def _authority_of(certificate: x509.Certificate) -> str:
    names = [str(each.value) for each in certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return names[0].removeprefix(AUTHORITY_NAME) if names and names[0].startswith(AUTHORITY_NAME) else ""


def expires_at(credentials: Credentials) -> float:
    """When the certificate ends, in seconds since the epoch."""
    return x509.load_pem_x509_certificate(credentials.certificate).not_valid_after_utc.timestamp()


def _context(protocol: int, authorities: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=authorities.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise _unusable("authorities", error) from None
    return context


def _show(context: ssl.SSLContext, credentials: Credentials) -> None:
    descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(credentials.certificate + b"\n" + credentials.key.reveal())
        file.flush()
        try:
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        except (ssl.SSLError, ValueError, OSError) as error:
            raise _unusable("certificate and key", error) from None


def _unusable(what: str, error: Exception) -> InvalidError:
    reason = getattr(error, "reason", None) or type(error).__name__
    return InvalidError("bad-node-credentials", f"the {what} for the node port cannot be used ({reason})")
