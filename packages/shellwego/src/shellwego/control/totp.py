"""One-time codes of an account: their sealed secret, and how a code is taken."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace

from shellwego.core import totp
from shellwego.core.credentials import Credentials
from shellwego.core.errors import InvalidError
from shellwego.ports.sealing import Sealer

PURPOSE = "totp"


@dataclass(frozen=True, slots=True)
class Opened:
    """A secret, and the sealed text that it was in."""

    sealed: str = field(repr=False)
    secret: str = field(repr=False)


async def opened(sealer: Sealer, credentials: Credentials | None) -> Opened | None:
    """The account's secret, opened outside of any transaction; None: it has none, or its key is lost, and only recovery
    codes are left. Raises `UnavailableError`."""
    if credentials is None or not credentials.totp_sealed:
        return None
    with suppress(InvalidError):
        secret = await sealer.unseal(credentials.totp_sealed, purpose=PURPOSE, id_=credentials.id)
        return Opened(credentials.totp_sealed, secret.decode())
    return None


def take(credentials: Credentials, code: str, now: float, opened: Opened | None) -> Credentials | None:
    """The credentials after this code, one-time or for recovery, was used; None: it may not be. To be stored in the same
    transaction, so that nobody else uses it."""
    step = None
    if opened is not None and opened.sealed == credentials.totp_sealed:
        step = totp.matching_step(opened.secret, code, now, credentials.totp_step)
    if step is not None:
        return replace(credentials, totp_step=step)
    left = totp.spend(credentials.recovery_hashes, code) if credentials.totp_on else None
    return None if left is None else replace(credentials, recovery_hashes=left)
