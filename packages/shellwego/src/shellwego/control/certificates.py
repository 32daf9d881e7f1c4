"""Certificates of nodes, edges and servers, as X.509 (RFC 5280): made here, by rules that leave who asks no choice.

A request (PKCS #10, RFC 2986) brings a key and the proof that it is held, and nothing else: one that names itself, or wants
anything, is refused. All keys are of P-256: no negotiation, no weak ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shellwego.core.errors import FieldError, InvalidError
from shellwego.core.sensitive import Sensitive
from shellwego.wire.tls import AUTHORITY_NAME, SERVER_NAME

AUTHORITY_S = 10 * 365 * 24 * 3600.0
SERVER_S = 30 * 24 * 3600.0
MAX_REQUEST_BYTES = 4096
_EARLIER_S = 300.0
"""A certificate begins so much before it is made, for hosts whose clock is behind."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that a request brought."""

    key: EllipticCurvePublicKey
    fingerprint: str
    """See `core.joins.NodeKey.fingerprint`."""


@dataclass(frozen=True, slots=True)
class Signer:
    """An authority that can sign."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def load(cls, certificate: str, key: Sensitive) -> Signer:
        """From PEM, and the key as `private_bytes` wrote it."""
        opened = load_der_private_key(key.reveal(), password=None)
        assert isinstance(opened, EllipticCurvePrivateKey)  # noqa: S101 - we made it
        return cls(x509.load_pem_x509_certificate(certificate.encode()), opened)

    def for_member(self, key: PublicKey, member_id: str, now: float, end: float) -> str:
        """A client's certificate for a node or edge, in PEM."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, member_id)])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = _leaf(name, key.key, now, end).add_extension(usage, critical=True)
        return self._sign(builder)

    def for_server(self, key: EllipticCurvePublicKey, now: float) -> str:
        """A server's certificate, in PEM. It is shown to other servers, too."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        names = x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)])
        builder = _leaf(name, key, now, now + SERVER_S)
        return self._sign(builder.add_extension(usage, critical=True).add_extension(names, critical=False))

    def _sign(self, builder: x509.CertificateBuilder) -> str:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        named = builder.issuer_name(self.certificate.subject).add_extension(issuer, critical=False)
        return named.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def new_key() -> EllipticCurvePrivateKey:
    """A fresh key of the one kind that is used."""
    return generate_private_key(SECP256R1())


def private_bytes(key: EllipticCurvePrivateKey) -> Sensitive:
    """A private key as it is sealed: PKCS #8, DER."""
    return Sensitive(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def private_pem(key: EllipticCurvePrivateKey) -> Sensitive:
    """A private key as TLS libraries read it."""
    return Sensitive(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def authority_certificate(key: EllipticCurvePrivateKey, id_: str, now: float) -> str:
    """The certificate of a new authority, signed by itself, in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{AUTHORITY_NAME}{id_}")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _dated(name, key.public_key(), now, now + AUTHORITY_S).issuer_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True).add_extension(own, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def fingerprint(certificate: str) -> str:
    """SHA-256 of a certificate in PEM, in hex."""
    return x509.load_pem_x509_certificate(certificate.encode()).fingerprint(hashes.SHA256()).hex()


def certificate_request(key: EllipticCurvePrivateKey) -> bytes:
    """What the holder of a key asks with: a request (DER) that names nothing."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def requested_key(request: bytes) -> PublicKey:
    """The key of a certificate request whose sender holds it.

    Raises:
        InvalidError: it is no request of ours: malformed, of another kind of key, with names or wishes, not signed by it.
    """
    try:
        parsed = x509.load_der_x509_csr(request[: MAX_REQUEST_BYTES + 1])
        key = parsed.public_key()
        named = bool(len(parsed.subject.rdns)) or bool(len(parsed.extensions)) or bool(len(parsed.attributes))
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension):
        raise _refused("is no certificate request (PKCS #10, DER)") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _refused("is not for a key of P-256")
    if named:
        raise _refused("names something; all names are the server's to give")
    try:
        held = parsed.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        held = False
    if not held:
        raise _refused("is not signed by its own key")
    return PublicKey(key, key_fingerprint(key))


def key_fingerprint(key: EllipticCurvePublicKey) -> str:
    """What stands for a key; see `core.joins.NodeKey.fingerprint`."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _leaf(name: x509.Name, key: EllipticCurvePublicKey, now: float, end: float) -> x509.CertificateBuilder:
    builder = _dated(name, key, now, end)
    return builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)


def _dated(name: x509.Name, key: EllipticCurvePublicKey, now: float, end: float) -> x509.CertificateBuilder:
    begin = datetime.fromtimestamp(now, UTC) - timedelta(seconds=_EARLIER_S)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(datetime.fromtimestamp(end, UTC))
    )


def _refused(words: str) -> InvalidError:
    return InvalidError(
        "bad-certificate-request",
        f"the certificate request {words}",
        errors=(FieldError("request", "bad-certificate-request", words),),
    )
