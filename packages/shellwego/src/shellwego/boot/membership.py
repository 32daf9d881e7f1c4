"""What a joined host shows while it runs: its certificate, renewed in time and kept where the process may write.

The host's own directory is root's. What is renewed lies in the data directory of the process, beside nothing secret: the key
stays what it was, and is held in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from shellwego.boot.nodedir import Joined
from shellwego.control.certificates import certificate_request
from shellwego.core.errors import ShellWeGoError
from shellwego.core.joins import RENEW_S, CertificateAnswer
from shellwego.drivers.files import replace_file
from shellwego.ports.clock import Clock
from shellwego.wire.tls import Credentials, expires_at
from shellwego.wire.uplink import Method, RenewCall

LOOK_S = 3600.0
RETRY_S = 60.0
FILE = "certificate.json"

log = structlog.get_logger("shellwego.boot")


class Renewals(Protocol):
    """The way to the servers; an `UplinkChannel` is one."""

    async def call(self, method: str, asked: object, answer: type[CertificateAnswer]) -> CertificateAnswer: ...


class Membership:
    """The credentials of this process."""

    def __init__(self, joined: Joined, directory: Path, clock: Clock) -> None:
        self._path = directory / FILE
        self._clock = clock
        self._key = joined.credentials.key
        self._credentials = _newer(joined.credentials, self._kept())
        self._asked = False

    def credentials(self) -> Credentials:
        """As of now."""
        return self._credentials

    async def keep(self, channel: Renewals) -> None:
        """Have the certificate renewed in time, until cancelled. Once at each start too, so that a node that is started
        anew has a certificate of the newest authority."""
        while True:
            try:
                if not self._asked or expires_at(self._credentials) - self._clock.now() < RENEW_S:
                    await self.renew(channel)
                pause = LOOK_S
            except (ShellWeGoError, OSError) as error:
                log.warning("certificate.not_renewed", reason=str(error))
                pause = RETRY_S
            await self._clock.sleep(pause)

    async def renew(self, channel: Renewals) -> None:
        """Get another certificate for the same key; raises as its call, and `OSError`. It is shown only once it is on disk:
        who has shown one of a new authority may find that the old one does not hold any more.
        """
        key = load_pem_private_key(self._key.reveal(), password=None)
        assert isinstance(key, EllipticCurvePrivateKey)  # noqa: S101 - `nodedir` made it
        answer = await channel.call(Method.RENEW, RenewCall(request=certificate_request(key)), CertificateAnswer)
        fresh = self._shown(answer)
        _ = expires_at(fresh)  # raises where it is none
        replace_file(self._path, msgspec.json.encode(answer))
        self._credentials, self._asked = fresh, True

    def _shown(self, answer: CertificateAnswer) -> Credentials:
        return Credentials(
            certificate=answer.certificate.encode(), key=self._key, authorities="".join(answer.authorities).encode()
        )

    def _kept(self) -> Credentials | None:
        """What was renewed in an earlier life; None where that is nothing, or not for this key."""
        try:
            answer = msgspec.json.decode(self._path.read_bytes(), type=CertificateAnswer)
            found = self._shown(answer)
            key = load_pem_private_key(self._key.reveal(), password=None)
            theirs = x509.load_pem_x509_certificate(found.certificate).public_key()
        except (OSError, ValueError):
            return None
        return found if isinstance(key, EllipticCurvePrivateKey) and key.public_key() == theirs else None


def _newer(first: Credentials, other: Credentials | None) -> Credentials:
    return other if other is not None and expires_at(other) > expires_at(first) else first
