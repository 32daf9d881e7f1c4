"""A certificate authority for the node port, as the platform's own one is, and all that a bad one may do."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shellwego.core.sensitive import Sensitive
from shellwego.wire.tls import SERVER_NAME, Credentials

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
DAY_S = 24 * 3600.0


class TestingAuthority:
    """Signs whatever it is told to."""

    __test__ = False

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"nodes {secrets.token_hex(4)}")])
        builder = _dated(DAY_S).subject_name(name).issuer_name(name).public_key(self._key.public_key())
        basic = x509.BasicConstraints(ca=True, path_length=0)
        self._own = builder.add_extension(basic, critical=True).sign(self._key, hashes.SHA256())
        self.pem = self._own.public_bytes(Encoding.PEM)

    def member(self, member_id: str, life_s: float = DAY_S) -> Credentials:
        """What a node or edge gets when it joins."""
        return self._issue(member_id, [CLIENT], [], life_s)

    def server(self, name: str = SERVER_NAME, life_s: float = DAY_S) -> Credentials:
        """What a server shows, to nodes and to other servers."""
        return self._issue(name, [SERVER, CLIENT], [x509.DNSName(name)], life_s)

    def member_that_names_the_server(self) -> Credentials:
        """A node that wrote the server's name into its certificate."""
        return self._issue(SERVER_NAME, [CLIENT], [x509.DNSName(SERVER_NAME)], DAY_S)

    def _issue(
        self, name: str, usage: list[x509.ObjectIdentifier], names: list[x509.GeneralName], life_s: float
    ) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _dated(life_s).subject_name(subject).issuer_name(self._own.subject).public_key(key.public_key())
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Credentials(certificate=certificate + self.pem, key=Sensitive(private), authorities=self.pem)


def key_of(credentials: Credentials) -> str:
    """By what a server knows who has these."""
    public = x509.load_pem_x509_certificate(credentials.certificate).public_key()
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _dated(life_s: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - timedelta(days=2)).not_valid_after(now + timedelta(seconds=life_s))
