"""Who may say who is on the bus: the keys of a NATS server's operator and accounts, in one file that only root reads.

`swg bus init` makes them. Servers of the platform hold the file; the NATS server itself needs none of these keys.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import msgspec

from shellwego.core.errors import InvalidError
from shellwego.core.nkeys import SEED_BYTES, NKey, Role, parse_seed
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.busaccess.tokens import user_token

ACCOUNT_NAME, SYSTEM_NAME = "shellwego", "SYS"
SERVER_PASS_S = 24 * 3600.0
"""A server signs its own pass, anew with each connection."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    operator: str
    account: str
    system: str
    urls: tuple[str, ...]
    certificate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Keys, and where the bus is."""

    operator: NKey = field(repr=False)
    account: NKey = field(repr=False)
    system: NKey = field(repr=False)
    urls: tuple[str, ...]
    certificate: str
    """PEM of what the bus's servers are known by."""

    def encoded(self) -> bytes:
        """As the file holds it."""
        document = _File(
            operator=self.operator.seed_text.reveal_text(),
            account=self.account.seed_text.reveal_text(),
            system=self.system.seed_text.reveal_text(),
            urls=self.urls,
            certificate=self.certificate,
        )
        return msgspec.json.format(msgspec.json.encode(document))

    def server_token(self, key: NKey, now: float) -> str:
        """A server's own pass, for this key."""
        return user_token(self.account, key.public, "server", now=now, lifetime_s=SERVER_PASS_S)


def new_key(role: Role) -> NKey:
    """A fresh key pair."""
    return NKey(role, Sensitive(secrets.token_bytes(SEED_BYTES)))


def new_authority(urls: tuple[str, ...], certificate: str) -> Authority:
    """Fresh keys."""
    operator, account, system = (new_key(role) for role in (Role.OPERATOR, Role.ACCOUNT, Role.ACCOUNT))
    return Authority(operator=operator, account=account, system=system, urls=urls, certificate=certificate)


def parse_authority(content: Sensitive) -> Authority:
    """As `Authority.encoded` wrote it.

    Raises:
        InvalidError: it is none; nothing of it is repeated.
    """
    try:
        found = msgspec.json.decode(content.reveal(), type=_File)
        operator, account, system = (parse_seed(Sensitive.of(s)) for s in (found.operator, found.account, found.system))
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidError):
        raise _invalid() from None
    if [key.role for key in (operator, account, system)] != [Role.OPERATOR, Role.ACCOUNT, Role.ACCOUNT]:
        raise _invalid()
    return Authority(operator=operator, account=account, system=system, urls=found.urls, certificate=found.certificate)


def _invalid() -> InvalidError:
    return InvalidError(
        "invalid-bus-authority", "the file is no authority of a bus", resolution="swg bus init makes one."
    )
